"""From a captured graph and a plan to everything that timing and execution start from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.collectives import Schedule
from meshemu.cost import Update, Work, combine_cost, work_ps
from meshemu.cost.interfaces import interface_rates
from meshemu.cost.memory_use import MemoryUse
from meshemu.cost.op_classes import VIEWS
from meshemu.hardware import DeviceSpec, System
from meshemu.hardware.format_roles import NONE, Formats
from meshemu.mesh import Mesh
from meshemu.mesh.interfaces import interface_devices, interface_numbers
from meshemu.program.builder import ProgramBuilder
from meshemu.program.ir import Program
from meshemu.workload.choice import choose_schedules
from meshemu.workload.emission import build_program
from meshemu.workload.graph import Graph
from meshemu.workload.ingest import add_ingest, needed_bytes, pieces_of_batch
from meshemu.workload.memory import MemoryWalk
from meshemu.workload.partitioning import partition
from meshemu.workload.plan import Plan
from meshemu.workload.spill import Spill
from meshemu.workload.spill_emission import Spilled
from meshemu.workload.spmd import Spmd
from meshemu.workload.stage_costs import OpCost, flops_and_bytes

__all__ = [
    "BuiltStep",
    "PlacedStep",
    "StepOptions",
    "build_step",
    "memory_walk",
    "op_cost",
    "place_step",
    "with_program",
]


@dataclass(frozen=True, eq=False)
class StepOptions:
    """How a step is partitioned, whatever the plan. updates: parameter name -> what its optimizer's update costs; the
    others as in `partition` and `choose_schedules`. ingest_edges: of the mesh, where batches come in, () if they do not
    have to. prefetch: modules ahead of their use for which sharded parameters are pooled. compute_threads: of a device.
    """

    updates: Mapping[str, Update]
    collective: str
    bucket_bytes: int
    micro_batches: int = 1
    strict: bool = False
    clip_norm: float | None = None
    formats: Formats = NONE
    ingest_edges: tuple[str, ...] = ()
    prefetch: int = 1
    compute_threads: int = 1


@dataclass(frozen=True, eq=False)
class PlacedStep:
    """One step partitioned under one plan: what its devices hold is known, its Program is not built yet. spilled: what
    leaves their memory for a while.
    """

    plan: Plan
    spmd: Spmd
    schedules: Mapping[int, Schedule]
    memory: MemoryUse
    spilled: Spilled | None = None


@dataclass(frozen=True, eq=False)
class BuiltStep:
    """One step under one plan, with its Program."""

    plan: Plan
    spmd: Spmd
    schedules: Mapping[int, Schedule]
    program: Program
    memory: MemoryUse

    @property
    def peak_memory_bytes(self) -> NDArray[np.int64]:
        """The most that each device holds, int64[n_devices]."""
        return self.memory.total_bytes


def build_step(graph: Graph, plan: Plan, mesh: Mesh, system: System, options: StepOptions) -> BuiltStep:
    """As `place_step`, and build the Program."""
    return with_program(place_step(graph, plan, mesh, system, options), mesh, system, options)


def with_program(placed: PlacedStep, mesh: Mesh, system: System, options: StepOptions) -> BuiltStep:
    """A step with its Program. options: those that it was placed with. Raises InputError if batches cannot come in."""

    def ingest(builder: ProgramBuilder) -> None:
        if options.ingest_edges:
            interface_rates(system)
            where = mesh, options.ingest_edges, system.figure("interface.per_edge").number
            beside = interface_devices(*where)
            pieces = pieces_of_batch(needed_bytes(placed.spmd, placed.plan), beside, mesh)
            add_ingest(builder, pieces, beside, interface_numbers(*where))

    program = build_program(
        placed.spmd,
        placed.plan,
        mesh.n_devices,
        placed.schedules,
        options.updates,
        options.prefetch,
        ingest,
        options.compute_threads,
        placed.spilled,
    )
    return BuiltStep(placed.plan, placed.spmd, placed.schedules, program, placed.memory)


def place_step(graph: Graph, plan: Plan, mesh: Mesh, system: System, options: StepOptions) -> PlacedStep:
    """Partition `graph`, choose its schedules and count its memory. Raises as `partition` does."""
    spmd = partition(
        graph,
        plan,
        options.bucket_bytes,
        micro_batches=options.micro_batches,
        strict=options.strict,
        clip_norm=options.clip_norm,
        formats=options.formats,
        op_cost=op_cost(system.device, plan.n_positions // plan.n_stages),
    )

    def combine(number_format: str, size_bytes: NDArray[np.int64]) -> NDArray[np.int64]:
        return combine_cost(system.device, number_format)(size_bytes)

    schedules = choose_schedules(spmd, plan, mesh, options.collective, combine)
    memory = memory_walk(spmd, plan, schedules, options).use(mesh.n_devices)
    return PlacedStep(plan, spmd, schedules, memory)


def memory_walk(
    spmd: Spmd, plan: Plan, schedules: Mapping[int, Schedule], options: StepOptions, spills: Sequence[Spill] = ()
) -> MemoryWalk:
    """What devices hold over a step."""
    states = {name: update.n_states for name, update in options.updates.items()}
    rounded = {n: sum(u.state_itemsizes) for n, u in options.updates.items() if u.state_itemsizes is not None}
    return MemoryWalk(
        spmd,
        plan,
        states,
        VIEWS,
        rounded,
        schedules,
        options.prefetch,
        options.compute_threads,
        bool(options.ingest_edges),
        spills,
    )


def op_cost(device: DeviceSpec | None, n_devices: int) -> OpCost:
    """The time in ps of an operator whose work the devices of a stage share evenly.

    That is what it is for operators on activations; one that reads a whole weight on every device takes a little more.
    """
    if device is None:
        return flops_and_bytes
    spec = device

    def cost(op_class: str, number_format: str, work: Work) -> int:
        flops, read, write = (-(-amount // n_devices) for amount in (work.flops, work.read_bytes, work.write_bytes))
        return work_ps(spec, op_class, number_format, Work(flops, read, write))

    return cost
