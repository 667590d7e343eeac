"""From a captured graph and a plan to everything that timing and execution start from."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.collectives import Schedule
from meshemu.cost import Update, Work, combine_cost, work_ps
from meshemu.cost.op_classes import VIEWS
from meshemu.hardware import DeviceSpec, System
from meshemu.hardware.format_roles import NONE, Formats
from meshemu.mesh import Mesh
from meshemu.program.ir import Program
from meshemu.workload.choice import choose_schedules
from meshemu.workload.emission import build_program
from meshemu.workload.graph import Graph
from meshemu.workload.memory import peak_memory_bytes
from meshemu.workload.partitioning import partition
from meshemu.workload.plan import Plan
from meshemu.workload.spmd import Spmd
from meshemu.workload.stage_costs import OpCost, flops_and_bytes

__all__ = ["BuiltStep", "StepOptions", "build_step"]


@dataclass(frozen=True, eq=False)
class StepOptions:
    """How a step is partitioned, whatever the plan. updates: parameter name -> what its optimizer's update costs; the
    others as in `partition` and `choose_schedules`.
    """

    updates: Mapping[str, Update]
    collective: str
    bucket_bytes: int
    micro_batches: int = 1
    strict: bool = False
    clip_norm: float | None = None
    formats: Formats = NONE


@dataclass(frozen=True, eq=False)
class BuiltStep:
    """One step under one plan. peak_memory_bytes: int64[n_devices]."""

    plan: Plan
    spmd: Spmd
    schedules: Mapping[int, Schedule]
    program: Program
    peak_memory_bytes: NDArray[np.int64]


def build_step(graph: Graph, plan: Plan, mesh: Mesh, system: System, options: StepOptions) -> BuiltStep:
    """Partition `graph`, choose its schedules, build its Program and count its memory. Raises as `partition` does."""
    spmd = partition(
        graph,
        plan,
        options.bucket_bytes,
        micro_batches=options.micro_batches,
        strict=options.strict,
        clip_norm=options.clip_norm,
        formats=options.formats,
        op_cost=_op_cost(system.device, plan.n_positions // plan.n_stages),
    )

    def combine(number_format: str, size_bytes: NDArray[np.int64]) -> NDArray[np.int64]:
        return combine_cost(system.device, number_format)(size_bytes)

    schedules = choose_schedules(spmd, plan, mesh, options.collective, combine)
    program = build_program(spmd, plan, mesh.n_devices, schedules, options.updates)
    states = {name: update.n_states for name, update in options.updates.items()}
    rounded = {n: sum(u.state_itemsizes) for n, u in options.updates.items() if u.state_itemsizes is not None}
    memory = peak_memory_bytes(spmd, plan, mesh.n_devices, states, VIEWS, rounded)
    return BuiltStep(plan, spmd, schedules, program, memory)


def _op_cost(device: DeviceSpec | None, n_devices: int) -> OpCost:
    """The time in ps of an operator whose work the devices of a stage share evenly.

    That is what it is for operators on activations; one that reads a whole weight on every device takes a little more.
    """
    if device is None:
        return flops_and_bytes
    spec = device

    def cost(op_class: str, number_format: str, work: Work) -> int:
        shares = (-(-amount // n_devices) for amount in (work.flops, work.read_bytes, work.write_bytes))
        return work_ps(spec, op_class, number_format, Work(*shares))

    return cost
