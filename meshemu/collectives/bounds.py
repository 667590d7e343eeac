"""How fast a collective can be at best, whatever the algorithm."""

import numpy as np
from numpy.typing import ArrayLike

from meshemu.collectives.build import check_kind
from meshemu.mesh import Mesh, grid_distance

__all__ = ["collective_lower_bound_ps"]


def collective_lower_bound_ps(
    kind: str, mesh: Mesh, devices: ArrayLike, size_bytes: int, *, root: int = 0
) -> int:
    """Least time in ps for a collective over `devices` (grid of ids, -1 absent): the greater of two bounds.

    Bandwidth: what a participant must at least send and receive, over all its links together. With n participants and
    a buffer of S bytes, all_reduce needs S in and S out of everyone; reduce_scatter S (1 - 1/n) out; all_gather
    S (1 - 1/n) in; broadcast S out of the root and into the others; reduce the reverse. (Rounded down; S/n as a real
    number, less one byte for uneven chunks.)
    Latency: the hops between the two participants that are farthest apart (or from the root), each at the mesh's
    least latency; not more than the Z-plane takes between any two devices.
    """
    check_kind(kind)
    ids = np.asarray(devices, np.int64).ravel()
    ids = ids[ids >= 0]
    n = len(ids)
    if n == 1 or size_bytes == 0:
        return 0
    others = np.arange(n) != root
    part = max(0.0, size_bytes - -(-size_bytes // n))
    sent = {"all_reduce": 1.0 * size_bytes, "reduce_scatter": part, "reduce": size_bytes * others,
            "broadcast": size_bytes * ~others}.get(kind, 0.0)
    received = {"all_reduce": 1.0 * size_bytes, "all_gather": part, "broadcast": size_bytes * others,
                "reduce": size_bytes * ~others}.get(kind, 0.0)
    leaving = _bandwidth(mesh, mesh.link_src)[ids]
    entering = _bandwidth(mesh, mesh.link_dst)[ids]
    transfer = max(np.max(sent / leaving), np.max(received / entering)) * 1e12
    return int(max(transfer, _apart_ps(kind, mesh, ids, root)))


def _bandwidth(mesh: Mesh, end: np.ndarray) -> np.ndarray:
    """Bytes per second over all mesh links that share an end device, float64[n_devices]."""
    grid = mesh.link_src != mesh.link_dst
    return np.bincount(end[grid], weights=mesh.bandwidth_bytes_per_s[grid], minlength=mesh.n_devices)


def _apart_ps(kind: str, mesh: Mesh, ids: np.ndarray, root: int) -> int:
    """Least latency between the participants that are farthest apart."""
    over_mesh = _hops(kind, mesh, ids, root) * int(mesh.latency_ps[mesh.on_grid].min())
    plane = mesh.z_plane
    if plane is None:
        return over_mesh
    return min(over_mesh, int(mesh.latency_ps[plane.first_link :].reshape(4, plane.n_interfaces).min(axis=1).sum()))


def _hops(kind: str, mesh: Mesh, ids: np.ndarray, root: int) -> int:
    if mesh.switches is not None:
        return 2  # up to a switch and down
    if kind in ("broadcast", "reduce"):
        return int(grid_distance(mesh, ids, ids[root]).max())
    if mesh.column_rings or mesh.row_rings:
        return max(int(grid_distance(mesh, ids, one).max()) for one in ids)
    row, col = mesh.row[ids], mesh.col[ids]
    return int(max(np.ptp(row + col), np.ptp(row - col)))
