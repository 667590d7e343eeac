"""Choose the algorithm of a collective: the cheapest by the closed forms, on the mesh at hand."""

import numpy as np
from numpy.typing import ArrayLike

from meshemu.collectives.build import ALGORITHMS, check_kind
from meshemu.collectives.group import Group, group_of
from meshemu.collectives.in_network import lacking
from meshemu.collectives.joined import joined
from meshemu.collectives.model import closed_form_ps
from meshemu.collectives.recurrence import Combine
from meshemu.mesh import Mesh

__all__ = ["MOST_TRANSFERS", "feasible", "n_transfers", "select"]

MOST_TRANSFERS = 4_000_000
"""Schedules above this number of transfers are chosen only if every algorithm is above it."""


def select(
    kind: str, mesh: Mesh, device_grid: ArrayLike, size_bytes: int, itemsize: int, combine: Combine, *, root: int = 0
) -> str:
    """Return the name of the algorithm with the least closed-form time; of equals, the first of ALGORITHMS.

    in_network takes part only if the routers of the mesh can do it.
    device_grid: int[rows, cols] device ids, -1 where none takes part. combine: sizes in bytes -> ps of one
    combination. No schedule is built. Raises InputError as `closed_form_ps` does.
    """
    check_kind(kind)
    grid = np.asarray(device_grid, np.int64)
    names = feasible(kind, mesh, grid)
    if len(names) == 1:
        return names[0]
    return min(names, key=lambda name: closed_form_ps(kind, name, mesh, grid, size_bytes, itemsize, combine, root=root))


def feasible(kind: str, mesh: Mesh, device_grid: ArrayLike) -> list[str]:
    """Names of the algorithms that can do a collective on this grid in no more than MOST_TRANSFERS, if any can."""
    members = group_of(np.asarray(device_grid, np.int64), joined=joined(mesh, device_grid))
    names = [name for name in ALGORITHMS if members.full or name != "rows_columns"]
    if not members.full and not _connected(members):
        names.remove("tree")
    if lacking(kind, mesh):
        names.remove("in_network")
    limit = max(MOST_TRANSFERS, min(n_transfers(kind, name, members) for name in names))
    return [name for name in names if n_transfers(kind, name, members) <= limit]


def n_transfers(kind: str, algorithm: str, members: Group) -> int:
    """Return how many transfers a schedule has with its default number of chunks."""
    n = members.size
    chunks = ALGORITHMS[algorithm].default_chunks(kind, members)
    if kind in ("broadcast", "reduce"):
        return (n - 1) * chunks
    rounds = 2 if kind == "all_reduce" else 1
    if algorithm == "rows_columns":
        return rounds * n * (members.rows + members.cols - 2)
    return rounds * (n - 1) * chunks


def _connected(members: Group) -> bool:
    """Whether the grid neighbours among the participants link all of them."""
    cols, reached, front = members.cols, set[int](), [int(members.position[0])]
    present = set(members.position.tolist())
    while front:
        position = front.pop()
        if position in reached or position not in present:
            continue
        reached.add(position)
        col = position % cols
        front += [position - cols, position + cols]
        front += ([position - 1] if col else []) + ([position + 1] if col < cols - 1 else [])
    return len(reached) == members.size
