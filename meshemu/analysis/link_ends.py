"""Where links go in a picture of the devices on their grid, in (col, row): between neighbours, or to bars.

A switch is a bar: beside the column of devices that it joins, or above the grid where it joins other switches.
"""

import numpy as np
from numpy.typing import NDArray

from meshemu.mesh import Mesh

__all__ = ["BESIDE", "link_ends", "room_for_switches", "switch_bars"]

Floats = NDArray[np.float64]

BESIDE = 0.5  # from the middle of a device to the bar of its switch
_ABOVE = 0.75  # from the first row to a bar above the grid


def link_ends(mesh: Mesh, links: NDArray[np.int64], device_half: float) -> Floats:
    """Begin and end of each link, float[n, 2, 2]: middles of devices, or, where switches join them, from the edge of a
    device (device_half from its middle) to the bar.
    """
    if mesh.switches is None:
        centres = np.column_stack([mesh.col, mesh.row]).astype(float)
        return np.stack([centres[mesh.link_src[links]], centres[mesh.link_dst[links]]], axis=1)
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


def room_for_switches(mesh: Mesh) -> tuple[float, float]:
    """What bars need above the grid and, for the links to them, to its right."""
    return (0.4, 0.15) if mesh.switches is not None and mesh.switches.level.max() > 1 else (0.0, 0.0)


def _to_bar(mesh: Mesh, lower: int, device_half: float) -> Floats:
    """From a device or bar up to the bar above it: two points."""
    assert mesh.switches is not None
    home = mesh.switches.home[lower]
    col, row = float(mesh.col[home]), float(mesh.row[home])
    if lower < mesh.n_devices:
        return np.array([(col + device_half, row), (col + BESIDE, row)])
    return np.array([(col + BESIDE, row - device_half), (col + BESIDE, row - _ABOVE)])
