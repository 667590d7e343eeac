"""Regions: which rank emulates which devices; and the one convention by which meshemu splits n things into parts."""

import numpy as np
from numpy.typing import NDArray

from meshemu.errors import InputError
from meshemu.mesh.mesh import Mesh

__all__ = ["cut_links", "lookahead_ps", "ranks_of_vertices", "regions", "split_bounds"]


def split_bounds(n: int, parts: int) -> tuple[int, ...]:
    """Bounds of `parts` near-equal runs of range(n), parts + 1 of them; the first n % parts runs are one longer.

    split_bounds(7, 3) == (0, 3, 5, 7). Runs are empty where parts > n. InputError if n < 0 or parts < 1.
    """
    if n < 0 or parts < 1:
        raise InputError(f"cannot split {n} into {parts} parts")
    length, longer = divmod(n, parts)
    return tuple(part * length + min(part, longer) for part in range(parts + 1))


def regions(mesh_rows: int, mesh_cols: int, n_ranks: int) -> NDArray[np.int32]:
    """Rank of every device, int32[n_devices].

    The grid is split into a x b blocks, a * b = n_ranks, that cut the fewest links (among equals the most bands of
    rows). Where no such blocks fit, as for 7 ranks on 5 x 5, every rank gets a run of devices in row-major order.
    InputError if there are more ranks than devices.
    """
    n_devices = mesh_rows * mesh_cols
    if n_ranks < 1:
        raise InputError(f"{n_ranks} ranks: at least 1 is needed")
    if n_ranks > n_devices:
        raise InputError(f"{n_ranks} ranks > {mesh_rows} x {mesh_cols} = {n_devices} devices")
    fits = [
        ((bands - 1) * mesh_cols + (n_ranks // bands - 1) * mesh_rows, -bands)
        for bands in range(1, min(n_ranks, mesh_rows) + 1)
        if n_ranks % bands == 0 and n_ranks // bands <= mesh_cols
    ]
    if not fits:
        return _part_of(n_devices, n_ranks)
    bands = -min(fits)[1]
    strips = n_ranks // bands
    blocks = _part_of(mesh_rows, bands)[:, None] * np.int32(strips) + _part_of(mesh_cols, strips)[None, :]
    return blocks.ravel()


def ranks_of_vertices(mesh: Mesh, n_ranks: int) -> NDArray[np.int32]:
    """Rank of every device, switch and interface processor, int32[n_vertices]: `regions` of their `home`."""
    return regions(mesh.rows, mesh.cols, n_ranks)[mesh.home]


def cut_links(mesh: Mesh, rank_of_vertex: NDArray[np.int32]) -> NDArray[np.int64]:
    """Ids of the links whose ends are on different ranks."""
    return np.flatnonzero(rank_of_vertex[mesh.link_src] != rank_of_vertex[mesh.link_dst])


def lookahead_ps(mesh: Mesh, rank_of_vertex: NDArray[np.int32]) -> int | None:
    """Least latency of the cut links; None if no link is cut."""
    latencies = mesh.latency_ps[cut_links(mesh, rank_of_vertex)]
    return int(latencies.min()) if latencies.size else None


def _part_of(n: int, parts: int) -> NDArray[np.int32]:
    """Part of each of range(n)."""
    return np.repeat(np.arange(parts, dtype=np.int32), np.diff(split_bounds(n, parts)))
