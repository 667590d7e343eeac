"""From a module to a timed step: capture, partition, choose schedules, build the Program, time it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from meshemu.collectives import Schedule
from meshemu.comm import Comm
from meshemu.emulator.auto_plan import choose_plan
from meshemu.emulator.build_step import StepOptions, build_step
from meshemu.emulator.timed_step import TimedStep, TimingOptions, time_step
from meshemu.execute.blocks import Host
from meshemu.execute.executor import Executor
from meshemu.execute.optimizer import Optimizer, updates_of
from meshemu.execute.training import DType, Module
from meshemu.hardware import System
from meshemu.mesh import flatten, regions
from meshemu.network import Timing
from meshemu.program.ir import Program
from meshemu.units import format_bytes
from meshemu.workload.candidates import candidates
from meshemu.workload.capture import StepFunction, capture
from meshemu.workload.placement import make_plan
from meshemu.workload.plan import PIPELINE, Plan
from meshemu.workload.samples import first_samples, with_micro_batches
from meshemu.workload.spmd import Gathered, Spmd

__all__ = ["OfPreparedStep", "PreparedStep", "prepare"]


@dataclass(frozen=True, eq=False)
class PreparedStep:
    """One training step, partitioned and timed: what the executor, the recorder and the reports start from.

    reason: why this plan, where it was chosen by `plan = "auto"`.
    """

    plan: Plan
    spmd: Spmd
    schedules: Mapping[int, Schedule]
    timed: TimedStep
    reason: str = ""

    @property
    def gathered(self) -> tuple[Gathered, ...]:
        """Operators that were computed on whole inputs, since no sharding rule fits theirs."""
        return self.spmd.gathered

    @property
    def remarks(self) -> tuple[str, ...]:
        """The plan, why it was chosen if it was, and what was gathered for want of a rule: one sentence each."""
        why = f", chosen: {self.reason}" if self.reason else ""
        gathers = (
            f"gathered: {g.op} in {g.module or 'the loss'} has no sharding rule for its inputs; all devices compute it "
            f"on whole ones ({format_bytes(g.size_bytes)} of cut inputs)"
            for g in self.gathered
        )
        return (f"plan: {self.plan.describe()}{why}", *gathers)

    def executor(self, comm: Comm) -> Executor:
        """The executor of this rank's devices."""
        rank_of_device = regions(self.timed.mesh.rows, self.timed.mesh.cols, comm.size)
        rank_of_position = rank_of_device[np.asarray(self.plan.devices)].astype(np.int64)
        return Executor(self.spmd, Host(self.plan, comm.rank, rank_of_position), self.schedules, comm)


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


def prepare(
    model: Module,
    batch: Any,
    step: StepFunction,
    *,
    system: System,
    plan: str | Mapping[str, Any],
    options: TimingOptions,
    comm: Comm,
    optimizer: Optimizer | None = None,
    gradients: bool = True,
    clip_norm: float | None = None,
    autocast_dtype: DType | None = None,
    micro_batches: int = 1,
    strict: bool = False,
) -> PreparedStep:
    """Capture and partition one step of `model` on a global `batch`, and time it on `system`.

    plan: as for `make_plan`, or "auto". gradients: False for a step of evaluation, which passes through a pipeline as
    one micro-batch. clip_norm, autocast_dtype, micro_batches, strict: as in `partition` and `capture`.

    Raises InputError (or a subclass) for anything that does not fit, before any maths runs.
    """
    mesh = flatten(system)
    regions(mesh.rows, mesh.cols, comm.size)  # refuses more ranks than devices before the work of capturing
    placed = None if plan == "auto" else make_plan(plan, mesh)
    if placed is not None and placed.has(PIPELINE):
        placed = with_micro_batches(placed, batch, micro_batches) if gradients else replace(placed, micro_batches=1)
        micro_batches = placed.micro_batches or 1
    part = first_samples(batch, micro_batches)
    graph = capture(model, part, step, gradients=gradients, autocast_dtype=autocast_dtype)
    settings = StepOptions(
        updates_of(model, optimizer), options.collective, options.bucket_bytes, micro_batches, strict, clip_norm
    )
    reason = ""
    if placed is not None:
        built = build_step(graph, placed, mesh, system, settings)
    else:
        built, reason = choose_plan(
            candidates(graph, mesh),
            lambda tried: build_step(graph, tried, mesh, system, settings),
            mesh,
            system,
            options,
            comm,
        )
    timed = time_step(built.program, system, built.peak_memory_bytes, options, comm)
    return PreparedStep(built.plan, built.spmd, built.schedules, timed, reason)
