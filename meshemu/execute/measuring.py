"""Processor time of operators, updates and whole steps of plain PyTorch on the machine that this runs on.

Processor time of one thread, so that other processes disturb little, and medians. Operators are called alone, on values
that they have not seen just before: sets of arguments take turns until they fill more than a core's caches, as far as
that takes no more than `_SETS` of them.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from meshemu.execute.data_parallel import averaged_alone
from meshemu.execute.optimizer import Optimizer
from meshemu.workload.spmd import Compute, LocalRange, LocalShape, StepSeed, Value

__all__ = ["average_s", "measured_s", "one_thread", "operator_s", "step_s", "update_s"]

_COLD_BYTES = 2**25
_SETS = 32
_SAMPLE_S = 100e-6
_MOST_SAMPLES = 40


def one_thread() -> None:
    """Let operators compute on one thread, as the ranks of a run do."""
    torch.set_num_threads(1)


def operator_s(instruction: Compute, budget_s: float, agreed: Callable[[int], int] = int) -> float:
    """Median seconds of one call on whole values. agreed: as in `measured_s`."""
    size_bytes = sum(v.dtype.itemsize * _count(v) for v in instruction.inputs)
    first = _arguments(instruction)
    copies = max(1, min(_SETS, _COLD_BYTES // max(size_bytes, 1))) - 1
    sets = [first, *(pytree.tree_map_only(torch.Tensor, torch.clone, first) for _ in range(copies))]
    turn = 0

    def call() -> None:
        nonlocal turn
        args, kwargs = sets[turn]
        turn = (turn + 1) % len(sets)
        instruction.target(*args, **kwargs)

    with torch.no_grad():
        return measured_s(call, budget_s, agreed=agreed)


def update_s(model: nn.Module, optimizer: Optimizer, budget_s: float, agreed: Callable[[int], int] = int) -> float:
    """Median seconds of one update of all parameters."""
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return measured_s(optimizer.step, budget_s, agreed=agreed)


def average_s(model: nn.Module, budget_s: float, agreed: Callable[[int], int] = int) -> float:
    """Median seconds of averaging gradients of all parameters with another rank, the messages left out."""
    gradients = [torch.randn_like(parameter.detach()) for parameter in model.parameters()]
    return measured_s(lambda: averaged_alone(gradients), budget_s, agreed=agreed)


def step_s(
    model: nn.Module, loss: Callable[[], torch.Tensor], optimizer: Optimizer, budget_s: float,
    reduce: Callable[[Sequence[torch.Tensor]], None] | None = None, agreed: Callable[[int], int] = int,
) -> float:
    """Median seconds of a step of plain PyTorch: loss, its gradients, what `reduce` does to them, the update.

    With `reduce`, which waits for others, it is elapsed time instead, and `agreed` turns a number of steps into one
    that is the same for all.
    """

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()  # type: ignore[no-untyped-call]
        if reduce is not None:
            reduce([p.grad for p in model.parameters() if p.grad is not None])
        optimizer.step()

    return measured_s(step, budget_s, time.process_time if reduce is None else time.perf_counter, agreed)


def measured_s(
    call: Callable[[], Any], budget_s: float, clock: Callable[[], float] = time.process_time,
    agreed: Callable[[int], int] = int,
) -> float:
    """Median seconds of `call`, in as many samples as the budget allows but at least three, after two calls more.

    agreed: turns a number into one that is the same for all ranks, and lets them go on together: so they call as often,
    each while the others do, and share caches and memory as they do in a step.
    """
    call()
    begin = clock()
    call()
    once = max(clock() - begin, 1e-9)
    calls = agreed(max(1, round(_SAMPLE_S / once)))
    count = agreed(max(3, min(_MOST_SAMPLES, round(budget_s / (once * calls)))))
    samples = []
    for _ in range(count):
        begin = clock()
        for _ in range(calls):
            call()
        samples.append((clock() - begin) / calls)
    return median(samples)


def _arguments(instruction: Compute) -> tuple[Any, Any]:
    """Tensors and numbers for one call; values are random, indices and truth values such that they fit any tensor."""
    tensors: dict[int, torch.Tensor] = {}

    def fill(leaf: Any) -> Any:
        if isinstance(leaf, Value):
            if leaf.id not in tensors:
                tensors[leaf.id] = _tensor(leaf)
            return tensors[leaf.id]
        if isinstance(leaf, LocalShape):
            return leaf.value.shape
        if isinstance(leaf, LocalRange):
            return 0, leaf.value.shape[leaf.dim]
        return 1 if isinstance(leaf, StepSeed) else leaf

    args, kwargs = pytree.tree_map(fill, (instruction.args, dict(instruction.kwargs)))
    return args, kwargs


def _tensor(value: Value) -> torch.Tensor:
    if value.dtype.is_floating_point:
        return torch.rand(value.shape, dtype=value.dtype) + 0.5
    fill = torch.ones if value.dtype == torch.bool else torch.zeros
    return fill(value.shape, dtype=value.dtype)


def _count(value: Value) -> int:
    return int(torch.Size(value.shape).numel())
