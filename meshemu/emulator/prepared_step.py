"""One training step, partitioned and timed: what the executor, the recorder and the reports start from."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from meshemu.collectives import Schedule
from meshemu.comm import Comm
from meshemu.emulator.timed_step import TimedStep
from meshemu.execute.blocks import Host
from meshemu.execute.executor import Executor
from meshemu.execute.number_formats import format_remarks
from meshemu.execute.split import even_split
from meshemu.execute.training import StepRunner
from meshemu.hardware.format_roles import Formats
from meshemu.network import Timing
from meshemu.program.ir import Program
from meshemu.units import format_bytes
from meshemu.workload.plan import Plan
from meshemu.workload.spmd import Gathered, Spmd

__all__ = ["OfPreparedStep", "PreparedStep"]


@dataclass(frozen=True, eq=False)
class PreparedStep:
    """One training step, partitioned and timed: what the executor, the recorder and the reports start from.

    reason: why this plan, where it was chosen by `plan = "auto"`, else "". formats: of values by role. memory_remark:
    what was done to make it fit into memory, "" if nothing had to be.
    """

    plan: Plan
    spmd: Spmd
    schedules: Mapping[int, Schedule]
    timed: TimedStep
    reason: str
    formats: Formats
    memory_remark: str

    @property
    def gathered(self) -> tuple[Gathered, ...]:
        """Operators that were computed on whole inputs, since no sharding rule fits theirs."""
        return self.spmd.gathered

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the terms of the loss; none where it is one number."""
        return tuple(self.spmd.metrics)

    @property
    def remarks(self) -> tuple[str, ...]:
        """The plan, why it was chosen if it was, what was gathered for want of a rule, what was done to fit into
        memory, and the number formats: one sentence each.
        """
        why = f", chosen: {self.reason}" if self.reason else ""
        gathers = (
            f"gathered: {g.op} in {g.module} has no sharding rule for its inputs; all devices compute it "
            f"on whole ones ({format_bytes(g.size_bytes)} of cut inputs)"
            for g in self.gathered
        )
        memory = (self.memory_remark,) if self.memory_remark else ()
        return (f"plan: {self.plan.describe()}{why}", *gathers, *memory, *format_remarks(self.spmd, self.formats))

    @property
    def last_timed(self) -> TimedStep:
        """The timed step that was run last: this one."""
        return self.timed

    def executor(self, comm: Comm) -> StepRunner:
        """The executor of this rank's devices."""
        program = self.timed.program
        flops = np.bincount(program.device, program.flops, program.n_devices).astype(np.float64)
        ranks = even_split(
            self.plan, comm.size, self.timed.system.cols, flops, program.src, program.dst, program.size_bytes
        )
        return Executor(self.spmd, Host(self.plan, comm.rank, ranks), self.schedules, comm)


class OfPreparedStep:
    """What every result that holds a prepared step tells of its time."""

    prepared: PreparedStep

    @property
    def timing(self) -> Timing:
        """Virtual time of one step: ops, messages, links."""
        return self.prepared.timed.timing

    @property
    def program(self) -> Program:
        """What every device computes and sends in one step."""
        return self.prepared.timed.program

    @property
    def time_ps(self) -> int:
        """Virtual time of one step."""
        return self.prepared.timed.timing.end_ps
