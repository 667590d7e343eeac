"""How the devices of a group are joined, beside links between neighbours on its grid."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meshemu.mesh import EAST, NORTH, SOUTH, WEST, Mesh

__all__ = ["NEIGHBOURS", "Joined", "joined"]


@dataclass(frozen=True)
class Joined:
    """switched: whether switches join the positions, those of a column first, so that neighbours on the grid are no
    nearer than others of the column. column_rings, row_rings: whether links lead on from the last position of a column
    (of a row) to the first, no slower than those between them.
    """

    switched: bool = False
    column_rings: bool = False
    row_rings: bool = False


NEIGHBOURS = Joined()
"""By links between neighbours alone."""


def joined(mesh: Mesh, devices: ArrayLike) -> Joined:
    """How a mesh joins a grid of its devices, int[rows, cols] with -1 where none takes part."""
    grid = np.asarray(devices, np.int64)
    if not (mesh.column_rings or mesh.row_rings) or grid.ndim != 2:
        return Joined(switched=mesh.switches is not None)
    return Joined(column_rings=_closes(mesh, grid.T), row_rings=_closes(mesh, grid))


def _closes(mesh: Mesh, lines: NDArray[np.int64]) -> bool:
    """Whether every line goes once around the mesh in equal steps, over links as fast as its slowest."""
    place = np.broadcast_to(np.arange(lines.shape[1]), lines.shape)
    here = lines >= 0
    return any(
        is_ring
        and n % lines.shape[1] == 0
        and _in_steps(along, across, lines, place, here, n // lines.shape[1])
        and _as_fast(mesh, directions)
        for along, across, n, is_ring, directions in (
            (mesh.col, mesh.row, mesh.cols, mesh.row_rings, (EAST, WEST)),
            (mesh.row, mesh.col, mesh.rows, mesh.column_rings, (NORTH, SOUTH)),
        )
    )


def _as_fast(mesh: Mesh, directions: tuple[int, int]) -> bool:
    """Whether the links around the mesh in these directions are no slower than the slowest of the others."""
    links = mesh.out_link[:, directions]
    links = links[links >= 0]
    around = mesh.wrap_around[links]
    rates = mesh.bandwidth_bytes_per_s[links]
    return bool(around.any() and (around.all() or rates[around].min() >= rates[~around].min()))


def _in_steps(
    along: NDArray[np.int32], across: NDArray[np.int32], lines: NDArray[np.int64], place: NDArray[np.int64],
    here: NDArray[np.bool_], step: int,
) -> bool:
    """Whether devices of a line are `step` apart in one coordinate, and alike in the other."""
    first = np.argmax(here, axis=1)[:, None]
    coordinates = (along[lines] - step * place, across[lines])
    return all(bool(((of == np.take_along_axis(of, first, 1)) | ~here).all()) for of in coordinates)
