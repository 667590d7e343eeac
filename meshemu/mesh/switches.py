r"""Devices behind switches: a tree of switches in place of links between neighbours.

    device device ... device device     vertices 0 .. n_devices - 1
        \   |           |   /           one link up and one down for each
        switch         switch           vertices n_devices .., the units of a level in row-major order
             \         /
               switch                   the whole system

A message goes up to the first switch that is above both ends, and down. The switches themselves never hold it up:
they are taken to be non-blocking.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Switches", "switch_tree", "tree_routes"]


@dataclass(frozen=True, eq=False)
class Switches:
    """Arrays over all vertices, devices first: int32[n_vertices] each.

    parent: the switch above, -1 for the topmost. level: 0 for a device, how many levels of units a switch is above it
    else. home: the device in the north-west corner of what is below; the rank that emulates it emulates the switch. up,
    down: the link to the switch above and that from it, -1 where there is none (at the top, at dead devices).
    """

    parent: NDArray[np.int32]
    level: NDArray[np.int32]
    home: NDArray[np.int32]
    up: NDArray[np.int32]
    down: NDArray[np.int32]


def switch_tree(rows: int, cols: int, alive: NDArray[np.bool_], units: list[tuple[int, int]]) -> Switches:
    """The tree above a grid of rows x cols devices; links are numbered upwards ones first, each by their lower end.

    alive: bool[n_devices]. units: (rows, cols) in devices of the units of each level, the device itself, (1, 1), first.
    A level with one unit has no switch above it but those of the levels inside.
    """
    row, col = np.divmod(np.arange(rows * cols), cols)
    parents, levels, homes = [], [], []
    first, at = 0, np.arange(rows * cols)  # number of the first unit of a level; unit of each device
    for level, (unit_rows, unit_cols) in enumerate([*units[1:], (rows, cols)]):
        corners = np.unique(at, return_index=True)[1]
        levels.append(np.full(len(corners), level))
        homes.append(corners)
        if len(corners) == 1:
            parents.append(np.full(1, -1))
            break
        across = cols // unit_cols
        at = row // unit_rows * across + col // unit_cols
        parents.append(first + len(corners) + at[corners])
        first += len(corners)
    else:
        parents.append(np.full(1, -1))
        levels.append(np.full(1, len(units)))
        homes.append(np.zeros(1, np.int64))
    parent, level_of, home = (np.concatenate(parts).astype(np.int32) for parts in (parents, levels, homes))
    linked = parent >= 0
    linked[: rows * cols] &= alive
    up, down = np.full((2, len(parent)), -1, np.int32)
    up[linked] = np.arange(np.count_nonzero(linked))
    down[linked] = np.count_nonzero(linked) + up[linked]
    return Switches(parent, level_of, home, up, down)


def tree_routes(tree: Switches, src: NDArray[np.int32], dst: NDArray[np.int32]) -> list[NDArray[np.int32]]:
    """Links of each route as columns int32[n_routes], in order; -1 where a route does without."""
    here, there = src.astype(np.int64), dst.astype(np.int64)
    ups, downs = [], []
    while (apart := here != there).any():
        ups.append(np.where(apart, tree.up[here], -1).astype(np.int32))
        downs.append(np.where(apart, tree.down[there], -1).astype(np.int32))
        here, there = (np.where(apart, tree.parent[end], end) for end in (here, there))
    return [*ups, *reversed(downs)]
