"""`[memory] when_full = "spill"`: what devices have no room for waits in the memory of interface processors."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from meshemu.cost.interfaces import interfaces_of
from meshemu.cost.op_classes import VIEWS
from meshemu.emulator.build_step import PlacedStep, StepOptions, memory_walk
from meshemu.emulator.memory_policy import MemoryOptions, capacity_bytes
from meshemu.errors import InputError, PlanError
from meshemu.hardware import System
from meshemu.mesh import Mesh
from meshemu.mesh.interfaces import interface_devices, interface_numbers
from meshemu.units import format_bytes
from meshemu.workload.formats.storage import storage_of
from meshemu.workload.memory import block_bytes
from meshemu.workload.plan import Plan
from meshemu.workload.spill import Spill, blocks_of, choose_spills, idle_times
from meshemu.workload.spill_emission import Spilled

__all__ = ["check_spilling", "spilling"]

Ints = NDArray[np.int64]


def check_spilling(system: System) -> None:
    """Raise InputError for a system without interface processors that devices could use."""
    if interfaces_of(system) is None:
        raise InputError(
            f"memory.when_full = spill: no interface processors beside {system.devices}s are known of {system.name}; "
            "use refuse, recompute or allow"
        )


def spilling(
    step: PlacedStep, mesh: Mesh, system: System, settings: StepOptions, options: MemoryOptions
) -> tuple[PlacedStep, str]:
    """`step` with blocks that leave while they are idle, and what was done, in words; it may still not fit.

    Raises InputError for a system without interface processors in use, PlanError where these have no room either.
    """
    check_spilling(system)
    walk = memory_walk(step.spmd, step.plan, step.schedules, settings)
    blocks = [block for block in blocks_of(step.spmd, VIEWS) if walk.spillable(block.value)]
    idle = list(idle_times(step.spmd, blocks, VIEWS, options.spill_ahead))
    storage = storage_of(step.spmd)
    size = [block_bytes(one.block.value, step.plan, storage) for one in idle]
    spills = tuple(choose_spills(walk.totals(), size, idle, capacity_bytes(system) or 0))
    per_edge = system.figure("interface.per_edge").number
    beside = interface_devices(mesh, options.edges, per_edge, "memory.when_full = spill")
    number = interface_numbers(mesh, options.edges, per_edge)
    interface = _nearest(step.plan, mesh, beside)
    leaving = [block_bytes(spill.idle.block.value, step.plan, storage) * spill.where for spill in spills]
    held = _most_held(spills, leaving, interface, len(beside))
    _check_room(held, number, beside, mesh, system)
    memory = memory_walk(step.spmd, step.plan, step.schedules, settings, spills).use(mesh.n_devices)
    of_devices = sum(leaving, np.zeros(step.plan.n_positions, np.int64))
    words = (
        f"{len(spills)} blocks, at most {format_bytes(int(of_devices.max(initial=0)))} of a device and "
        f"{format_bytes(int(of_devices.sum()))} in all, wait in the memory of interface processors while they are idle"
    )
    return replace(step, memory=memory, spilled=Spilled(spills, number[interface], beside[interface])), words


def _nearest(plan: Plan, mesh: Mesh, beside: Ints) -> Ints:
    """The interface processor with the fewest hops from each position's device, the first of several."""
    device = np.asarray(plan.devices, np.int64)
    rows = np.abs(mesh.row[device][:, None].astype(np.int64) - mesh.row[beside])
    cols = np.abs(mesh.col[device][:, None].astype(np.int64) - mesh.col[beside])
    return np.asarray((rows + cols).argmin(axis=1), np.int64)


def _most_held(spills: tuple[Spill, ...], leaving: list[Ints], interface: Ints, n_interfaces: int) -> Ints:
    """The most bytes that wait at each interface processor at a time: each block takes room there while it is idle."""
    events = sorted(
        [(spill.idle.after, 1, i) for i, spill in enumerate(spills)]
        + [(spill.idle.before, -1, i) for i, spill in enumerate(spills)]
    )
    held, most = np.zeros((2, n_interfaces), np.int64)
    for _, change, i in events:
        np.add.at(held, interface, change * leaving[i])
        most = np.maximum(most, held)
    return most


def _check_room(most: Ints, number: Ints, beside: Ints, mesh: Mesh, system: System) -> None:
    """Refuse what would fill the memory of an interface processor."""
    capacity = system.figure("interface.memory").number
    fullest = int(most.argmax())
    if most[fullest] > capacity:
        raise PlanError(
            f"memory: interface processor {number[fullest]}, beside {mesh.place(int(beside[fullest]))}, needs "
            f"{format_bytes(int(most[fullest]))} of {format_bytes(capacity)} for what devices have no room for; use "
            "more edges (ingest.edges), a smaller batch or memory.when_full = recompute"
        )
