"""`meshemu calibrate`: measure the operators of training steps, and messages between ranks, on this very machine.

An operator of a step of eager PyTorch takes what it takes alone, and what eager PyTorch adds around it: modules,
autograd, the allocator. The latter is taken to be the same for every operator, and is what steps of very little work
take longer than their operators.

Two ranks measure every operator at the same time, equally often, since they share memory and caches, and the time of
the slower one counts, since a step waits for it. What an all-reduce of gradients costs besides its messages (copies,
additions) is measured as an operator of its own.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from meshemu.comm import Comm
from meshemu.cost import Measured
from meshemu.emulator.prepare import PreparedStep
from meshemu.execute.host_steps import CASES, OVERHEAD_CASES, PARALLEL_CASES, HostStep, host_step
from meshemu.execute.measuring import average_s, one_thread, operator_s, step_s, update_s
from meshemu.program.ir import OpKind, Program
from meshemu.study.host import UNMEASURED, prepared_step
from meshemu.workload.spmd import Compute

__all__ = [
    "AVERAGE",
    "MESSAGE",
    "Budget",
    "Operators",
    "average_rows",
    "calibrate",
    "message_rows",
    "overhead_ps",
    "row_of",
    "slower_ps",
    "with_overhead",
]

MESSAGE = "message"
"""Op class of the rows that say how long a rank takes to exchange so many bytes with another."""

AVERAGE = "average"
"""Op class of the rows that say how long a rank takes to average the gradients of a model, its messages left out."""

_MESSAGE_BYTES = tuple(4**power for power in range(1, 13))  # 4 B to 16 MiB
_PS = 10**12


@dataclass(frozen=True)
class Budget:
    """Processor seconds for each operator and for each whole step."""

    operator_s: float = 0.05
    step_s: float = 2.0

    @classmethod
    def quick(cls) -> "Budget":
        """A tenth of it."""
        return cls(0.005, 0.3)

    def part(self, n: int) -> "Budget":
        """One of n equal parts of it."""
        return Budget(self.operator_s / n, self.step_s / n)


class Operators:
    """Measured operators, each only once however often it occurs; all ranks measure the same at the same time."""

    def __init__(self, budget: Budget, comm: Comm) -> None:
        self._budget = budget
        self._comm = comm
        self._rows: dict[tuple[object, ...], Measured] = {}

    @property
    def rows(self) -> tuple[Measured, ...]:
        """A row for each operator and shape, without what eager PyTorch adds."""
        return tuple(self._rows.values())

    def measure(self, step: HostStep, prepared: PreparedStep) -> None:
        """Add the operators of a step on one core."""
        program = prepared.timed.program
        instructions = iter(i for i in prepared.spmd.instructions if isinstance(i, Compute))
        for op in np.flatnonzero(program.kind == OpKind.COMPUTE).tolist():
            row, label = row_of(program, op), program.labels[program.label[op]]
            updates = label == "optimizer"
            instruction = None if updates else next(
                i for i in instructions if (i.label, i.op_class) == (label, row.op_class)
            )
            if row.key in self._rows:
                continue
            if instruction is None:
                seconds = update_s(step.model, step.optimizer, self._budget.operator_s, self._comm.max)
            else:
                seconds = operator_s(instruction, self._budget.operator_s, self._comm.max)
            self._rows[row.key] = replace(row, time_ps=slower_ps(seconds, self._comm))


def calibrate(budget: Budget, comm: Comm, cases: Iterable[tuple[str, int]] = CASES) -> tuple[Measured, ...]:
    """Rows for all operators of the steps `cases`, and for messages where there are two ranks or more."""
    one_thread()
    added_ps = overhead_ps(budget, comm)
    operators = Operators(budget, comm)
    for name, batch_size in cases:
        step = host_step(name, batch_size)
        operators.measure(step, prepared_step(step, UNMEASURED))
    averages = average_rows(budget, comm, (name for name, _ in PARALLEL_CASES))
    return (*with_overhead(operators.rows, added_ps), *averages, *message_rows(comm))


def with_overhead(rows: Iterable[Measured], added_ps: int) -> tuple[Measured, ...]:
    """Rows of operators alone as they are within a step, where each takes `added_ps` more."""
    return tuple(replace(row, time_ps=row.time_ps + added_ps) for row in rows)


def overhead_ps(budget: Budget, comm: Comm) -> int:
    """What eager PyTorch adds to an operator, in ps: the least that a step shows, since disturbances only add."""
    found = []
    for name, batch_size in OVERHEAD_CASES:
        step, operators = host_step(name, batch_size), Operators(budget, comm)
        prepared = prepared_step(step, UNMEASURED)
        operators.measure(step, prepared)
        alone = {row.key: row.time_ps for row in operators.rows}
        program = prepared.timed.program
        keys = [row_of(program, op).key for op in range(program.n_ops)]
        comm.barrier()
        whole_ps = slower_ps(step_s(step.model, step.forward, step.optimizer, budget.step_s, agreed=comm.max), comm)
        found.append((whole_ps - sum(alone[key] for key in keys)) / program.n_ops)
    return max(0, round(min(found)))


def slower_ps(seconds: float, comm: Comm) -> int:
    """What the slowest rank takes, in ps: the others wait for it."""
    return comm.max(round(seconds * _PS))


def average_rows(budget: Budget, comm: Comm, names: Iterable[str]) -> tuple[Measured, ...]:
    """How long averaging the gradients of models takes besides messages; none where there is one rank."""
    if comm.size < 2:
        return ()
    rows: dict[int, Measured] = {}
    for name in names:
        model = host_step(name, 1).model
        row = average_row(sum(parameter.numel() for parameter in model.parameters()))
        rows[row.flops] = replace(row, time_ps=slower_ps(average_s(model, budget.operator_s, comm.max), comm))
    return tuple(rows.values())


def average_row(elements: int) -> Measured:
    """The row, without a time, of averaging so many fp32 numbers."""
    return Measured(AVERAGE, "fp32", ((elements,),), elements, 4 * elements, 4 * elements, 0)


def message_rows(comm: Comm) -> tuple[Measured, ...]:
    """How long ranks 0 and 1 take to exchange so many bytes both ways; none where there is one rank."""
    if comm.size < 2:
        return ()
    times = {size: _exchange_s(comm, size) for size in _MESSAGE_BYTES}
    return tuple(
        Measured(MESSAGE, "", ((size,),), 0, size, size, round(seconds * _PS)) for size, seconds in times.items()
    )


def _exchange_s(comm: Comm, size_bytes: int) -> float:
    """Elapsed seconds, since ranks wait for each other: the median of many, as rank 0 sees it."""
    other = 1 - comm.rank
    sent, received = (np.zeros(size_bytes, np.uint8) for _ in range(2))
    samples = []
    comm.barrier()
    for _ in range(max(9, min(200, 2**24 // size_bytes))):
        begin = time.perf_counter()
        if comm.rank < 2:
            comm.exchange({other: sent}, {other: received})
        samples.append(time.perf_counter() - begin)
    found: float = comm.broadcast(median(samples))
    return found


def row_of(program: Program, op: int) -> Measured:
    """An op of a Program as a row without a time."""
    shape = program.shape[op]
    return Measured(
        program.op_classes[program.op_class[op]],
        program.number_formats[program.number_format[op]],
        program.shapes[shape] if shape >= 0 else (),
        int(program.flops[op]),
        int(program.read_bytes[op]),
        int(program.write_bytes[op]),
        0,
    )
