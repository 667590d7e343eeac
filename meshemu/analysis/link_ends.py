"""Where links go in a picture of the devices on their grid, in (col, row): to a neighbour, off the grid, or to a bar.

A switch is a bar: beside the column of devices that it joins, or above the grid where it joins other switches. A link
around the mesh goes off the grid at its first end.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from meshemu.mesh import Mesh

__all__ = ["BESIDE", "Room", "link_ends", "room_beside", "switch_bars"]

Floats = NDArray[np.float64]

BESIDE = 0.5  # from the middle of a device to the bar of its switch
_ABOVE = 0.75  # from the first row to a bar above the grid
_AROUND = 0.3  # what a link off the grid needs


class Room(NamedTuple):
    """What the picture needs beside the grid and its margin."""

    left: float = 0.0
    right: float = 0.0
    upper: float = 0.0
    lower: float = 0.0


def link_ends(mesh: Mesh, links: NDArray[np.int64], device_half: float) -> Floats:
    """Begin and end of each link, float[n, 2, 2]: middles of devices, or, where switches join them, from the edge of a
    device (device_half from its middle) to the bar.
    """
    if mesh.switches is None:
        centres = np.column_stack([mesh.col, mesh.row]).astype(float)
        start, end = centres[mesh.link_src[links]], centres[mesh.link_dst[links]]
        around = mesh.wrap_around[links, None]
        return np.stack([start, np.where(around, start - np.sign(end - start), end)], axis=1)
    pairs = zip(mesh.link_src[links].tolist(), mesh.link_dst[links].tolist(), strict=True)
    return np.array([_to_bar(mesh, min(pair), device_half)[:: 1 if pair[0] < pair[1] else -1] for pair in pairs])


def switch_bars(mesh: Mesh) -> list[Floats]:
    """Both ends of the bar of every switch, float[2, 2] each."""
    if mesh.switches is None:
        return []
    bars = []
    for switch in range(mesh.n_devices, mesh.n_vertices):
        met = np.array([_to_bar(mesh, int(lower), 0.0)[1] for lower in np.flatnonzero(mesh.switches.parent == switch)])
        bars.append(np.stack([met.min(axis=0), met.max(axis=0)]))
    return bars


def room_beside(mesh: Mesh) -> Room:
    """What bars need above the grid and, for the links to them, to its right; what links off the grid need."""
    if mesh.switches is not None and mesh.switches.level.max() > 1:
        return Room(right=0.15, upper=0.4)
    beside, above = _AROUND * mesh.row_rings, _AROUND * mesh.column_rings
    return Room(beside, beside, above, above)


def _to_bar(mesh: Mesh, lower: int, device_half: float) -> Floats:
    """From a device or bar up to the bar above it: two points."""
    assert mesh.switches is not None
    home = mesh.switches.home[lower]
    col, row = float(mesh.col[home]), float(mesh.row[home])
    if lower < mesh.n_devices:
        return np.array([(col + device_half, row), (col + BESIDE, row)])
    return np.array([(col + BESIDE, row - device_half), (col + BESIDE, row - _ABOVE)])
