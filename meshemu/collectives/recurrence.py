"""When chunks arrive if nothing else is on the links: the recurrences behind the closed forms.

A message takes the latency of its route plus its serialisation at the slowest link (cut-through). Messages over one
edge follow one another, and so do the combinations on one device: both are queues, where the end of piece i is

    end[i] = max(ready[i], end[i - 1]) + work[i] = W[i] + max over j <= i of (ready[j] - W[j - 1]),  W = cumsum(work)
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meshemu.collectives.tree import subtree_heights
from meshemu.mesh import Mesh, check_links, rate, routes, serialisation_ps

__all__ = ["Combine", "Edges", "broadcast_ps", "edges", "queue_ps", "reduce_ps", "rotate_ps"]

Times = NDArray[np.int64]
Combine = Callable[[Times], ArrayLike]
"""Sizes in bytes -> ps that a device takes to combine a received piece of that size into its buffer."""

_NEVER = -(2**62)


@dataclass(frozen=True, eq=False)
class Edges:
    """Routes between pairs of devices, any shape: latency_ps in all, and the rate num / den of the slowest link."""

    latency_ps: Times
    num: Times
    den: Times

    def serialisation_ps(self, size_bytes: ArrayLike) -> Times:
        """How long the slowest link is busy with a message of that size; broadcasts."""
        return serialisation_ps(size_bytes, self.num, self.den)

    def column(self, index: NDArray[np.int64]) -> "Edges":
        """Return the chosen edges of a list as a column, [k, 1]."""
        return Edges(self.latency_ps[index, None], self.num[index, None], self.den[index, None])


def edges(mesh: Mesh, src: ArrayLike, dst: ArrayLike) -> Edges:
    """XY routes from src to dst, device ids of any shape. Raises InputError where there is no route, and as
    `check_links` does.
    """
    check_links(mesh)
    source, target = np.broadcast_arrays(np.asarray(src, np.int64), np.asarray(dst, np.int64))
    way = routes(mesh, source.ravel(), target.ravel())
    if not way.n_routes:
        empty = np.zeros(source.shape, np.int64)
        return Edges(empty, empty, empty)
    start = way.route_ptr[:-1]
    latency = np.add.reduceat(mesh.latency_ps[way.route_links], start)
    slowest, which = np.unique(
        np.minimum.reduceat(mesh.bandwidth_bytes_per_s[way.route_links], start), return_inverse=True
    )
    rates = np.array([rate(int(bandwidth)) for bandwidth in slowest], np.int64)[which]
    return Edges(*(column[way.index].reshape(source.shape) for column in (latency, rates[:, 0], rates[:, 1])))


def queue_ps(ready_ps: Times, work_ps: Times) -> Times:
    """Return when each piece of a queue ends, along the last axis."""
    done = np.cumsum(work_ps, axis=-1)
    return done + np.maximum.accumulate(ready_ps - (done - work_ps), axis=-1)


def rotate_ps(
    ready_ps: Times, free_ps: Times, size_bytes: Times, ring: Edges, combine: Combine | None
) -> tuple[Times, Times]:
    """Return when each place of each ring ends a reduce-scatter, or an all-gather if `combine` is None, and frees
    its edge to the next place.

    ready_ps, free_ps: [n_rings, n], when a place may start and its edge is free. size_bytes: [n_rings, n], the piece
    that each place owns. ring: those edges. n - 1 phases as in transfers.rotate_scatter and rotate_gather.
    """
    n = ready_ps.shape[1]
    shift = 0 if combine is None else 1
    sending = end = ready_ps
    for phase in range(n - 1):
        size = size_bytes[:, (np.arange(n) - shift - phase) % n]
        used = size > 0
        sent = np.maximum(sending, free_ps) + ring.serialisation_ps(size)
        free_ps = np.where(used, sent, free_ps)
        arrival = np.roll(np.where(used, sent + ring.latency_ps, _NEVER), 1, axis=1)
        if combine is None:
            sending, end = arrival, np.maximum(end, arrival)
        else:
            arrived = np.roll(used, 1, axis=1)
            work = np.asarray(combine(np.roll(size, 1, axis=1)))
            sending = end = np.where(arrived, np.maximum(arrival, end) + work, end)
    return end, free_ps


def broadcast_ps(ready_ps: Times, parent: Times, depth: Times, size_bytes: Times, up: Edges) -> Times:
    """Return when each chunk has reached each participant of a tree, [n, n_chunks].

    ready_ps: [n_chunks], when the root has each chunk. parent, depth: [n]. up: edges from parent to participant.
    """
    end = np.broadcast_to(ready_ps, (len(parent), len(size_bytes))).copy()
    for level in range(1, int(depth.max(initial=0)) + 1):
        child = np.flatnonzero(depth == level)
        edge = up.column(child)
        end[child] = queue_ps(end[parent[child]], edge.serialisation_ps(size_bytes)) + edge.latency_ps
    return end


def reduce_ps(
    n_participants: int, parent: Times, depth: Times, size_bytes: Times, down: Edges, combine: Combine
) -> Times:
    """Return when the root of a tree has combined each chunk, [n_chunks]; everyone starts at 0.

    parent, depth: [n]. down: edges from participant to parent. A device combines chunk by chunk, and the pieces of one
    chunk from small subtrees first, those of one height in the order of its children's numbers.
    """
    n_chunks = len(size_bytes)
    end = np.zeros((n_participants, n_chunks), np.int64)
    work = np.broadcast_to(np.asarray(combine(size_bytes), np.int64), (n_chunks,))
    height = subtree_heights(parent, depth)
    for level in range(int(depth.max(initial=0)), 0, -1):
        child = np.flatnonzero(depth == level)
        edge = down.column(child)
        arrival = queue_ps(end[child], edge.serialisation_ps(size_bytes)) + edge.latency_ps
        by_parent = np.lexsort((height[child], parent[child]))
        above, first, family = np.unique(parent[child[by_parent]], return_index=True, return_counts=True)
        brothers = int(family.max())
        turn = np.arange(len(child)) - np.repeat(first, family)
        row = np.repeat(np.arange(len(above)), family)
        queue = np.full((len(above), n_chunks, brothers), _NEVER, np.int64)
        busy = np.zeros_like(queue)
        queue[row, :, turn], busy[row, :, turn] = arrival[by_parent], work
        served = queue_ps(queue.reshape(len(above), -1), busy.reshape(len(above), -1))
        end[above] = served.reshape(queue.shape)[:, :, -1]
    return np.asarray(end[np.argmin(parent)])
