"""Where the time of a step went, by what the ops and messages of its critical path are for."""

from dataclasses import dataclass

import numpy as np

from meshemu.analysis.metrics import path_of
from meshemu.program.ir import OpKind
from meshemu.program.traffic import TRAFFIC, message_classes
from meshemu.record.reader import Run

__all__ = ["Where", "where_of"]


@dataclass(frozen=True)
class Where:
    """Parts of a step in ps, which add up to it. compute_ps: on the critical path, as far as one device does as much;
    bubble_ps: what it computes beyond that, of one device after the other, as a pipeline that fills and drains;
    collectives_ps, halos_ps, stages_ps: exposed time of collectives, of halos and fetches, of moves between stages.
    """

    compute_ps: int
    bubble_ps: int
    collectives_ps: int
    halos_ps: int
    stages_ps: int

    @property
    def total_ps(self) -> int:
        """The step."""
        return self.compute_ps + self.bubble_ps + self.collectives_ps + self.halos_ps + self.stages_ps


def where_of(run: Run) -> Where:
    """The parts of the first recorded step of a run."""
    program = run.program()
    _, end_ps = run.op_times()
    ops = np.array(path_of(run).ops, np.int64)
    taken_ps = np.diff(end_ps[ops], prepend=0)
    computes = program.kind[ops] == OpKind.COMPUTE
    in_collective = ~computes & (program.collective[ops] >= 0)
    classes = message_classes(program, len(TRAFFIC))
    message = program.message[ops]
    moved = ~computes & ~in_collective & (message >= 0)
    to_stage = np.zeros(len(ops), np.bool_)
    to_stage[moved] = classes[message[moved]] == TRAFFIC.index("moves between pipeline stages")
    compute_ps = int(taken_ps[computes].sum())
    busiest_ps = int(run.steps.compute_ps.iloc[0])
    return Where(
        compute_ps=min(compute_ps, busiest_ps),
        bubble_ps=max(0, compute_ps - busiest_ps),
        collectives_ps=int(taken_ps[in_collective].sum()),
        stages_ps=int(taken_ps[to_stage].sum()),
        halos_ps=int(taken_ps[~computes & ~in_collective & ~to_stage].sum()),
    )
