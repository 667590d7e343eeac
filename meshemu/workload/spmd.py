"""The partitioned step: instructions over whole values, each carried out by all devices on their own blocks.

Lowering writes this list once; the executor runs it with tensors, `partition.py` turns it into a Program by shapes
alone. Both take the messages of a Fetch from `windows.py` and those of an AllReduce from its schedule, so the bytes
that are timed are the bytes that are moved.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from meshemu.workload.layout import REPLICATED, Layout

__all__ = [
    "AllReduce",
    "Combine",
    "Compute",
    "Fetch",
    "Instruction",
    "LocalRange",
    "LocalShape",
    "PushAdd",
    "Spmd",
    "StepSeed",
    "Value",
    "inputs_of",
    "last_uses",
    "outputs_of",
]

Combine = str
"""How blocks of a partial value are combined: "sum", or "moments" (count, mean, M2; Chan et al. 1979)."""


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


@dataclass(frozen=True, eq=False)
class Compute:
    """Every device calls target(*args, **kwargs) on its blocks; args hold Values and the placeholders above.

    A device whose block of some input is empty yields zeros instead. attributes: what the cost model needs besides
    shapes. label: module and node.
    """

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    op_class: str
    label: str
    attributes: Mapping[str, Any] = field(default_factory=dict)


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
class AllReduce:
    """Combine partial values over `axes`, several as one buffer."""

    sources: tuple[Value, ...]
    outputs: tuple[Value, ...]
    axes: tuple[str, ...]
    combine: Combine
    label: str


Instruction = Compute | Fetch | PushAdd | AllReduce


@dataclass(frozen=True, eq=False)
class Spmd:
    """One partitioned training step.

    inputs: graph input name -> Value (parameters, buffers, batch leaves). constants: name -> Value of tensors that the
    graph carries itself, constant_tensors: their data. loss, gradients, buffers: replicated results.
    """

    instructions: tuple[Instruction, ...]
    inputs: Mapping[str, Value]
    constants: Mapping[str, Value]
    constant_tensors: Mapping[str, torch.Tensor]
    loss: Value
    gradients: Mapping[str, Value]
    buffers: Mapping[str, Value]


def last_uses(spmd: Spmd) -> dict[int, list[int]]:
    """Instruction index -> ids of values that nothing needs afterwards."""
    last: dict[int, int] = {}
    for i, instruction in enumerate(spmd.instructions):
        for value in (*inputs_of(instruction), *outputs_of(instruction)):
            last[value.id] = i
    for value in (spmd.loss, *spmd.gradients.values(), *spmd.buffers.values()):
        last.pop(value.id, None)
    result: dict[int, list[int]] = {}
    for value_id, i in last.items():
        result.setdefault(i, []).append(value_id)
    return result


def inputs_of(instruction: Instruction) -> tuple[Value, ...]:
    """Values that an instruction reads."""
    match instruction:
        case Compute():
            return instruction.inputs
        case AllReduce():
            return instruction.sources
        case _:
            return (instruction.source,)


def outputs_of(instruction: Instruction) -> tuple[Value, ...]:
    """Values that an instruction makes."""
    match instruction:
        case Compute() | AllReduce():
            return instruction.outputs
        case _:
            return (instruction.output,)
