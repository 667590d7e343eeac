"""From a module to a timed step: capture, partition, choose schedules, build the Program, time it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meshemu.collectives import Schedule
from meshemu.comm import Comm
from meshemu.cost import combine_cost
from meshemu.cost.op_classes import OPTIMIZERS, VIEWS
from meshemu.emulator.timed_step import TimedStep, TimingOptions, time_step
from meshemu.execute.blocks import Host
from meshemu.execute.executor import Executor
from meshemu.execute.optimizer import Optimizer, op_class_of
from meshemu.execute.training import Module
from meshemu.hardware import System
from meshemu.mesh import flatten, regions
from meshemu.workload.capture import StepFunction, capture
from meshemu.workload.choice import choose_schedules
from meshemu.workload.emission import build_program
from meshemu.workload.memory import peak_memory_bytes
from meshemu.workload.partitioning import partition
from meshemu.workload.placement import make_plan
from meshemu.workload.plan import Plan
from meshemu.workload.spmd import Spmd

__all__ = ["PreparedStep", "prepare"]


@dataclass(frozen=True, eq=False)
class PreparedStep:
    """One training step, partitioned and timed: what the executor, the recorder and the reports start from."""

    plan: Plan
    spmd: Spmd
    schedules: Mapping[int, Schedule]
    timed: TimedStep

    def executor(self, comm: Comm) -> Executor:
        """The executor of this rank's devices."""
        rank_of_device = regions(self.timed.mesh.rows, self.timed.mesh.cols, comm.size)
        rank_of_position = rank_of_device[np.asarray(self.plan.devices)].astype(np.int64)
        return Executor(self.spmd, Host(self.plan, comm.rank, rank_of_position), self.schedules, comm)


def prepare(
    model: Module,
    batch: Any,
    step: StepFunction,
    *,
    system: System,
    plan: str | Mapping[str, Any],
    optimizer: Optimizer | None,
    options: TimingOptions,
    comm: Comm,
) -> PreparedStep:
    """Capture and partition one step of `model` on a global `batch`, and time it on `system`.

    Raises InputError (or a subclass) for anything that does not fit, before any maths runs.
    """
    mesh = flatten(system)
    regions(mesh.rows, mesh.cols, comm.size)  # refuses more ranks than devices before the work of capturing
    placed = make_plan(plan, mesh)
    spmd = partition(capture(model, batch, step), placed, options.bucket_bytes)

    def combine(number_format: str, size_bytes: NDArray[np.int64]) -> NDArray[np.int64]:
        return combine_cost(system.device, number_format)(size_bytes)

    schedules = choose_schedules(spmd, placed, mesh, options.collective, combine)
    op_class = op_class_of(optimizer)
    program = build_program(spmd, placed, mesh.n_devices, schedules, op_class)
    state_tensors = 0 if op_class is None else OPTIMIZERS[op_class][2]
    memory = peak_memory_bytes(spmd, placed, mesh.n_devices, state_tensors, VIEWS)
    return PreparedStep(placed, spmd, schedules, time_step(program, system, memory, options, comm))
