"""Carry out a Compute: call the operator once for every distinct block that this rank holds."""

from dataclasses import dataclass
from typing import Any

import torch

from meshemu.errors import InputError
from meshemu.execute.blocks import Blocks, Host, Key
from meshemu.workload.formats.maxima import Maxima
from meshemu.workload.layout import Layout
from meshemu.workload.plan import Place
from meshemu.workload.spmd import Compute, LocalRange, LocalShape, StepSeed, Tracked, Value

__all__ = ["ComputeTask", "step_seed"]

Environment = dict[int, Blocks]


def step_seed(seed: int, step: int, salt: int) -> int:
    """A 64-bit seed for random operator `salt` in step `step`."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03 + salt * 0x8CB92BA72F3D8DD7) & ((1 << 64) - 1)


@dataclass(frozen=True, eq=False)
class _Moment:
    """What changes from step to step: seeds, and the running maxima that number formats follow."""

    seed: int
    step: int
    maxima: Maxima

    def stream(self, salt: int) -> int:
        """The seed of random operator `salt` in this step."""
        return step_seed(self.seed, self.step, salt)


@dataclass(frozen=True)
class _Block:
    """Reference to one block of a value, filled in at run time."""

    value: int
    key: Key


@dataclass(frozen=True)
class _Call:
    """One call of the operator: its arguments and where its results go."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Key, ...]
    shapes: tuple[tuple[int, ...], ...]
    empty: bool


class ComputeTask:
    """All calls of one Compute instruction on this rank."""

    def __init__(self, instruction: Compute, host: Host) -> None:
        self.instruction = instruction
        values = (*instruction.inputs, *instruction.outputs)
        axes = tuple(dict.fromkeys(axis for v in values for axis in v.layout.axes))
        differing = Layout(partial=axes, stages=instruction.stages)
        self._calls = [self._call(host, p) for p in host.representatives(differing).values()]

    def _call(self, host: Host, position: int) -> _Call:
        instruction = self.instruction
        place = host.plan.at(position)
        return _Call(
            tuple(_bind(arg, host, position) for arg in instruction.args),
            {name: _bind(arg, host, position) for name, arg in instruction.kwargs.items()},
            tuple(host.key(v.layout.axes, position) for v in instruction.outputs),
            tuple(host.local_shape(v, position) for v in instruction.outputs),
            not instruction.takes_empty and any(v.layout.empty(place) for v in instruction.inputs),
        )

    def run(self, environment: Environment, seed: int, step: int, maxima: Maxima | None = None) -> None:
        """Compute the blocks of the outputs. maxima: what number formats follow, if any operator rounds."""
        moment = _Moment(seed, step, maxima or Maxima())
        outputs = self.instruction.outputs
        for value in outputs:
            environment[value.id] = {}
        for call in self._calls:
            if call.empty:
                results = [torch.zeros(s, dtype=v.dtype) for s, v in zip(call.shapes, outputs, strict=True)]
            else:
                args = [_fill(arg, environment, moment) for arg in call.args]
                kwargs = {name: _fill(arg, environment, moment) for name, arg in call.kwargs.items()}
                try:
                    results = _tensors(self.instruction.target(*args, **kwargs))
                except (IndexError, RuntimeError, ValueError) as error:  # of values: shapes fit
                    said = f"{self.instruction.label}: {type(error).__name__}: {error}"
                    raise InputError(f"step {step}: {said}") from error
            for value, key, tensor in zip(outputs, call.outputs, results, strict=True):
                environment[value.id][key] = tensor


def _bind(arg: Any, host: Host, position: int) -> Any:
    """Replace Values and placeholders by what they are at `position`; nests of lists and dicts included."""
    if isinstance(arg, Value):
        return _Block(arg.id, host.key(arg.layout.axes, position))
    if isinstance(arg, LocalShape):
        return host.local_shape(arg.value, position)
    if isinstance(arg, LocalRange):
        return _range(arg.value.layout, arg.value.shape, arg.dim, host.plan.at(position))
    if isinstance(arg, list):
        return [_bind(item, host, position) for item in arg]
    if isinstance(arg, tuple) and type(arg) is tuple:
        return tuple(_bind(item, host, position) for item in arg)
    if isinstance(arg, dict):
        return {key: _bind(item, host, position) for key, item in arg.items()}
    return arg


def _range(layout: Layout, shape: tuple[int, ...], dim: int, place: Place) -> tuple[int, int]:
    split = layout.split_of(dim)
    return (0, shape[dim]) if split is None else split.at(place)


def _fill(arg: Any, environment: Environment, moment: _Moment) -> Any:
    if isinstance(arg, _Block):
        return environment[arg.value][arg.key]
    if isinstance(arg, StepSeed):
        return moment.stream(arg.salt)
    if isinstance(arg, Tracked):
        return moment.maxima.tracker(arg.key)
    if isinstance(arg, list) and any(isinstance(item, _Block | StepSeed | Tracked | list) for item in arg):
        return [_fill(item, environment, moment) for item in arg]
    return arg


def _tensors(result: Any) -> list[torch.Tensor]:
    items = result if isinstance(result, tuple | list) else (result,)
    return [item for item in items if isinstance(item, torch.Tensor)]
