"""The partitioned step: instructions over whole values, each carried out by all devices on their own blocks.

Lowering writes this list once; the executor runs it with tensors, `emission.py` turns it into a Program by shapes
alone. Both take the messages of a Fetch from `windows.py` and those of a Collective from its schedule and `chunks.py`,
so the bytes that are timed are the bytes that are moved.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from meshemu.hardware.format_roles import Carried
from meshemu.workload.layout import REPLICATED, Layout

__all__ = [
    "Collective",
    "Combine",
    "Compute",
    "Fetch",
    "Gathered",
    "IndexLimit",
    "Instruction",
    "LocalRange",
    "LocalShape",
    "Part",
    "PushAdd",
    "Spmd",
    "StepSeed",
    "Tracked",
    "Value",
    "inputs_of",
    "last_uses",
    "outputs_of",
    "read_once",
    "stages_of",
]

Combine = str
"""How blocks of a partial value are combined: a key of `combines.COMBINES`, "sum" as a rule."""


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the whole mesh: global shape, dtype and where its blocks lie."""

    id: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: Layout = REPLICATED
    combine: Combine = "sum"

    @property
    def replicated(self) -> bool:
        """Whether every device holds all of it."""
        return not self.layout.axes


@dataclass(frozen=True)
class LocalShape:
    """Stands for the shape of the device's block of `value` in the arguments of a Compute."""

    value: Value


@dataclass(frozen=True)
class LocalRange:
    """Stands for (lo, hi) of the device's block of `value` along `dim`."""

    value: Value
    dim: int


@dataclass(frozen=True)
class StepSeed:
    """Stands for a seed that changes every step and with `salt`, the same on every device."""

    salt: int


@dataclass(frozen=True)
class Tracked:
    """Stands for the running maximum of the tensor `key`, which an operator may read and add to."""

    key: str


@dataclass(frozen=True, eq=False)
class Compute:
    """Every device calls target(*args, **kwargs) on its blocks; args hold Values and the placeholders above.

    A device whose block of some input is empty yields zeros instead, unless `takes_empty`. attributes: what the cost
    model needs besides shapes. label: module and node.
    """

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    op_class: str
    label: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    takes_empty: bool = False

    @property
    def stages(self) -> tuple[int, ...]:
        """The stages of the pipeline that carry it out."""
        return (self.outputs or self.inputs)[0].layout.stages


@dataclass(frozen=True, eq=False)
class Fetch:
    """Bring any ranges of `source` together as `output`'s blocks; what lies outside `source` becomes `fill`."""

    source: Value
    output: Value
    fill: float
    label: str


@dataclass(frozen=True, eq=False)
class PushAdd:
    """The adjoint of a Fetch: add windows back to the blocks they came from, in device order."""

    source: Value
    output: Value
    label: str


@dataclass(frozen=True, eq=False)
class Collective:
    """An exchange over `axes` by a schedule, several values of one dtype as one buffer.

    kind: "all_reduce" combines partial sources; "reduce_scatter" combines them and leaves every device its block;
    "all_gather" joins blocks. paced: it starts no earlier than the work before the paced one that precedes it, as a
    prefetch of one does. carried: the format that terms are sent in, if it is not that of the sources.
    """

    kind: str
    sources: tuple[Value, ...]
    outputs: tuple[Value, ...]
    axes: tuple[str, ...]
    combine: Combine
    label: str
    paced: bool = False
    carried: Carried | None = None

    @property
    def stages(self) -> tuple[int, ...]:
        """The stages that carry it out."""
        return self.outputs[0].layout.stages

    @property
    def blocks(self) -> tuple[Value, ...]:
        """The side whose blocks are the chunks of the buffer: member i's blocks are chunk i (all_reduce has none)."""
        return self.sources if self.kind == "all_gather" else self.outputs

    @property
    def whole(self) -> tuple[Value, ...]:
        """The side of which every member holds the whole buffer."""
        return self.outputs if self.kind == "all_gather" else self.sources


Instruction = Compute | Fetch | PushAdd | Collective


@dataclass(frozen=True)
class Part:
    """Indices lo <= i < hi of dim `dim` of the graph input `name`, as an input of its own."""

    name: str
    dim: int
    lo: int
    hi: int


@dataclass(frozen=True)
class Gathered:
    """An operator that no rule could compute on blocks: every device computed it on whole inputs.

    module: whose it is, or "the model" or "the loss". size_bytes: of those inputs that were cut.
    """

    op: str
    module: str
    size_bytes: int


@dataclass(frozen=True)
class IndexLimit:
    """Numbers of tensor `leaf` of the batch are 0 <= number < limit, or `ignored`. what: that they choose among."""

    leaf: int
    limit: int
    ignored: int | None
    what: str


@dataclass(frozen=True, eq=False)
class Spmd:
    """One partitioned step.

    inputs: input name -> Value (parameters, buffers, batch leaves); parts: those that are parts of a graph input.
    constants: name -> Value of tensors that the graph carries itself, constant_tensors: their data. loss (None in a
    step of evaluation), buffers, metrics: replicated results. gradients: each cut as its parameter is stored.
    gathered: what was computed on whole inputs. gradient_norm: over all gradients before they were clipped, if they
    were. index_limits: what numbers of the batch choose among.
    """

    instructions: tuple[Instruction, ...]
    inputs: Mapping[str, Value]
    constants: Mapping[str, Value]
    constant_tensors: Mapping[str, torch.Tensor]
    loss: Value | None
    gradients: Mapping[str, Value]
    buffers: Mapping[str, Value]
    metrics: Mapping[str, Value] = field(default_factory=dict)
    parts: Mapping[str, Part] = field(default_factory=dict)
    gathered: tuple[Gathered, ...] = ()
    gradient_norm: Value | None = None
    index_limits: tuple[IndexLimit, ...] = ()

    @property
    def results(self) -> tuple[Value, ...]:
        """Every Value that outlives the step."""
        scalars = (value for value in (self.loss, self.gradient_norm) if value is not None)
        return (*scalars, *self.gradients.values(), *self.buffers.values(), *self.metrics.values())


def last_uses(spmd: Spmd) -> dict[int, list[int]]:
    """Instruction index -> ids of values that nothing needs afterwards."""
    last: dict[int, int] = {}
    for i, instruction in enumerate(spmd.instructions):
        for value in (*inputs_of(instruction), *outputs_of(instruction)):
            last[value.id] = i
    for value in spmd.results:
        last.pop(value.id, None)
    result: dict[int, list[int]] = {}
    for value_id, i in last.items():
        result.setdefault(i, []).append(value_id)
    return result


def read_once(spmd: Spmd) -> frozenset[int]:
    """Ids of the values that one instruction reads, and nothing else: no other, and not who takes the results."""
    readers = Counter(value_id for i in spmd.instructions for value_id in {value.id for value in inputs_of(i)})
    return frozenset(value_id for value_id, n in readers.items() if n == 1) - {value.id for value in spmd.results}


def inputs_of(instruction: Instruction) -> tuple[Value, ...]:
    """Values that an instruction reads."""
    match instruction:
        case Compute():
            return instruction.inputs
        case Collective():
            return instruction.sources
        case _:
            return (instruction.source,)


def outputs_of(instruction: Instruction) -> tuple[Value, ...]:
    """Values that an instruction makes."""
    match instruction:
        case Compute() | Collective():
            return instruction.outputs
        case _:
            return (instruction.output,)


def stages_of(instruction: Instruction) -> tuple[int, ...]:
    """Stages of a pipeline that carry an instruction out; () stands for all."""
    match instruction:
        case Compute() | Collective():
            return instruction.stages
        case _:
            return instruction.output.layout.stages
