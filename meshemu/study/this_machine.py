"""`meshemu validate --this-machine`: steps of plain PyTorch, predicted from measured operators and then measured.

A step on one core is a Program whose ops take the times of the table. A step over two ranks, each with half of the
batch, is a step with that half and an all-reduce of the gradients by a ring of two: messages of half of the gradients,
timed on links with the latency and the rate that messages of about that size show, and what a rank does besides, which
the table has.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from statistics import median

import numpy as np

from meshemu.analysis.table import table
from meshemu.comm import Comm
from meshemu.cost import Calibration, CostOptions, Measured, durations_ps
from meshemu.emulator.collective_times import collective
from meshemu.emulator.prepare import PreparedStep
from meshemu.emulator.timing import time
from meshemu.errors import InputError
from meshemu.execute.data_parallel import average
from meshemu.execute.host_steps import CASES, PARALLEL_CASES, HostStep, host_step
from meshemu.execute.measuring import one_thread, step_s
from meshemu.study.calibrate import (
    AVERAGE,
    MESSAGE,
    Budget,
    Operators,
    average_rows,
    message_rows,
    overhead_ps,
    row_of,
    slower_ps,
    with_overhead,
)
from meshemu.study.host import UNMEASURED, core, prepared_step, system
from meshemu.units import format_time

__all__ = ["HostRow", "all_reduce_ps", "averaging_ps", "link", "medians", "needed", "render", "this_machine", "to_json"]

_PS = 10**12

ROUNDS = 3
"""How often a step, and its operators before it, are measured: a disturbance of a second spoils one of them."""


@dataclass(frozen=True)
class HostRow:
    """One step. matched: ops whose time is that of a row of the table; the others are scaled by their class."""

    model: str
    batch_size: int
    ranks: int
    ops: int
    matched: int
    predicted_ps: int
    measured_ps: int

    @property
    def error(self) -> float:
        """Predicted over measured, less 1."""
        return self.predicted_ps / self.measured_ps - 1


def this_machine(
    table: Calibration | None,
    budget: Budget,
    comm: Comm,
    cases: Iterable[tuple[str, int]] = CASES,
    parallel_cases: Iterable[tuple[str, int]] = PARALLEL_CASES,
) -> list[HostRow]:
    """Predict and measure the steps of `cases` on one core, on every rank at once, and with two ranks those of
    `parallel_cases`.

    table: times of operators. None: those of each step are measured with it, by turns, since the speed of a machine
    that is shared or hot changes within a minute; medians over the rounds count.

    Raises InputError for more than two ranks, and for a table without messages where there are two.
    """
    if comm.size > 2:
        raise InputError(f"validate --this-machine runs on 1 or 2 ranks, not {comm.size}")
    if comm.size == 2 and table is not None:
        link(table.rows, 1)
        averaging_ps(table.rows, 1)
    one_thread()
    host = _Host(table, overhead_ps(budget, comm) if table is None else 0, budget, comm)
    rows = [host.row(name, batch_size, 1) for name, batch_size in cases]
    if comm.size == 2:
        rows += [host.row(name, batch_size, 2) for name, batch_size in parallel_cases]
    return rows


def needed(comm: Comm) -> tuple[tuple[str, int], ...]:
    """(model, batch size on one rank) of all steps that are predicted on so many ranks."""
    halves = tuple((name, batch_size // 2) for name, batch_size in PARALLEL_CASES) if comm.size == 2 else ()
    return tuple(dict.fromkeys((*CASES, *halves)))


def render(rows: Sequence[HostRow], origin: str) -> str:
    """The rows as a table, and the median error."""
    head = ["model", "batch", "ranks", "ops", "in the table", "predicted", "measured", "error"]
    cells = [
        [
            row.model, str(row.batch_size), str(row.ranks), str(row.ops), str(row.matched),
            format_time(row.predicted_ps), format_time(row.measured_ps), f"{row.error:+.1%}",
        ]
        for row in rows
    ]  # fmt: skip
    worst = max(rows, key=lambda row: abs(row.error))
    return (
        f"{table(head, cells, left=1, right_to=8)}\n\n"
        f"Times of operators: {origin}. Steps on one core in processor time, over two ranks in elapsed time.\n"
        f"Median error {median(abs(row.error) for row in rows):.1%} over {len(rows)} steps, "
        f"greatest {abs(worst.error):.1%} ({worst.model}, batch {worst.batch_size})."
    )


def to_json(rows: Sequence[HostRow]) -> str:
    """The rows as a JSON list of objects."""
    return json.dumps([asdict(row) | {"error": row.error} for row in rows], indent=2)


def link(rows: Sequence[Measured], size_bytes: int) -> tuple[int, int]:
    """(bytes/s, ps) of a link on which messages of about `size_bytes` between two ranks take what they took: the line
    through the measured sizes on both sides of it, or through the last two.

    MPI sends small messages in another way than large ones, so that one line would not do. Raises InputError if the
    rows have no two sizes of messages.
    """
    messages = sorted((row.write_bytes, row.time_ps) for row in rows if row.op_class == MESSAGE)
    if len(messages) < 2:
        raise InputError("the calibration has no messages: calibrate on two ranks (mpirun -n 2 meshemu calibrate)")
    upper = next((i for i, (size, _) in enumerate(messages) if size >= size_bytes), len(messages) - 1)
    (less, less_ps), (more, more_ps) = messages[max(upper, 1) - 1], messages[max(upper, 1)]
    rate = (more - less) * _PS // max(1, more_ps - less_ps)
    latency_ps = less_ps - less * _PS // max(1, rate)
    if latency_ps < 0:  # a line that gets steeper: all of the time grows with the size
        rate, latency_ps = more * _PS // max(1, more_ps), 0
    return max(1, rate), latency_ps


def averaging_ps(rows: Sequence[Measured], elements: int) -> int:
    """What averaging so many fp32 numbers with another rank takes besides messages: measured, or in proportion to the
    nearest number that was.

    Raises InputError if none was.
    """
    known = {row.flops: row.time_ps for row in rows if row.op_class == AVERAGE and row.flops}
    if not known:
        raise InputError("the calibration has no averaging: calibrate on two ranks (mpirun -n 2 meshemu calibrate)")
    nearest = min(known, key=lambda n: (abs(n - elements), n))
    return known[nearest] * elements // nearest


@dataclass(frozen=True)
class _Host:
    """What steps are predicted from and measured with. added_ps: what eager PyTorch adds to an operator, if there is no
    table.
    """

    table: Calibration | None
    added_ps: int
    budget: Budget
    comm: Comm

    def row(self, name: str, batch_size: int, ranks: int) -> HostRow:
        """One step, its batch shared by so many ranks.

        What is measured as a step is a model of its own in each round: updates with made-up gradients, and hundreds of
        steps with one batch, end in numbers so small that processors compute with them many times as slowly.
        """
        step = host_step(name, batch_size // ranks)
        prepared = prepared_step(step, UNMEASURED)
        rows, steps_ps, found = () if self.table is None else self.table.rows, [], []
        for _ in range(ROUNDS):
            if self.table is None:
                found.append(self._operators(step, prepared, ranks))
            steps_ps.append(self._step_ps(host_step(name, batch_size // ranks), ranks))
        rows, measured_ps = rows or medians(found), round(median(steps_ps))
        program = prepared.timed.program
        calibration = self.table or Calibration("measured with the step", rows)
        predicted_ps = int(np.sum(durations_ps(program, core(rows), CostOptions(calibration=calibration))))
        if ranks == 2:
            elements = sum(parameter.numel() for parameter in step.model.parameters())
            predicted_ps += averaging_ps(rows, elements) + all_reduce_ps(rows, 4 * elements)
        known = {row.key for row in rows}
        matched = sum(row_of(program, op).key in known for op in range(program.n_ops))
        return HostRow(name, batch_size, ranks, program.n_ops, matched, predicted_ps, measured_ps)

    def _operators(self, step: HostStep, prepared: PreparedStep, ranks: int) -> tuple[Measured, ...]:
        """Rows of what a step consists of, in the time of one round."""
        budget, comm = self.budget.part(ROUNDS), self.comm
        operators = Operators(budget, comm)
        operators.measure(step, prepared)
        rows = with_overhead(operators.rows, self.added_ps)
        return rows if ranks == 1 else (*rows, *average_rows(budget, comm, [step.name]), *message_rows(comm))

    def _step_ps(self, step: HostStep, ranks: int) -> int:
        """What the step takes: of one core the slower rank's, of two ranks as rank 0 sees it."""
        budget_s, comm = self.budget.part(ROUNDS).step_s, self.comm
        if ranks == 1:
            return slower_ps(step_s(step.model, step.forward, step.optimizer, budget_s, agreed=comm.max), comm)
        comm.barrier()
        seconds = step_s(step.model, step.forward, step.optimizer, budget_s, partial(average, comm=comm), comm.max)
        agreed: float = comm.broadcast(seconds)
        return round(agreed * _PS)


def medians(rounds: Iterable[Iterable[Measured]]) -> tuple[Measured, ...]:
    """Each row once, with the median of its times in the rounds that have it."""
    times: dict[Measured, list[int]] = {}
    for row in chain.from_iterable(rounds):
        times.setdefault(replace(row, time_ps=0), []).append(row.time_ps)
    return tuple(replace(row, time_ps=round(median(known))) for row, known in times.items())


def all_reduce_ps(rows: Sequence[Measured], size_bytes: int) -> int:
    """The messages of an all-reduce of two ranks, two each way, of half of the bytes; additions take nothing."""
    pair = system(None, 2, *link(rows, -(-size_bytes // 2)))
    return time(collective("all_reduce", "ring", system=pair, size_bytes=size_bytes, itemsize=4), pair).end_ps
