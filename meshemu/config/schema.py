"""What a configuration may say: sections, keys, types, defaults. Text with a unit is parsed here, once."""

import math
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
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from meshemu.config.formats_table import FormatsTable
from meshemu.config.router_table import RouterTable
from meshemu.errors import InputError
from meshemu.hardware.format_roles import NONE
from meshemu.units import bandwidth_bytes_per_s, size_bytes, time_ps

__all__ = [
    "FILE_FUNCTION",
    "OPTIMIZER_NAMES",
    "SCHEDULE_NAMES",
    "Checkpoint",
    "Config",
    "Data",
    "Grid",
    "Ingest",
    "Memory",
    "Model",
    "Network",
    "Optimizer",
    "Output",
    "ParameterGroup",
    "PlanShape",
    "Schedule",
    "Section",
    "System",
    "Timing",
    "Training",
]

FILE_FUNCTION = re.compile(r".+\.py:[A-Za-z_]\w*")
OPTIMIZER_NAMES = (
    "sgd", "adam", "adamw", "nadam", "radam", "adamax", "adagrad", "adadelta", "rmsprop", "rprop", "asgd",
)  # fmt: skip
"""The optimizers of torch.optim that update each element of a parameter by itself."""
SCHEDULE_NAMES = (
    "constant", "linear", "cosine", "step", "multi_step", "exponential", "polynomial", "cosine_restarts", "one_cycle",
    "cyclic",
)  # fmt: skip
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


def _one_of(names: tuple[str, ...]) -> AfterValidator:
    """A validator of names."""

    def validate(value: str) -> str:
        if value not in names:
            raise ValueError(f" = {value!r} is not one of {', '.join(names)}")
        return value

    return AfterValidator(validate)


def _option(value: object) -> object:
    """A number, truth value or text as it is, a list of numbers as a tuple."""
    if isinstance(value, bool | str) or _is_number(value):
        return value
    if isinstance(value, list | tuple) and value and all(_is_number(item) for item in value):
        return tuple(value)
    raise ValueError(f" = {value!r}: should be a finite number, true or false, text or a list of finite numbers")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _plan_kind(value: object) -> str:
    return "<shape>" if isinstance(value, dict | PlanShape) else "<name>"


SizeBytes = Annotated[int, _quantity(size_bytes)]
BandwidthBytesPerS = Annotated[int, _quantity(bandwidth_bytes_per_s)]
TimePs = Annotated[int, _quantity(time_ps)]
FileFunction = Annotated[str, AfterValidator(_file_function)]
Loss = Annotated[str, AfterValidator(_loss)]
Option = Annotated[Any, AfterValidator(_option)]
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
    """The module that is trained, and the number format of its parameters and activations.

    autocast: operators that torch.autocast knows compute in this format. load: a file of parameters and buffers to
    start from, as torch.save writes a state dict.
    """

    dtype: Literal["fp32", "fp64", "bf16"] = "fp32"
    autocast: Literal["bf16"] | None = None
    load: str | None = None

    @model_validator(mode="after")
    def _something_to_cast(self) -> Self:
        if self.autocast is not None and self.dtype != "fp32":
            raise ValueError(f"autocast = {self.autocast!r} needs dtype = 'fp32', not {self.dtype!r}")
        return self


class Data(_Source):
    """What it is trained on; batch_size is that of the whole machine."""

    batch_size: PositiveInt


class PlanShape(Section):
    """A plan as a product of axes: spatial = [rows, cols] devices per image; pipeline, data, shard, tensor = a number
    of devices (of stages) or their [rows, cols]. zero: what "shard" cuts besides the batch. modules: glob over
    module names -> how "tensor" cuts their weights. stages: modules at which all stages of the pipeline but the first
    begin. order: of its passes. micro_batches: how many pass through it in a step.
    """

    pipeline: Extent | None = None
    data: Extent | None = None
    shard: Extent | None = None
    tensor: Extent | None = None
    spatial: Pair | None = None
    zero: Literal[1, 2, 3] | None = None
    modules: dict[str, Literal["column", "row", "replicate"]] | None = None
    stages: Annotated[tuple[str, ...], Field(strict=False)] | None = None
    order: Literal["1f1b", "gpipe"] | None = None
    micro_batches: PositiveInt | None = None

    @model_validator(mode="after")
    def _some_axis(self) -> Self:
        if not self.model_fields_set & {"pipeline", "data", "shard", "tensor", "spatial"}:
            raise ValueError("give at least one of 'pipeline', 'data', 'shard', 'tensor' and 'spatial'")
        return self


class _Options(Section):
    """A table whose other keys are the keyword arguments of a class of torch: numbers, true or false, text, or lists of
    numbers. Which there are, and which values are good, is for that class to say.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Option]

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments."""
        return dict(self.__pydantic_extra__)


class ParameterGroup(_Options):
    """Options for the parameters whose name matches a glob, such as "*.bias"."""

    match: Annotated[str, Field(min_length=1)]


class Optimizer(_Options):
    """A class of torch.optim by its name in lower case, with its keyword arguments; of groups, the first match wins."""

    name: Annotated[str, _one_of(OPTIMIZER_NAMES)]
    groups: tuple[ParameterGroup, ...] = Field(default=(), strict=False)


class Schedule(_Options):
    """How the learning rate changes: a class of torch.optim.lr_scheduler by name, with its keyword arguments.

    warmup_steps: steps over which the rate first rises linearly.
    """

    name: Annotated[str, _one_of(SCHEDULE_NAMES)]
    warmup_steps: NonNegativeInt = 0


class Training(Section):
    """How long and how it is trained; evaluate_every: steps between evaluations on held-out data, 0 for never.

    clip_norm: gradients are scaled so that their norm over all parameters is at most this. micro_batches: a step goes
    through its batch in so many parts, and its gradients are means over them.
    """

    steps: PositiveInt
    seed: NonNegativeInt = 0
    loss: Loss = "cross_entropy"
    optimizer: Optimizer
    schedule: Schedule | None = None
    clip_norm: PositiveFloat | None = None
    micro_batches: PositiveInt = 1
    evaluate_every: NonNegativeInt = 0


class Timing(Section):
    """How virtual time is computed; packet_bytes is a knob of accuracy against speed.

    fusion: pointwise ops run within the op that makes what they alone read. calibration: a CSV file of measured times
    of ops, in place of the model's. compute_threads, communication_threads: of a device.
    """

    packet_bytes: SizeBytes = 4096
    routing: Literal["xy", "yx"] = "xy"
    collective: Literal["auto", "ring", "rows_columns", "tree", "in_network"] = "auto"
    bucket_bytes: SizeBytes = 25_000_000
    prefetch: NonNegativeInt = 1
    timeline_bins: PositiveInt = 64
    fusion: bool = False
    calibration: str | None = None
    compute_threads: Literal[1, 2] = 1
    communication_threads: Literal[1, 2] = 1


class Memory(Section):
    """What to do about a step that needs more memory than a device has: refuse it, make activations again in the
    backward pass or spill them to interface processors where that makes it fit, or time it all the same.

    spill_ahead: operators that a block has to leave in, and to come back in; over the interface processors at
    `ingest.edges`.
    """

    when_full: Literal["refuse", "recompute", "spill", "allow"] = "refuse"
    spill_ahead: PositiveInt = 4


class Ingest(Section):
    """How batches get to the devices. enabled: over interface processors on these outer edges of the mesh, during the
    step before; by default they are there already.
    """

    enabled: bool = False
    edges: Annotated[tuple[Literal["north", "east", "south", "west"], ...], Field(strict=False, min_length=1)] = (
        "west",
        "east",
    )

    @model_validator(mode="after")
    def _once_each(self) -> Self:
        if len(set(self.edges)) < len(self.edges):
            raise ValueError(f"edges = {list(self.edges)} names an edge twice")
        return self


class Network(Section):
    """What carries the messages. router: the figures of routers with finite buffers, true for their defaults; by
    default and with false, links are FIFOs without bounds.
    """

    router: RouterTable = None


class Output(Section):
    """The results file, relative to the working directory; `<name of the config>.h5` by default.

    messages: every message of the first step is recorded too. record_budget: bytes that ops, timeline and messages of
    the first step may take together; what does not fit is left out, and said.
    """

    path: str | None = None
    overwrite: bool = False
    messages: bool = False
    record_budget: SizeBytes = 1_000_000_000


class Checkpoint(Section):
    """The state of the run, written every so many steps (0: only when it is told to stop); the `keep` last are kept.

    path: their folder, relative to the working directory; RUN.checkpoints beside the results file RUN.h5 by default.
    """

    every_steps: NonNegativeInt = 0
    keep: PositiveInt = 2
    path: str | None = None


class Config(Section):
    """Everything that a run needs to know. Paths of users' files are absolute.

    formats: number formats of values by role, in place of the model's. strict: an operator without a sharding rule for
    the plan is refused, where otherwise its inputs are gathered.
    """

    system: System = System(preset="dojo-tile")
    model: Model
    data: Data
    plan: Annotated[
        Annotated[Literal["spatial", "data", "shard", "tensor", "pipeline", "auto"], Tag("<name>")]
        | Annotated[PlanShape, Tag("<shape>")],
        Discriminator(_plan_kind),
    ]
    training: Training
    formats: FormatsTable = NONE
    timing: Timing = Timing()
    network: Network = Network()
    memory: Memory = Memory()
    ingest: Ingest = Ingest()
    output: Output = Output()
    checkpoint: Checkpoint = Checkpoint()
    strict: bool = False
