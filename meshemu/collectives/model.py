"""Contention-free time of a collective by formula, without building its schedule.

The ring on n devices, chunks of S / n: let e[k] = latency of ring edge k + serialisation of a chunk. Place k sends its
own chunk at 0, and in phase p what came in phase p - 1, so the chunk that leaves place k in phase p has crossed the p
edges before it. Each edge is free again by then, since two chunks follow at a distance of some e >= serialisation. The
last arrival of an all-reduce has crossed 2 (n - 1) consecutive edges and was combined n - 1 times, c each:

    T = max over k of (e[k] + e[k + 1] + ... + e[k + 2 n - 3], cyclically) + (n - 1) c

With equal edges that is 2 (n - 1) (L + S / (n B)) + (n - 1) c. The odd ring has one edge of two hops; 2 (n - 1)
consecutive edges of a cycle of n can meet it twice, so its T is 2 L more. reduce_scatter and all_gather take n - 1
edges, with and without combinations.

Where chunks or bandwidths differ a chunk may wait for the one before it; then, and for lines of rows_columns that
start at different times and for pipelines, the recurrences of `recurrence` give the time; `in_network_model` has the
formulas for routers that fork and merge. Three cases are estimates: the
trees of reduce_scatter and all_gather, which contend with one another (`_owner_trees_ps`), and a pipelined reduce
whose combinations take longer than its messages, where a device may serve chunks in another order; and whatever shares
links behind switches (`shared_links`).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meshemu.collectives.build import ALGORITHMS, check_algorithm, check_kind
from meshemu.collectives.edge_load import busiest_edge_ps
from meshemu.collectives.group import Group, group_of
from meshemu.collectives.in_network_model import in_network_ps
from meshemu.collectives.joined import joined
from meshemu.collectives.order import line_order
from meshemu.collectives.recurrence import Combine, Edges, broadcast_ps, edges, reduce_ps, rotate_ps
from meshemu.collectives.ring import ring_participants
from meshemu.collectives.shared_links import sharing_ps
from meshemu.collectives.tree import middle, spanning_trees
from meshemu.errors import InputError
from meshemu.mesh import Mesh, split_bounds

__all__ = ["closed_form_ps", "uniform_ring_ps"]

Times = NDArray[np.int64]


def closed_form_ps(
    kind: str, algorithm: str, mesh: Mesh, devices: ArrayLike, size_bytes: int, itemsize: int, combine: Combine, *,
    root: int = 0, n_chunks: int | None = None,
) -> int:
    """Time in ps of a collective over a free mesh, every participant ready at 0.

    devices: int[rows, cols], device ids of the group's grid, -1 where none takes part. combine: sizes in bytes -> ps of
    one combination. root: participant, for broadcast and reduce. n_chunks: as for `build`.
    Raises InputError for unknown names, for a size that is no multiple of itemsize, and as `build` does.
    """
    check_kind(kind)
    check_algorithm(algorithm)
    grid = np.asarray(devices, np.int64)
    members = group_of(grid, joined=joined(mesh, grid))
    if size_bytes % itemsize:
        raise InputError(f"size_bytes = {size_bytes} is not a multiple of itemsize = {itemsize}")
    if members.size == 1 or size_bytes == 0:
        return 0
    planned = n_chunks or ALGORITHMS[algorithm].default_chunks(kind, members)
    chunks = min(planned, size_bytes // itemsize)
    size = np.diff(split_bounds(size_bytes // itemsize, chunks)) * itemsize
    device = grid.ravel()[members.position]
    shared = 0
    if mesh.switches is not None:
        parts = ALGORITHMS[algorithm].transfers(kind, members, root, planned)
        shared = sharing_ps(parts, mesh, device, size)
    return shared + _unshared_ps(kind, algorithm, mesh, device, members, size, combine, root)


def _unshared_ps(
    kind: str, algorithm: str, mesh: Mesh, device: Times, members: Group, size: Times, combine: Combine, root: int
) -> int:
    """The same where every transfer has links of its own. device: of each participant; size: bytes of each chunk."""
    if algorithm == "in_network":
        return in_network_ps(kind, mesh, device, members, root, size, combine)
    if kind in ("broadcast", "reduce"):
        parent, depth = _rooted_tree(algorithm, members, root, kind)
        return _pipeline_ps(kind, mesh, device, parent, depth, size, combine)
    if algorithm == "tree" and kind == "all_reduce":
        parent, depth = _rooted_tree(algorithm, members, middle(members), kind)
        return _pipeline_ps(kind, mesh, device, parent, depth, size, combine)
    owned = np.concatenate((size, np.zeros(members.size - len(size), np.int64)))
    if algorithm == "ring":
        return _ring_ps(kind, mesh, device, ring_participants(members), owned, combine)
    if algorithm == "rows_columns":
        return _rows_columns_ps(kind, mesh, device, members, owned, combine)
    return _owner_trees_ps(kind, mesh, device, members, size, combine)


def uniform_ring_ps(edge_ps: ArrayLike, n_edges: int, combinations_ps: int) -> int:
    """Return the greatest sum of n_edges consecutive edges of a ring (cyclically), plus combinations_ps.

    edge_ps: int[n], latency plus serialisation of a chunk of each ring edge.
    """
    edge = np.asarray(edge_ps, np.int64)
    total = np.concatenate(([0], np.cumsum(np.resize(edge, len(edge) + n_edges))))
    return int((total[n_edges : n_edges + len(edge)] - total[: len(edge)]).max()) + combinations_ps


def _ring_ps(kind: str, mesh: Mesh, device: Times, order: NDArray[np.int32], size: Times, combine: Combine) -> int:
    ring = edges(mesh, device[order], np.roll(device[order], -1))
    n, work = len(order), ring.serialisation_ps(size.max())
    if size.min() == size.max() and work.min() == work.max():
        scatters, gathers = kind != "all_gather", kind != "reduce_scatter"
        once = int(np.max(np.asarray(combine(size[:1]))))
        return uniform_ring_ps(ring.latency_ps + work, (scatters + gathers) * (n - 1), scatters * (n - 1) * once)
    end = free = np.zeros((1, n), np.int64)
    owned = size[order][None]
    if kind != "all_gather":
        end, free = rotate_ps(end, free, owned, ring, combine)
    if kind != "reduce_scatter":
        end, free = rotate_ps(end, free, owned, ring, None)
    return int(end.max())


def _rows_columns_ps(kind: str, mesh: Mesh, device: Times, members: Group, size: Times, combine: Combine) -> int:
    """Columns and rows as rings, each line starting when its devices have ended the stage before."""
    if not members.full:
        raise InputError(f"rows_columns needs a full grid of {members.rows} x {members.cols}")
    grid, owned = device.reshape(members.rows, members.cols), size.reshape(members.rows, members.cols)
    # Columns come as the transposed grid: one line per column.
    row_range = np.broadcast_to(owned.sum(axis=1), (members.cols, members.rows))
    end = row_free = np.zeros(grid.shape, np.int64)
    column_free = end.T
    column_fold = line_order(members.rows, is_ring=members.joined.column_rings)
    row_fold = line_order(members.cols, is_ring=members.joined.row_rings)
    if kind != "all_gather":
        down, column_free = _lines_ps(end.T, column_free, mesh, grid.T, column_fold, row_range, combine)
        end, row_free = _lines_ps(down.T, row_free, mesh, grid, row_fold, owned, combine)
    if kind != "reduce_scatter":
        end, row_free = _lines_ps(end, row_free, mesh, grid, row_fold, owned, None)
        end, column_free = _lines_ps(end.T, column_free, mesh, grid.T, column_fold, row_range, None)
    return int(end.max())


def _lines_ps(
    ready: Times, free: Times, mesh: Mesh, lines: Times, fold: NDArray[np.int32], size: Times, combine: Combine | None
) -> tuple[Times, Times]:
    """`rotate_ps` on lines, each in the order `fold`, with all arrays in the order of the lines."""
    if lines.shape[1] == 1:
        return ready, free
    ring = edges(mesh, lines[:, fold], np.roll(lines[:, fold], -1, axis=1))
    end, freed = np.empty_like(ready), np.empty_like(free)
    end[:, fold], freed[:, fold] = rotate_ps(ready[:, fold], free[:, fold], size[:, fold], ring, combine)
    return end, freed


def _rooted_tree(algorithm: str, members: Group, root: int, kind: str) -> tuple[Times, Times]:
    """(parent, depth) of the tree or chain that a pipeline follows."""
    if algorithm != "ring":
        parents, depths = spanning_trees(members, np.array([root]), columns_first=algorithm == "rows_columns")
        return parents[0].astype(np.int64), depths[0].astype(np.int64)
    order = ring_participants(members)
    order = np.roll(order, -int(np.flatnonzero(order == root)[0]))
    chain = order if kind == "broadcast" else np.roll(order[::-1], 1)
    parent, depth = np.full(members.size, -1, np.int64), np.zeros(members.size, np.int64)
    parent[chain[1:]] = chain[:-1]
    depth[chain] = np.arange(members.size)
    return parent, depth


def _pipeline_ps(
    kind: str, mesh: Mesh, device: Times, parent: Times, depth: Times, size: Times, combine: Combine
) -> int:
    child = np.flatnonzero(parent >= 0)
    ready = np.zeros(len(size), np.int64)
    if kind != "broadcast":
        inward = _spread(edges(mesh, device[child], device[parent[child]]), child, len(parent))
        ready = reduce_ps(len(parent), parent, depth, size, inward, combine)
    if kind != "reduce":
        outward = _spread(edges(mesh, device[parent[child]], device[child]), child, len(parent))
        return int(broadcast_ps(ready, parent, depth, size, outward).max())
    return int(ready.max())


def _spread(of_children: Edges, child: Times, n: int) -> Edges:
    """Edges by participant; the root's own entry is never used."""
    columns = []
    for column in (of_children.latency_ps, of_children.num, of_children.den):
        spread = np.ones(n, np.int64)
        spread[child] = column
        columns.append(spread)
    return Edges(*columns)


def _owner_trees_ps(kind: str, mesh: Mesh, device: Times, members: Group, size: Times, combine: Combine) -> int:
    """Estimate for one tree per chunk, all at once: cross the deepest tree, and drain the busiest edge or device.

    The deepest tree is that of participant 0, the first corner. A device in a line of n >= 3 has a child on one side in
    the trees of all owners in its line up to itself, and on the other side of those from itself on: n + 1 pieces to
    combine, of `rows` owners each in a row. Absent positions are taken as present.
    """
    rows, cols, share = members.rows, members.cols, len(size) / members.size
    parent, depth = (array[0] for array in spanning_trees(members, np.array([0])))
    child = np.flatnonzero(depth)
    links = edges(mesh, device[child], device[parent[child]])
    nothing = np.zeros(1, np.int64)
    crossing = int(broadcast_ps(nothing, parent, depth, nothing, _spread(links, child, members.size)).max())
    work = int(links.serialisation_ps(size[0]).max())
    once = int(np.max(np.asarray(combine(size[:1])))) if kind == "reduce_scatter" else 0
    pieces = max(1, int((rows * _pieces(cols) + _pieces(rows)) * share))
    grid = np.full(rows * cols, -1, np.int64)
    grid[members.position] = device
    busy = int(busiest_edge_ps(mesh, grid.reshape(rows, cols), size[0]) * share)
    return crossing + max(busy + once, pieces * once, int(depth.max()) * (work + once))


def _pieces(n: int) -> int:
    """Greatest number of owners of a line of n in whose trees one device has children in that line."""
    return n + 1 if n > 2 else n - 1
