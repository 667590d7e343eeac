"""Shortest paths around dead devices and links, searched from each destination.

On a mesh they are those with the fewest hops. Where lines of devices are rings, a way round may have fewer hops and
longer ones, so that latency counts first there, as it does in routes that meet nothing dead.
"""

from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from meshemu.mesh.mesh import EAST, NORTH, SOUTH, WEST, Mesh

__all__ = ["detour", "grid_hops", "hops_to", "neighbours"]


def neighbours(mesh: Mesh) -> NDArray[np.int32]:
    """Device to N, E, S, W of every device over links that exist, int32[n_devices, 4]; n_devices stands for none."""
    ends = np.append(mesh.link_dst, np.int32(mesh.n_devices))  # link -1, none, finds the last entry
    return ends[mesh.out_link]


def hops_to(neighbour: NDArray[np.int32], dst: int) -> NDArray[np.int32]:
    """Hops from every device to dst, int32[n_devices + 1]; -1 where there is no path, the last entry is no device."""
    hops = np.full(len(neighbour) + 1, -1, np.int32)
    hops[-1] = hops[dst] = 0
    latest = np.zeros(len(hops), np.int64)
    frontier = np.array([dst])
    distance = 0
    while frontier.size:
        distance += 1
        found = neighbour[frontier].ravel()  # links die in both directions, so ways out are ways in
        found = found[hops[found] < 0]
        hops[found] = distance
        count = np.arange(len(found))
        latest[found] = count  # of a device found twice, only the last finding stays in the frontier
        frontier = found[latest[found] == count]
    return hops


def grid_hops(mesh: Mesh, devices: NDArray[np.int64]) -> NDArray[np.int32]:
    """Hops between each of `devices` and every device, int32[n, n_devices]; -1 where there is no path."""
    neighbour = neighbours(mesh)
    return np.array([hops_to(neighbour, int(device))[:-1] for device in devices], np.int32)


def detour(
    mesh: Mesh, src: NDArray[np.int32], dst: NDArray[np.int32], preference: Sequence[int]
) -> list[list[int] | None]:
    """Links of a shortest path for each pair, None where there is none.

    At each device the path takes the first direction of `preference` that brings it nearer; where lines are rings,
    devices in odd columns prefer west to east, and those in odd rows north to south, if the others prefer the reverse.
    """
    neighbour = neighbours(mesh)
    paths: list[list[int] | None] = [None] * len(src)
    rings = mesh.column_rings or mesh.row_rings
    weight = _weights(mesh) if rings else [1] * mesh.n_links
    for target in np.unique(dst):
        cost = _cost_to(mesh, int(target), weight) if rings else hops_to(neighbour, int(target)).tolist()
        for pair in np.flatnonzero(dst == target):
            if cost[src[pair]] >= 0:
                paths[pair] = _descend(mesh, int(src[pair]), cost, weight, preference)
    return paths


def _weights(mesh: Mesh) -> list[int]:
    """Of each link, such that sums compare by latency, then by hops: whole numbers of any size."""
    return [int(latency) * mesh.n_devices + 1 for latency in mesh.latency_ps]


def _cost_to(mesh: Mesh, dst: int, weight: Sequence[int]) -> list[int]:
    """Sum of the weights on the lightest path from every device to dst, -1 where there is none (Dijkstra 1959)."""
    cost = [-1] * mesh.n_devices
    queue = [(0, dst)]
    while queue:
        total, device = heappop(queue)
        if cost[device] >= 0:
            continue
        cost[device] = total
        for direction, back in ((NORTH, SOUTH), (EAST, WEST), (SOUTH, NORTH), (WEST, EAST)):
            out = int(mesh.out_link[device, direction])
            if out >= 0 and cost[other := int(mesh.link_dst[out])] < 0:
                heappush(queue, (total + weight[int(mesh.out_link[other, back])], other))
    return cost


def _descend(
    mesh: Mesh, device: int, cost: Sequence[int], weight: Sequence[int], preference: Sequence[int]
) -> list[int]:
    path = []
    while cost[device] > 0:
        ways = (int(mesh.out_link[device, direction]) for direction in _preferred(mesh, device, preference))
        link = next(way for way in ways if way >= 0 and cost[mesh.link_dst[way]] + weight[way] == cost[device])
        path.append(link)
        device = int(mesh.link_dst[link])
    return path


def _preferred(mesh: Mesh, device: int, preference: Sequence[int]) -> list[int]:
    """The directions in the order in which a device tries them."""
    swapped: dict[int, int] = {}
    if mesh.row_rings and mesh.col[device] % 2:
        swapped |= {EAST: WEST, WEST: EAST}
    if mesh.column_rings and mesh.row[device] % 2:
        swapped |= {NORTH: SOUTH, SOUTH: NORTH}
    return [swapped.get(direction, direction) for direction in preference]
