"""Where interface processors are: beside devices on outer edges of the mesh, so many to an edge of a tile."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from meshemu.errors import InputError
from meshemu.hardware.topology import EDGES, parse_edges
from meshemu.mesh.mesh import Mesh

__all__ = ["EDGES", "checked_edges", "interface_devices", "interface_numbers"]


def checked_edges(edges: Sequence[str]) -> tuple[str, ...]:
    """Names of edges of the mesh. Raises InputError for one that is none, or is there twice."""
    return parse_edges((edges,) if isinstance(edges, str) else tuple(edges), "ingest.edges")


def interface_devices(mesh: Mesh, edges: Sequence[str], per_edge: int, key: str = "ingest") -> NDArray[np.int64]:
    """The device beside each interface processor, int64[n], edge by edge and along each from north or west.

    Those of a tile's edge are spread evenly over its devices. One beside a dead device is out of use. Raises
    InputError, naming `key`, if none is in use.
    """
    found: list[int] = []
    for edge in edges:
        found += _beside(mesh, edge, per_edge)
    alive = [device for device in found if mesh.alive[device]]
    if not alive:
        raise InputError(f"{key}: no live device is beside one of the {len(found)} interface processors")
    return np.asarray(alive, np.int64)


def interface_numbers(mesh: Mesh, edges: Sequence[str], per_edge: int) -> NDArray[np.int64]:
    """The numbers of the same, int64[n]: counted over all EDGES, whichever of them are used, with those out of use."""
    first = {edge: sum(len(_beside(mesh, before, per_edge)) for before in EDGES[:i]) for i, edge in enumerate(EDGES)}
    beside = [(first[edge] + i, device) for edge in edges for i, device in enumerate(_beside(mesh, edge, per_edge))]
    return np.asarray([number for number, device in beside if mesh.alive[device]], np.int64)


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
