"""From a captured graph and a plan to everything that timing and execution start from."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.collectives import Schedule
from meshemu.cost import Update, combine_cost
from meshemu.cost.op_classes import VIEWS
from meshemu.hardware import System
from meshemu.mesh import Mesh
from meshemu.program.ir import Program
from meshemu.workload.choice import choose_schedules
from meshemu.workload.emission import build_program
from meshemu.workload.graph import Graph
from meshemu.workload.memory import peak_memory_bytes
from meshemu.workload.partitioning import partition
from meshemu.workload.plan import Plan
from meshemu.workload.spmd import Spmd

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
    )

    def combine(number_format: str, size_bytes: NDArray[np.int64]) -> NDArray[np.int64]:
        return combine_cost(system.device, number_format)(size_bytes)

    schedules = choose_schedules(spmd, plan, mesh, options.collective, combine)
    program = build_program(spmd, plan, mesh.n_devices, schedules, options.updates)
    states = {name: update.n_states for name, update in options.updates.items()}
    memory = peak_memory_bytes(spmd, plan, mesh.n_devices, states, VIEWS)
    return BuiltStep(plan, spmd, schedules, program, memory)
