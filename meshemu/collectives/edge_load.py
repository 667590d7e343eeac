"""How much the busiest edge of a group carries when every participant's chunk has a tree of its own."""

import numpy as np
from numpy.typing import NDArray

from meshemu.collectives.recurrence import edges
from meshemu.mesh import Mesh

__all__ = ["busiest_edge_ps"]


def busiest_edge_ps(mesh: Mesh, grid: NDArray[np.int64], chunk_bytes: int) -> int:
    """Return the longest serialisation of all chunks that cross one edge, on trees that follow rows first to the owner.

    grid: device ids, int[rows, cols], -1 absent; its transpose gives trees that follow columns first. Eastward out of
    column c go the chunks of all owners further east, rows (cols - 1 - c) of them; southward out of row r those of the
    rows - 1 - r owners further south in the column. Trees that lead away from the owner load the opposite edges so.
    """
    longest = 0
    for lines, owners in ((grid, len(grid)), (grid[:, ::-1], len(grid)), (grid.T, 1), (grid.T[:, ::-1], 1)):
        chunks = np.broadcast_to(owners * np.arange(lines.shape[1] - 1, 0, -1), lines[:, 1:].shape)
        here, there = lines[:, :-1], lines[:, 1:]
        both = (here >= 0) & (there >= 0)
        work = chunks[both] * edges(mesh, here[both], there[both]).serialisation_ps(chunk_bytes)
        longest = max(longest, int(work.max(initial=0)))
    return longest
