"""`meshemu validate --this-machine`: steps of plain PyTorch, predicted from measured operators and then measured.

A step on one core is a Program whose ops take the times of the table. A step over two ranks, each with half of the
batch, is a step with that half and an all-reduce of the gradients by a ring of two: messages of half of the gradients,
timed on links with the latency and the rate that messages of about that size show, and what a rank does besides, which
the table has.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median

import numpy as np

from meshemu.analysis.table import table
from meshemu.comm import Comm
from meshemu.cost import Calibration, CostOptions, Measured, durations_ps
from meshemu.emulator.collective_times import collective
from meshemu.emulator.timing import time
from meshemu.errors import InputError
from meshemu.execute.data_parallel import average
from meshemu.execute.host_steps import CASES, PARALLEL_CASES, host_step
from meshemu.execute.measuring import one_thread, step_s
from meshemu.hardware import DeviceSpec
from meshemu.study.calibrate import AVERAGE, MESSAGE, Budget, slower_ps
from meshemu.study.host import core, prepared_step, system
from meshemu.units import format_time

__all__ = ["HostRow", "all_reduce_ps", "averaging_ps", "link", "needed", "render", "this_machine", "to_json"]

_PS = 10**12


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
    table: Calibration,
    budget: Budget,
    comm: Comm,
    cases: Iterable[tuple[str, int]] = CASES,
    parallel_cases: Iterable[tuple[str, int]] = PARALLEL_CASES,
) -> list[HostRow]:
    """Predict and measure the steps of `cases` on one core, on every rank at once, and with two ranks those of
    `parallel_cases`.

    Raises InputError for more than two ranks, and for a table without messages where there are two.
    """
    if comm.size > 2:
        raise InputError(f"validate --this-machine runs on 1 or 2 ranks, not {comm.size}")
    if comm.size == 2:
        link(table.rows, 1)
        averaging_ps(table.rows, 1)
    one_thread()
    device = core(table.rows)
    rows = [_one_core(name, batch_size, device, table, budget, comm) for name, batch_size in cases]
    if comm.size == 2:
        rows += [_two_ranks(name, batch_size, device, table, budget, comm) for name, batch_size in parallel_cases]
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


def _one_core(
    name: str, batch_size: int, device: DeviceSpec, table: Calibration, budget: Budget, comm: Comm
) -> HostRow:
    step = host_step(name, batch_size)
    ops, matched, predicted_ps = _predicted(name, batch_size, device, table)
    seconds = step_s(step.model, step.forward, step.optimizer, budget.step_s, agreed=comm.max)
    return HostRow(name, batch_size, 1, ops, matched, predicted_ps, slower_ps(seconds, comm))


def _two_ranks(
    name: str, batch_size: int, device: DeviceSpec, table: Calibration, budget: Budget, comm: Comm
) -> HostRow:
    step = host_step(name, batch_size // 2)
    ops, matched, predicted_ps = _predicted(name, batch_size // 2, device, table)
    elements = sum(parameter.numel() for parameter in step.model.parameters())
    predicted_ps += averaging_ps(table.rows, elements) + all_reduce_ps(table.rows, 4 * elements)
    comm.barrier()
    seconds = step_s(step.model, step.forward, step.optimizer, budget.step_s, partial(average, comm=comm), comm.max)
    return HostRow(name, batch_size, 2, ops, matched, predicted_ps, round(comm.broadcast(seconds) * _PS))


def all_reduce_ps(rows: Sequence[Measured], size_bytes: int) -> int:
    """The messages of an all-reduce of two ranks, two each way, of half of the bytes; additions take nothing."""
    pair = system(None, 2, *link(rows, -(-size_bytes // 2)))
    return time(collective("all_reduce", "ring", system=pair, size_bytes=size_bytes, itemsize=4), pair).end_ps


def _predicted(name: str, batch_size: int, device: DeviceSpec, table: Calibration) -> tuple[int, int, int]:
    """(ops, those that are in the table, ps) of a step on one core."""
    program = prepared_step(host_step(name, batch_size), device).timed.program
    known = {row.key for row in table.rows}
    shapes = [program.shapes[i] if i >= 0 else () for i in program.shape.tolist()]
    names = (program.op_classes[i] for i in program.op_class.tolist())
    formats = (program.number_formats[i] for i in program.number_format.tolist())
    columns = (program.flops.tolist(), program.read_bytes.tolist(), program.write_bytes.tolist())
    matched = sum(key in known for key in zip(names, formats, shapes, *columns, strict=True))
    durations = durations_ps(program, device, CostOptions(calibration=table))
    return program.n_ops, matched, int(np.sum(durations))
