"""Routes of messages, over the mesh or over the Z-plane, whichever brings a message to its destination sooner.

A message may leave the mesh at an interface processor in the fewest hops from its source, cross Ethernet, and come in
at one in the fewest hops from its destination; of several as near, number (src + dst) mod their number, so that
messages are shared out. It does so if it would then arrive before it does over the mesh, each alone on the links:
latencies of the way, and its bytes over the slowest link. What else is on the links has no say, so that the route of a
message depends on nothing but the message.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meshemu.mesh.mesh import Mesh
from meshemu.mesh.routing import Order, Routes, routes
from meshemu.mesh.transit import message_ps
from meshemu.mesh.z_plane import ZPlane

__all__ = ["message_routes"]

Ints = NDArray[np.int64]


def message_routes(
    mesh: Mesh, src: ArrayLike, dst: ArrayLike, size_bytes: ArrayLike, order: Order = "xy", *, to_self: bool = False,
    stays: ArrayLike = False, name: Callable[[int], str] = "pair {}".format,
) -> Routes:
    """Routes of messages of size_bytes[i] from src[i] to dst[i], ids of devices.

    As `routes`, whose errors it raises; routes over the Z-plane stand after those over the mesh. stays: messages that
    stay on the mesh in any case. Devices that dead ones part on the mesh stay parted.
    """
    over_mesh = routes(mesh, src, dst, order, to_self=to_self, name=name)
    plane = mesh.z_plane
    if plane is None:
        return over_mesh
    far = _far(mesh, plane, over_mesh)
    pair_src, pair_dst = (ends[far].astype(np.int64) for ends in (over_mesh.src, over_mesh.dst))
    leave, enter = (plane.gate(ends, pair_src + pair_dst) for ends in (pair_src, pair_dst))
    joined = (leave >= 0) & (enter >= 0) & (leave != enter)
    far, leave, enter = far[joined], leave[joined], enter[joined]
    if not len(far):
        return over_mesh
    slow, short = over_mesh.taken(far), _over_plane(mesh, plane, over_mesh, far, leave, enter, order)
    place = np.full(over_mesh.n_routes, -1, np.int64)
    place[far] = np.arange(len(far))
    message = np.flatnonzero((place[over_mesh.index] >= 0) & ~np.asarray(stays, np.bool_))
    pair = place[over_mesh.index[message]].astype(np.int32)
    sizes = np.broadcast_to(np.asarray(size_bytes, np.int64), over_mesh.index.shape)[message]
    long_ps, short_ps = (message_ps(mesh, replace(way, index=pair), sizes) for way in (slow, short))
    sooner = short_ps < long_ps
    used, number = np.unique(pair[sooner], return_inverse=True)
    index = over_mesh.index.copy()
    index[message[sooner]] = over_mesh.n_routes + number.ravel()
    return _followed(over_mesh, short.taken(used), index)


def _far(mesh: Mesh, plane: ZPlane, over_mesh: Routes) -> Ints:
    """Routes over the mesh with more latency than any crossing of the Z-plane has: others cannot gain."""
    route = np.repeat(np.arange(over_mesh.n_routes), np.diff(over_mesh.route_ptr))
    latency = np.zeros(over_mesh.n_routes, np.int64)
    np.add.at(latency, route, mesh.latency_ps[over_mesh.route_links])
    crossing = mesh.latency_ps[plane.first_link :].reshape(4, plane.n_interfaces).min(axis=1).sum()
    return np.flatnonzero(latency > crossing)


def _over_plane(
    mesh: Mesh, plane: ZPlane, over_mesh: Routes, far: Ints, leave: Ints, enter: Ints, order: Order
) -> Routes:
    """The routes of `far` that leave and enter the mesh at these interface processors."""
    src, dst = over_mesh.src[far], over_mesh.dst[far]
    out = routes(mesh, src, plane.beside[leave], order, to_self=True)
    back = routes(mesh, plane.beside[enter], dst, order, to_self=True)
    pointer, links = _chained(out.taken(out.index), plane.crossing(leave, enter), back.taken(back.index))
    return Routes(np.arange(len(far), dtype=np.int32), src, dst, pointer, links)


def _chained(out: Routes, crossing: Ints, back: Routes) -> tuple[Ints, NDArray[np.int32]]:
    """(route_ptr, route_links) of routes that follow `out`, then a row of `crossing`, then `back`."""
    lengths = np.stack([np.diff(out.route_ptr), np.full(*crossing.shape), np.diff(back.route_ptr)], axis=1)
    pointer = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths.sum(axis=1))])
    links = np.empty(pointer[-1], np.int32)
    begin = np.cumsum(lengths.ravel()) - lengths.ravel()
    for leg, of_leg in enumerate((out.route_links, crossing.ravel(), back.route_links)):
        length, start = lengths[:, leg], begin[leg::3]
        links[np.arange(length.sum()) + np.repeat(start - np.cumsum(length) + length, length)] = of_leg
    return pointer, links


def _followed(first: Routes, second: Routes, index: NDArray[np.int32]) -> Routes:
    """The routes of both, one after the other; index: of each message among them."""
    return Routes(
        index,
        np.concatenate([first.src, second.src]),
        np.concatenate([first.dst, second.dst]),
        np.concatenate([first.route_ptr, first.route_ptr[-1] + second.route_ptr[1:]]),
        np.concatenate([first.route_links, second.route_links]),
    )
