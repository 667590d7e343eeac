"""Choose the schedule of every Collective of a partitioned step."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from meshemu.collectives import Joined, Schedule, build, check_routers, joined, select
from meshemu.mesh import Mesh
from meshemu.workload.chunks import block_elements, one
from meshemu.workload.formats.storage import storage_of
from meshemu.workload.plan import Plan
from meshemu.workload.spmd import Collective, Spmd, Value

__all__ = ["choose_schedules"]


def choose_schedules(
    spmd: Spmd,
    plan: Plan,
    mesh: Mesh,
    algorithm: str,
    combine: Callable[[str, NDArray[np.int64]], NDArray[np.int64]],
) -> dict[int, Schedule]:
    """Index of each Collective instruction -> its schedule.

    algorithm: "ring", "rows_columns", "tree", "in_network", or "auto": the fastest by the contention-free model for the
    message's size. combine(number format, size_bytes) -> ps: cost of one combination. Raises InputError where the
    routers of the mesh cannot do what the algorithm needs.
    """
    built: dict[tuple[str, str, tuple[int, int], tuple[int, ...], Joined], Schedule] = {}
    result = {}
    storage = storage_of(spmd)
    for i, instruction in enumerate(spmd.instructions):
        if not isinstance(instruction, Collective):
            continue
        members, grid, absent = plan.groups(instruction.axes, instruction.stages)
        itemsize, number_format = storage.carried(instruction)
        size_of: Callable[[Value], int] = one
        if storage.mixed(instruction):
            itemsize, size_of = 1, storage.itemsize
        size_bytes = itemsize * block_elements(instruction.whole, plan, int(members[0, 0]), size_of)
        chosen = algorithm
        table = _device_grid(plan, members[0], grid, absent)
        if algorithm == "auto":
            cost = partial(combine, number_format)
            chosen = select(instruction.kind, mesh, table, size_bytes, itemsize, cost)
        check_routers(instruction.kind, chosen, mesh)
        key = (instruction.kind, chosen, grid, absent, joined(mesh, table))
        if key not in built:
            built[key] = build(instruction.kind, chosen, *grid, absent=absent, joined=key[-1])
        result[i] = built[key]
    return result


def _device_grid(
    plan: Plan, members: NDArray[np.int64], grid: tuple[int, int], absent: tuple[int, ...]
) -> NDArray[np.int64]:
    """Device ids on the group's grid, -1 where a place is absent."""
    table = np.full(grid[0] * grid[1], -1, np.int64)
    present = np.setdiff1d(np.arange(len(table)), np.asarray(absent, np.int64))
    table[present] = np.asarray(plan.devices, np.int64)[members]
    return table.reshape(grid)
