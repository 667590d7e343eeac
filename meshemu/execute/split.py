"""Who emulates whom: every rank as many devices, split so that ranks wait and send least."""

import numpy as np
from numpy.typing import NDArray

from meshemu.mesh import split_bounds
from meshemu.workload.plan import Plan

__all__ = ["even_split"]

TOLERATED = 0.01
"""More work of the busiest rank that is taken for fewer bytes between ranks, as a part of it."""


def even_split(
    plan: Plan,
    n_ranks: int,
    mesh_cols: int,
    device_flops: NDArray[np.float64],
    src: NDArray[np.int32],
    dst: NDArray[np.int32],
    size_bytes: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Rank of every position, int64[n_positions]: runs of positions, of the mesh's rows or of its columns.

    Numbers of devices differ by one at most; regions of the mesh, which the event engine needs for their few cut links,
    would be 15 and 10 of 5 x 5 devices. device_flops: work of a step by device. src, dst, size_bytes: its messages, on
    a mesh of `mesh_cols` columns. Of the splits that leave the busiest rank the least work (up to TOLERATED) the one
    that the fewest bytes between devices of the plan have to cross; among equals the first.
    """
    runs = np.repeat(np.arange(n_ranks), np.diff(split_bounds(plan.n_positions, n_ranks)))
    if n_ranks == 1:
        return runs
    devices = np.asarray(plan.devices, np.int64)
    row, col = np.divmod(devices, mesh_cols)
    splits = []
    for order in (np.arange(plan.n_positions), np.lexsort((col, row)), np.lexsort((row, col))):
        split = np.empty_like(runs)
        split[order] = runs
        splits.append(split)
    n_vertices = max(int(ends.max(initial=0)) for ends in (devices, src, dst)) + 1

    def crossing_bytes(split: NDArray[np.int64]) -> int:
        rank = np.full(n_vertices, -1, np.int64)
        rank[devices] = split
        crosses = (rank[src] != rank[dst]) & (rank[src] >= 0) & (rank[dst] >= 0)
        return int(size_bytes[crosses].sum())

    work = [float(np.bincount(split, device_flops[devices]).max()) for split in splits]
    limit = min(work) * (1 + TOLERATED)
    return min((split for split, most in zip(splits, work, strict=True) if most <= limit), key=crossing_bytes)
