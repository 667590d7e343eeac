"""Whether routes can deadlock when buffers are finite, and an order of virtual channels with which they cannot.

A packet holds the buffer behind one link while it waits for room behind the next. If these dependencies between
channels form no cycle, no set of packets can wait for each other (W. Dally and C. Seitz, Deadlock-free message routing
in multiprocessor interconnection networks, IEEE Transactions on Computers 1987). Routes in dimension order form none,
since no packet turns back from the second dimension into the first. Detours do turn back, and packets that follow each
other around a ring close it with the link around the mesh (the dateline of Dally and Seitz). As long as such a step
closes no cycle it is taken as it is; with any other, a packet goes up one level, and each level has virtual channels of
its own. So there is no cycle within a level, and between levels the dependencies go up only.
"""

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from meshemu.errors import InputError
from meshemu.mesh.mesh import EAST, WEST, Mesh
from meshemu.mesh.routing import Order, Routes

__all__ = ["deadlock_free_levels", "dependency_cycle"]

Ints = NDArray[np.int64]


def deadlock_free_levels(mesh: Mesh, paths: Routes, order: Order) -> NDArray[np.int16]:
    """Level of the virtual channel that a packet takes at every link of every route, aligned with paths.route_links.

    All zero where the routes cannot deadlock as they are. Raises InputError with the links of a cycle for routes that
    could deadlock on levels, too: those that turn around.
    """
    levels = np.zeros(len(paths.route_links), np.int16)
    if not dependency_cycle(paths, levels):
        return levels
    levels = _raised(mesh, paths, order)
    cycle = dependency_cycle(paths, levels)
    if cycle:
        named = ", ".join(f"{link} ({mesh.link_name(link)})" for link in cycle)
        raise InputError(f"these routes can deadlock: each of links {named} waits for the next, the last for the first")
    return levels


def dependency_cycle(paths: Routes, levels: NDArray[np.int16]) -> list[int]:
    """Links of a cycle in the dependencies between channels, which are (link, level) each; empty if there is none.

    levels: as `deadlock_free_levels` gives them.
    """
    n_levels = int(levels.max(initial=0)) + 1
    channel = paths.route_links.astype(np.int64) * n_levels + levels
    n = int(channel.max(initial=0)) + 1
    follows = np.flatnonzero(_goes_on(paths))
    before, after = np.divmod(np.unique(channel[follows] * n + channel[follows + 1]), n)
    while before.size:  # what nothing leads to, or what leads nowhere, is on no cycle
        leads, follows_any = np.zeros((2, n), np.bool_)
        leads[before], follows_any[after] = True, True
        kept = leads[after] & follows_any[before]
        if kept.all():
            return [node // n_levels for node in _walk_around(before, after)]
        before, after = before[kept], after[kept]
    return []


def _goes_on(paths: Routes) -> NDArray[np.bool_]:
    """Of every entry of paths.route_links, whether its route goes on with the next."""
    goes_on = np.ones(len(paths.route_links), np.bool_)
    goes_on[paths.route_ptr[1:][np.diff(paths.route_ptr) > 0] - 1] = False
    return goes_on


def _walk_around(before: Ints, after: Ints) -> list[int]:
    """A cycle of a graph in which every node leads to another: walk until a node comes again."""
    successor = dict(zip(before.tolist(), after.tolist(), strict=True))
    node, seen = int(before[0]), dict[int, int]()
    while node not in seen:
        seen[node] = len(seen)
        node = successor[node]
    return [passed for passed, at in seen.items() if at >= seen[node]]


def _raised(mesh: Mesh, paths: Routes, order: Order) -> NDArray[np.int16]:
    """How often a route has turned back, or gone around, such that it has to go up a level, at each of its links."""
    along_row = np.zeros(mesh.n_links, np.bool_)
    horizontal = mesh.out_link[:, [EAST, WEST]]
    along_row[horizontal[horizontal >= 0]] = True
    local = mesh.link_src == mesh.link_dst
    first_dimension = along_row != (order == "yx")
    links = paths.route_links
    at = np.flatnonzero(_goes_on(paths))
    pair = links[at].astype(np.int64) * mesh.n_links + links[at + 1]
    back = ~first_dimension[links[at]] & first_dimension[links[at + 1]] & ~local[links[at]] & ~local[links[at + 1]]
    may_close = back | mesh.wrap_around[links[at + 1]]
    steps, uses = np.unique(pair[may_close], return_counts=True)
    often_first = steps[np.argsort(-uses, kind="stable")]
    closing = _closing(np.unique(pair[~may_close]), often_first, mesh.n_links)
    up = np.zeros(len(links), np.int64)
    up[at + 1] = may_close & np.isin(pair, closing)
    count = np.cumsum(up)
    length = np.diff(paths.route_ptr)
    begin = np.repeat(paths.route_ptr[:-1], length)
    return np.asarray(count - count[begin], np.int16)


def _closing(given: Ints, added: Ints, n: int) -> list[int]:
    """Which of the edges `added`, one after the other, would close a cycle. Edges are a * n + b, from a to b."""
    graph: defaultdict[int, list[int]] = defaultdict(list)
    for edge in given.tolist():
        graph[edge // n].append(edge % n)
    closing = []
    for edge in added.tolist():
        if _reaches(graph, edge % n, edge // n):
            closing.append(edge)
        else:
            graph[edge // n].append(edge % n)
    return closing


def _reaches(graph: dict[int, list[int]], start: int, goal: int) -> bool:
    seen, stack = {start}, [start]
    while stack:
        node = stack.pop()
        if node == goal:
            return True
        fresh = [other for other in graph.get(node, ()) if other not in seen]
        seen.update(fresh)
        stack += fresh
    return False
