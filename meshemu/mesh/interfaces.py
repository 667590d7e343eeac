"""Where interface processors are: beside devices on outer edges of the mesh, so many to an edge of a tile."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from meshemu.errors import InputError
from meshemu.mesh.mesh import Mesh

__all__ = ["EDGES", "checked_edges", "interface_devices"]

EDGES = ("north", "east", "south", "west")


def checked_edges(edges: Sequence[str]) -> tuple[str, ...]:
    """Names of edges of the mesh. Raises InputError for one that is none, or is there twice."""
    names = (edges,) if isinstance(edges, str) else tuple(edges)
    for name in names:
        if name not in EDGES:
            raise InputError(f"ingest.edges: {name!r} is not one of {', '.join(EDGES)}")
    if len(set(names)) < len(names):
        raise InputError(f"ingest.edges: an edge is named twice in {', '.join(names)}")
    return names


def interface_devices(mesh: Mesh, edges: Sequence[str], per_edge: int) -> NDArray[np.int64]:
    """The device beside each interface processor, int64[n], edge by edge and along each from north or west.

    Those of a tile's edge are spread evenly over its devices. One beside a dead device is out of use. Raises InputError
    if none is in use.
    """
    found: list[int] = []
    for edge in edges:
        found += _beside(mesh, edge, per_edge)
    alive = [device for device in found if mesh.alive[device]]
    if not alive:
        raise InputError(f"ingest: no live device is beside one of the {len(found)} interface processors")
    return np.asarray(alive, np.int64)


def _beside(mesh: Mesh, edge: str, per_edge: int) -> list[int]:
    """The devices beside the interface processors of one edge of the mesh."""
    vertical = edge in ("east", "west")
    along = np.arange(mesh.rows if vertical else mesh.cols)
    across = {"west": 0, "east": mesh.cols - 1, "north": 0, "south": mesh.rows - 1}[edge]
    device = along * mesh.cols + across if vertical else across * mesh.cols + along
    tile = (mesh.tile_row if vertical else mesh.tile_col)[device]
    return [
        int(device[tile == number][(2 * i + 1) * int((tile == number).sum()) // (2 * per_edge)])
        for number in np.unique(tile)
        for i in range(per_edge)
    ]
