"""Where the time of a step went, by what the ops and messages of its critical path are for."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.analysis.critical_path import CriticalPath, critical_path
from meshemu.analysis.metrics import path_of
from meshemu.emulator.timed_step import TimedStep
from meshemu.mesh import Order
from meshemu.program.interfaces import ingest_ops
from meshemu.program.ir import OpKind, Program
from meshemu.program.traffic import TRAFFIC, message_classes
from meshemu.record.reader import Run

__all__ = ["PARTS", "Where", "where_of", "where_of_step"]

PARTS = {
    "compute_ps": "compute",
    "bubble_ps": "bubble",
    "collectives_ps": "collectives",
    "halos_ps": "halos and fetches",
    "stages_ps": "moves between stages",
    "interfaces_ps": "interface processors",
}
"""Fields of `Where` in words."""


@dataclass(frozen=True)
class Where:
    """Parts of a step in ps, which add up to it. compute_ps: on the critical path, as far as one device does as much;
    bubble_ps: what it computes beyond that, of one device after the other, as a pipeline that fills and drains;
    collectives_ps, halos_ps, stages_ps: exposed time of collectives, of halos and fetches, of moves between stages;
    interfaces_ps: of what passes through interface processors, as batches do.
    """

    compute_ps: int
    bubble_ps: int
    collectives_ps: int
    halos_ps: int
    stages_ps: int
    interfaces_ps: int

    @property
    def total_ps(self) -> int:
        """The step."""
        return sum(vars(self).values())


def where_of(run: Run) -> Where:
    """The parts of the first recorded step of a run."""
    return _where(run.program(), path_of(run), run.op_times()[1], int(run.steps.compute_ps.iloc[0]))


def where_of_step(step: TimedStep, order: Order) -> Where:
    """The parts of a step that was just timed; order: how its messages were routed."""
    times = step.timing.ops
    path = critical_path(step.program, step.mesh, times.start_ps, times.end_ps, order)
    return _where(step.program, path, times.end_ps, step.summary.compute_ps)


def _where(program: Program, path: CriticalPath, end_ps: NDArray[np.int64], busiest_ps: int) -> Where:
    ops = np.array(path.ops, np.int64)
    taken_ps = np.diff(end_ps[ops], prepend=0)
    computes = program.kind[ops] == OpKind.COMPUTE
    in_collective = ~computes & (program.collective[ops] >= 0)
    classes = message_classes(program, len(TRAFFIC))
    message = program.message[ops]
    moved = ~computes & ~in_collective & (message >= 0)
    to_stage = np.zeros(len(ops), np.bool_)
    to_stage[moved] = classes[message[moved]] == TRAFFIC.index("moves between pipeline stages")
    at_interface = (program.kind == OpKind.INTERFACE) | ingest_ops(program)
    outside = at_interface[ops]
    compute_ps = int(taken_ps[computes].sum())
    return Where(
        compute_ps=min(compute_ps, busiest_ps),
        bubble_ps=max(0, compute_ps - busiest_ps),
        collectives_ps=int(taken_ps[in_collective].sum()),
        stages_ps=int(taken_ps[to_stage].sum()),
        interfaces_ps=int(taken_ps[outside].sum()),
        halos_ps=int(taken_ps[~computes & ~in_collective & ~to_stage & ~outside].sum()),
    )
