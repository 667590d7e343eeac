"""What a configuration may say: sections, keys, types, defaults. Text with a unit is parsed here, once."""

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from meshemu.errors import InputError
from meshemu.units import bandwidth_bytes_per_s, size_bytes, time_ps

__all__ = [
    "FILE_FUNCTION",
    "Adam",
    "AdamW",
    "Config",
    "Data",
    "Grid",
    "Model",
    "Output",
    "PlanShape",
    "Section",
    "Sgd",
    "System",
    "Timing",
    "Training",
]

FILE_FUNCTION = re.compile(r".+\.py:[A-Za-z_]\w*")
_LOSSES = ("cross_entropy", "mse", "model")


def _quantity(parse_units: Callable[..., int]) -> BeforeValidator:
    """A validator that turns text with a unit into an integer of the base unit."""

    def validate(value: object) -> int:
        try:
            return parse_units(value, key="")
        except InputError as error:  # " = '9 apples' is not a bandwidth ...": the fault line puts the key before it
            raise ValueError(str(error)) from None

    return BeforeValidator(validate)


def _file_function(value: str) -> str:
    if not FILE_FUNCTION.fullmatch(value):
        raise ValueError(f" = {value!r} is not of the form 'file.py:function'")
    return value


def _loss(value: str) -> str:
    if value not in _LOSSES and not FILE_FUNCTION.fullmatch(value):
        raise ValueError(f" = {value!r} is not one of {', '.join(_LOSSES)} nor of the form 'file.py:function'")
    return value


def _plan_kind(value: object) -> str:
    return "<shape>" if isinstance(value, dict | PlanShape) else "<name>"


SizeBytes = Annotated[int, _quantity(size_bytes)]
BandwidthBytesPerS = Annotated[int, _quantity(bandwidth_bytes_per_s)]
TimePs = Annotated[int, _quantity(time_ps)]
FileFunction = Annotated[str, AfterValidator(_file_function)]
Loss = Annotated[str, AfterValidator(_loss)]
Pair = Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)]
Extent = Annotated[
    Annotated[PositiveInt, Tag("<number>")] | Annotated[Pair, Tag("<pair>")],
    Discriminator(lambda value: "<pair>" if isinstance(value, list | tuple) else "<number>"),
]


class Section(BaseModel):
    """A table of the file: immutable, its keys all named, its types exact."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Grid(Section):
    """A plain mesh instead of a preset: rows x cols devices, every link alike; latency in ps."""

    rows: PositiveInt
    cols: PositiveInt
    bandwidth: BandwidthBytesPerS
    latency: TimePs


class System(Section):
    """The hardware: a preset by name or a grid.

    devices: the granularity. figures: choices among figures that sources give differently. overrides: flat keys such as
    "tile_edge.bandwidth" -> value, from every other key of the section.
    """

    preset: str | None = None
    grid: Grid | None = None
    devices: str | None = None
    figures: dict[str, str] = Field(default_factory=dict)
    overrides: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _default_preset(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("preset") is None and values.get("grid") is None:
            return values | {"preset": "dojo-tile"}
        return values

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.preset is not None and self.grid is not None:
            raise ValueError("give either 'preset' or 'grid', not both")
        return self


class _Source(Section):
    """A built-in by `name`, or a function of the user's as `build = "file.py:function"`, called with `args`."""

    name: str | None = None
    build: FileFunction | None = None
    args: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.name is None) == (self.build is None):
            raise ValueError("give either 'name' (a built-in) or 'build' (\"file.py:function\")")
        return self


class Model(_Source):
    """The module that is trained, and the number format of its parameters and activations."""

    dtype: Literal["fp32", "fp64", "bf16"] = "fp32"


class Data(_Source):
    """What it is trained on; batch_size is that of the whole machine."""

    batch_size: PositiveInt


class PlanShape(Section):
    """A plan as a product of axes: spatial = [rows, cols] devices per image; data, shard, tensor = a number of devices
    or their [rows, cols].
    """

    data: Extent | None = None
    shard: Extent | None = None
    tensor: Extent | None = None
    spatial: Pair | None = None

    @model_validator(mode="after")
    def _some_axis(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("give at least one of 'data', 'shard', 'tensor' and 'spatial'")
        return self


class Sgd(Section):
    """Stochastic gradient descent, as torch.optim.SGD."""

    name: Literal["sgd"]
    lr: PositiveFloat
    momentum: NonNegativeFloat = 0.0
    weight_decay: NonNegativeFloat = 0.0


class Adam(Section):
    """Adam, as torch.optim.Adam."""

    name: Literal["adam"]
    lr: PositiveFloat
    betas: tuple[NonNegativeFloat, NonNegativeFloat] = Field(default=(0.9, 0.999), strict=False)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0


class AdamW(Adam):
    """Adam with decoupled weight decay, as torch.optim.AdamW."""

    name: Literal["adamw"]  # type: ignore[assignment]
    weight_decay: NonNegativeFloat = 0.01


class Training(Section):
    """How long and how it is trained; evaluate_every: steps between evaluations on held-out data, 0 for never."""

    steps: PositiveInt
    seed: NonNegativeInt = 0
    loss: Loss = "cross_entropy"
    optimizer: Annotated[Sgd | Adam | AdamW, Field(discriminator="name")]
    evaluate_every: NonNegativeInt = 0


class Timing(Section):
    """How virtual time is computed; packet_bytes is a knob of accuracy against speed."""

    packet_bytes: SizeBytes = 4096
    routing: Literal["xy", "yx"] = "xy"
    collective: Literal["auto", "ring", "rows_columns", "tree"] = "auto"
    bucket_bytes: SizeBytes = 25_000_000
    timeline_bins: PositiveInt = 64


class Output(Section):
    """The results file, relative to the working directory; `<name of the config>.h5` by default."""

    path: str | None = None
    overwrite: bool = False


class Config(Section):
    """Everything that a run needs to know. Paths of users' files are absolute."""

    system: System = System(preset="dojo-tile")
    model: Model
    data: Data
    plan: Annotated[
        Annotated[Literal["spatial", "data", "shard", "tensor"], Tag("<name>")] | Annotated[PlanShape, Tag("<shape>")],
        Discriminator(_plan_kind),
    ]
    training: Training
    timing: Timing = Timing()
    output: Output = Output()
