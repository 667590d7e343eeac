"""Routes of messages over the mesh: dimension-ordered, and around what is dead.

XY goes along the row first, then along the column; YX the other way round. Where a dead device or link is on the way,
the message takes a shortest path around it, the same one every time: among shortest paths, each hop prefers the first
dimension of the order. Where switches join the devices, a message goes up and down their tree, whatever the order.
Where lines are rings, it goes the way round that is shorter (`rings`). These are the routes over the mesh; which
messages take the Z-plane instead is for `shortcuts` to say.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meshemu.errors import InputError
from meshemu.mesh.detour import detour
from meshemu.mesh.mesh import EAST, NORTH, SOUTH, WEST, Mesh
from meshemu.mesh.rings import forwards
from meshemu.mesh.switches import tree_routes

__all__ = ["Order", "Routes", "routes"]

Order = Literal["xy", "yx"]

_Ints = NDArray[np.int64]
_Run = tuple[_Ints, _Ints, NDArray[Any]]

_PREFERENCE = {"xy": (EAST, WEST, NORTH, SOUTH), "yx": (NORTH, SOUTH, EAST, WEST)}
_BLOCK = 1 << 12  # routes walked at once: their arrays stay in cache


@dataclass(frozen=True, eq=False)
class Routes:
    """Routes of distinct (src, dst) pairs, CSR, sorted by (src, dst).

    index: int32[n_messages], the route of each message. src, dst: int32[n_routes]. Route i is
    route_links[route_ptr[i]:route_ptr[i + 1]], link ids (int32) in order, injection and ejection included where the
    hardware has them. route_ptr: int64[n_routes + 1].
    """

    index: NDArray[np.int32]
    src: NDArray[np.int32]
    dst: NDArray[np.int32]
    route_ptr: NDArray[np.int64]
    route_links: NDArray[np.int32]

    @property
    def n_routes(self) -> int:
        """Number of distinct pairs."""
        return len(self.src)

    def links(self, route: int) -> NDArray[np.int32]:
        """Link ids of one route, in order."""
        return self.route_links[self.route_ptr[route] : self.route_ptr[route + 1]]

    def taken(self, route: NDArray[np.integer[Any]]) -> "Routes":
        """These routes by number, in this order, which are then one each for as many messages."""
        length = np.diff(self.route_ptr)[route]
        at = np.arange(length.sum()) + np.repeat(self.route_ptr[route] - np.cumsum(length) + length, length)
        number = np.arange(len(route), dtype=np.int32)
        return Routes(number, self.src[route], self.dst[route], _pointer(length), self.route_links[at])


def routes(
    mesh: Mesh, src: ArrayLike, dst: ArrayLike, order: Order = "xy", *, to_self: bool = False,
    name: Callable[[int], str] = "pair {}".format,
) -> Routes:
    """Routes of messages from src[i] to dst[i], ids of devices.

    InputError names the first pair that has the same device twice, a dead or unknown device, or no path. With `to_self`
    a device may send to itself: over its injection and ejection link, or over no link where it has none. name: what
    errors call pair i.
    """
    if order not in _PREFERENCE:
        raise InputError(f"routing order {order!r} is not one of {', '.join(_PREFERENCE)}")
    sources, targets = np.atleast_1d(np.asarray(src)), np.atleast_1d(np.asarray(dst))
    _check_pairs(mesh, sources, targets, to_self, name)
    pairs = sources.astype(np.int64) * mesh.n_devices + targets
    keys, index = _distinct(pairs, mesh.n_devices**2)
    pair_src, pair_dst = (half.astype(np.int32) for half in np.divmod(keys, mesh.n_devices))
    table = _link_table(mesh)
    blocks = [slice(at, at + _BLOCK) for at in range(0, len(keys), _BLOCK)]
    walks = [_walk(mesh, table, pair_src[block], pair_dst[block], order) for block in blocks]
    lengths = np.concatenate([length for length, _ in walks]) if walks else np.zeros(0, np.int64)
    links = np.concatenate([links for _, links in walks]) if walks else np.zeros(0, np.int32)
    if np.any(links < 0):
        first = np.empty(len(keys), np.int64)
        first[index[::-1]] = np.arange(len(index))[::-1]
        lengths, links = _around(mesh, pair_src, pair_dst, first, lengths, links, order, name)
    return Routes(index, pair_src, pair_dst, _pointer(lengths), links)


def _check_pairs(
    mesh: Mesh, src: NDArray[np.int64], dst: NDArray[np.int64], to_self: bool, name: Callable[[int], str]
) -> None:
    if src.shape != dst.shape or src.ndim != 1:
        raise InputError(f"src and dst must be two lists of one length, not of shapes {src.shape} and {dst.shape}")
    if src.size and not (np.issubdtype(src.dtype, np.integer) and np.issubdtype(dst.dtype, np.integer)):
        raise InputError(f"src and dst must be ids of devices, not {src.dtype} and {dst.dtype}")
    all_alive = bool(mesh.alive.all())
    for end, ends in (("src", src), ("dst", dst)):
        if ends.size and (ends.min() < 0 or ends.max() >= mesh.n_devices):
            pair = int(np.argmax((ends < 0) | (ends >= mesh.n_devices)))
            raise InputError(f"{name(pair)}: {end} {ends[pair]} is not one of the {mesh.n_devices} devices")
        if not all_alive and np.any(dead := ~mesh.alive[ends.astype(np.int64)]):
            pair = int(np.argmax(dead))
            raise InputError(f"{name(pair)}: {end} {ends[pair]}, {mesh.place(ends[pair])}, is dead")
    if not to_self and np.any(src == dst):
        pair = int(np.argmax(src == dst))
        raise InputError(f"{name(pair)}: {mesh.place(src[pair])} sends to itself (src = dst = {src[pair]})")


def _distinct(values: NDArray[np.int64], bound: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The distinct 0 <= value < bound, ascending, and the place of each value among them.

    Where values are many for their bound, a table of all possible ones takes a fraction of the time of a sort.
    """
    if bound > 16 * len(values):
        keys, index = np.unique(values, return_inverse=True)
        return keys, index.astype(np.int32)
    present = np.zeros(bound, np.bool_)
    present[values] = True
    keys = np.flatnonzero(present)
    place = np.empty(bound, np.int32)
    place[keys] = np.arange(len(keys), dtype=np.int32)
    return keys, place[values]


def _walk(
    mesh: Mesh, links: NDArray[np.int32], src: NDArray[np.int32], dst: NDArray[np.int32], order: Order
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """(lengths, links) of dimension-ordered routes; -1 for a link that does not exist.

    A route is runs through the table `links`: injection, first leg, second leg, ejection. Each run starts at an entry
    and goes on by a constant stride. A leg along a ring is two runs, up to the link around the mesh and after it.
    """
    if mesh.switches is not None:
        legs = tree_routes(mesh.switches, src, dst)
        columns = np.stack([mesh.injection_link[src], *legs, mesh.ejection_link[dst]], axis=1)
        return np.count_nonzero(columns >= 0, axis=1), columns[columns >= 0]
    n, none = mesh.n_devices, np.zeros(len(src), np.int64)
    first_leg, corner = _leg(mesh, src.astype(np.int64), dst, along_row=order == "xy")
    second_leg, _ = _leg(mesh, corner, dst, along_row=order != "xy")
    runs = [
        (4 * n + src, none, mesh.injection_link[src] >= 0),
        *first_leg,
        *second_leg,
        (5 * n + dst, none, mesh.ejection_link[dst] >= 0),
    ]
    first, stride, length = (np.stack(part, axis=1).astype(np.int64).ravel() for part in zip(*runs, strict=True))
    begin = np.cumsum(length) - length
    entry = np.arange(length.sum()) * np.repeat(stride, length) + np.repeat(first - begin * stride, length)
    return length.reshape(-1, len(runs)).sum(axis=1), links[entry]


def _leg(mesh: Mesh, device: _Ints, dst: NDArray[np.int32], *, along_row: bool) -> tuple[list[_Run], _Ints]:
    """The runs (first entry, stride, length) of a leg in one dimension, and the devices where it ends."""
    line, unit, n, is_ring = (
        (mesh.col, 1, mesh.cols, mesh.row_rings) if along_row else (mesh.row, mesh.cols, mesh.rows, mesh.column_rings)
    )
    ahead, behind = (EAST, WEST) if along_row else (SOUTH, NORTH)
    here, there = line[device].astype(np.int64), line[dst].astype(np.int64)
    if not is_ring:
        way = there - here
        step = unit * np.sign(way)
        return [(4 * device + np.where(way > 0, ahead, behind), 4 * step, np.abs(way))], device + unit * way
    onward = forwards(mesh, along_row=along_row)[here, there]
    direction, step = np.where(onward, ahead, behind), np.where(onward, unit, -unit)
    hops = np.where(onward, there - here, here - there) % n
    before = np.minimum(hops, np.where(onward, n - here, here + 1))  # the link around the mesh included
    opposite = device + unit * (np.where(onward, 0, n - 1) - here)
    runs = [(4 * device + direction, 4 * step, before), (4 * opposite + direction, 4 * step, hops - before)]
    return runs, device + unit * (there - here)


def _link_table(mesh: Mesh) -> NDArray[np.int32]:
    """All links by where they start: 4 * device + direction, then injection and ejection by device."""
    return np.concatenate([mesh.out_link.ravel(), mesh.injection_link, mesh.ejection_link])


def _around(
    mesh: Mesh, src: NDArray[np.int32], dst: NDArray[np.int32], pair: NDArray[np.int64],
    lengths: NDArray[np.int64], links: NDArray[np.int32], order: Order, name: Callable[[int], str],
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The same routes with those that meet a missing link replaced by detours."""
    clear = np.bincount(np.repeat(np.arange(len(lengths)), lengths), links < 0, len(lengths)) == 0
    blocked = np.flatnonzero(~clear)
    detours = detour(mesh, src[blocked], dst[blocked], _PREFERENCE[order])
    parts = []
    for at, found in zip(blocked, detours, strict=True):
        if found is None:
            ends = f"{mesh.place(src[at])} (device {src[at]}) to {mesh.place(dst[at])} (device {dst[at]})"
            raise InputError(f"{name(int(pair[at]))}: no route from {ends}: dead devices or links part them")
        whole = [int(mesh.injection_link[src[at]]), *found, int(mesh.ejection_link[dst[at]])]
        parts.append(np.array([link for link in whole if link >= 0], np.int32))
    kept = links[np.repeat(clear, lengths)]
    lengths = lengths.copy()
    lengths[blocked] = [len(part) for part in parts]
    merged = np.empty(lengths.sum(), np.int32)
    from_walk = np.repeat(clear, lengths)
    merged[from_walk], merged[~from_walk] = kept, np.concatenate(parts)
    return lengths, merged


def _pointer(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
