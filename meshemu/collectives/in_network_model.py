"""Contention-free time of collectives whose messages fork and merge in the routers.

A lone tree streams: with M the merges and L the latencies on the way of a member, m the latency of one merge and s(S)
the serialisation of S bytes at the slowest link of that way, a copy arrives L + s(S) after it was sent, and a sum is at
the root at

    T = max over members of (L + M m + s(S))

for any packet size: heads and tails combine by max and +, so the last arrival is the longest chain of them, and each
chain has one member's way in it. Chunks follow one another as a queue at the slowest link. The reduction's links lead
towards the root and the multicast's away from it, so that the two halves of an all_reduce never meet.

reduce_scatter and all_gather have a tree per participant, which contend: for them the time is an estimate from the way
out of a corner and all that the busiest link carries, one after the other for sums, at one time for copies.
"""

import numpy as np
from numpy.typing import NDArray

from meshemu.collectives.edge_load import busiest_edge_ps
from meshemu.collectives.group import Group
from meshemu.collectives.recurrence import Combine, queue_ps
from meshemu.collectives.tree import middle
from meshemu.mesh import Mesh, trees, trees_ps

__all__ = ["in_network_ps"]

Times = NDArray[np.int64]


def in_network_ps(
    kind: str, mesh: Mesh, device: Times, members: Group, root: int, size_bytes: Times, combine: Combine
) -> int:
    """Time in ps of a collective by in_network; device: id of each participant; size_bytes: of each chunk."""
    if kind in ("reduce_scatter", "all_gather"):
        return _all_trees_ps(kind, mesh, device, members, size_bytes, combine)
    centre = middle(members) if kind == "all_reduce" else root
    ready = np.zeros(len(size_bytes), np.int64)
    if kind != "broadcast":
        latency, work = _ways(mesh, device, centre, size_bytes, outward=False)
        arrival = (latency + np.cumsum(work, axis=1)).max(axis=0)
        ready = queue_ps(arrival, np.broadcast_to(np.asarray(combine(size_bytes), np.int64), arrival.shape))
    if kind != "reduce":
        latency, work = _ways(mesh, device, centre, size_bytes, outward=True)
        ready = (latency + queue_ps(ready, work)).max(axis=0)
    return int(ready.max())


def _ways(mesh: Mesh, device: Times, root: int, size_bytes: Times, *, outward: bool) -> tuple[Times, Times]:
    """(latency with merges, [n - 1, 1]; serialisation of each chunk at the slowest link, [n - 1, n_chunks])."""
    others = np.delete(device, root)
    tree = trees(mesh, device[[root]], [outward], others, np.zeros(len(others), np.int64))
    latency = trees_ps(mesh, tree, [0])
    distinct, which = np.unique(size_bytes, return_inverse=True)
    work = np.stack([trees_ps(mesh, tree, [size]) - latency for size in distinct], axis=1)
    return latency[:, None], work[:, which]


def _all_trees_ps(
    kind: str, mesh: Mesh, device: Times, members: Group, size_bytes: Times, combine: Combine
) -> int:
    outward = kind == "all_gather"
    latency, work = _ways(mesh, device, 0, size_bytes[:1], outward=outward)
    positions = np.full(members.rows * members.cols, -1, np.int64)
    positions[members.position] = device
    grid = positions.reshape(members.rows, members.cols)
    share = len(size_bytes) / members.size
    busy = int(busiest_edge_ps(mesh, grid.T if outward else grid, int(size_bytes[0])) * share)
    if outward:  # near chunks keep links busy while far ones are on their way
        return max(int((latency + work).max()), busy + int(latency.min()))
    return int(latency.max()) + busy + int(np.max(np.asarray(combine(size_bytes[:1]))))
