"""Which way round a message goes along a row or column that is a ring.

The way with the least latency; of two with the same, the one with fewer hops; of two with as many, devices in even
columns go east and those in odd columns west, devices in even rows north and those in odd rows south, so that traffic
to the opposite side loads all links of a ring alike. The next hop of a message so depends on where it is and where it
goes, not on where it comes from.
"""

import numpy as np
from numpy.typing import NDArray

from meshemu.mesh.mesh import EAST, NORTH, SOUTH, WEST, Mesh

__all__ = ["forwards", "grid_distance"]

_LARGEST_PS = 2**60


def forwards(mesh: Mesh, *, along_row: bool) -> NDArray[np.bool_]:
    """Whether a message goes east along a row, or south along a column, bool[n, n] by its place on the line and the
    place that it goes to.
    """
    ahead, behind = (EAST, WEST) if along_row else (SOUTH, NORTH)
    n = mesh.cols if along_row else mesh.rows
    here, there = np.arange(n)[:, None], np.arange(n)
    onward, back = _latency_ps(mesh, ahead), _latency_ps(mesh, behind)
    # Link i ahead joins place i to i + 1, link i behind place i to i - 1: sums of those on the way.
    onward_ps = _between(np.concatenate([[0], np.cumsum(onward)]), here, there)
    back_ps = _between(np.concatenate([[0], np.cumsum(np.roll(back, -1))]), there, here)
    onward_hops, back_hops = (there - here) % n, (here - there) % n
    by_turns = here % 2 == (0 if along_row else 1)
    fewer = (onward_hops < back_hops) | ((onward_hops == back_hops) & by_turns)
    return np.asarray((onward_ps < back_ps) | ((onward_ps == back_ps) & fewer))


def grid_distance(mesh: Mesh, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """Hops between devices of a mesh without faults, each dimension the shorter way round; broadcasts."""
    total = np.zeros(np.broadcast_shapes(one.shape, other.shape), np.int64)
    for line, n, is_ring in ((mesh.row, mesh.rows, mesh.column_rings), (mesh.col, mesh.cols, mesh.row_rings)):
        apart = np.abs(line[one].astype(np.int64) - line[other])
        total += np.minimum(apart, n - apart) if is_ring else apart
    return total


def _latency_ps(mesh: Mesh, direction: int) -> NDArray[np.int64]:
    """Latency of the links that leave each place of a line in one direction, which all lines have alike; 0 where no
    line has one.
    """
    links = mesh.out_link[:, direction].reshape(mesh.rows, mesh.cols)
    lines = links if direction in (EAST, WEST) else links.T
    first = np.argmax(lines >= 0, axis=0)
    link = lines[first, np.arange(lines.shape[1])]
    latency = np.where(link >= 0, mesh.latency_ps[link], 0)
    return np.minimum(latency, _LARGEST_PS // len(latency))


def _between(before: NDArray[np.int64], start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
    """Latency from a place of a ring on to another; before: int64[n + 1], from place 0 to each and around."""
    return np.asarray(np.where(end >= start, before[end] - before[start], before[-1] - before[start] + before[end]))
