"""Shortest paths around dead devices and links, by breadth-first search from each destination."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from meshemu.mesh.mesh import Mesh

__all__ = ["detour", "hops_to", "neighbours"]


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


def detour(
    mesh: Mesh, src: NDArray[np.int32], dst: NDArray[np.int32], preference: Sequence[int]
) -> list[list[int] | None]:
    """Links of a shortest path for each pair, None where there is none.

    At each device the path takes the first direction of `preference` that brings it nearer.
    """
    neighbour = neighbours(mesh)
    paths: list[list[int] | None] = [None] * len(src)
    for target in np.unique(dst):
        hops = hops_to(neighbour, int(target))
        for pair in np.flatnonzero(dst == target):
            if hops[src[pair]] >= 0:
                paths[pair] = _descend(mesh, int(src[pair]), hops, preference)
    return paths


def _descend(mesh: Mesh, device: int, hops: NDArray[np.int32], preference: Sequence[int]) -> list[int]:
    path = []
    while hops[device] > 0:
        ways = (int(mesh.out_link[device, direction]) for direction in preference)
        link = next(way for way in ways if way >= 0 and hops[mesh.link_dst[way]] == hops[device] - 1)
        path.append(link)
        device = int(mesh.link_dst[link])
    return path
