"""The channels of back-pressure mode: the links of a mesh, and what joins each device to its router.

Where the hardware states an injection or ejection link, that is it. Elsewhere local channels are added, each of one
flit per cycle: one each way for every device, or one for every link that it has.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.errors import InputError
from meshemu.hardware import Router
from meshemu.mesh import Mesh, Routes, link_rates
from meshemu.network.events import Ints
from meshemu.network.prepare import LARGEST_PS

__all__ = ["Channels", "channels_of", "whole_routes"]


@dataclass(frozen=True, eq=False)
class Channels:
    """Per channel, int64: num / den, ps per flit; latency_ps; near, far: devices that send and receive, one and the
    same for local channels. injects, ejects: bool, which way a local channel goes. cycle_ps: of the routers.
    injection, ejection: for each link, the local channel of its sender and of its receiver that serves it, int64
    [n_links]; first_injection, first_ejection: the first local channel of each device, int64[n_devices].
    """

    num: Ints
    den: Ints
    latency_ps: Ints
    near: Ints
    far: Ints
    injects: NDArray[np.bool_]
    ejects: NDArray[np.bool_]
    cycle_ps: int
    injection: Ints
    ejection: Ints
    first_injection: Ints
    first_ejection: Ints


def channels_of(mesh: Mesh, router: Router) -> Channels:
    """Links first, with their ids, then injection channels, then ejection channels.

    A cycle is that of the clock or, without one, a flit on the fastest link, in whole ps, rounded down. No channel
    carries more than one flit per cycle.
    """
    num, den = link_rates(mesh)
    if float(num.max(initial=1)) * router.flit_bytes >= LARGEST_PS:
        raise InputError(f"flit_bytes = {router.flit_bytes} x {num.max()} (numerator of a link's ps per byte) >= 2**62")
    num = num * router.flit_bytes
    between = mesh.link_src != mesh.link_dst
    flit_ps = num[between] // den[between] if between.any() else num // den
    cycle = router.cycle_ps or max(1, int(flit_ps.min(initial=2**62) if flit_ps.size else 1))
    slower = num >= cycle * den
    injects, ejects = np.zeros((2, mesh.n_links), np.bool_)
    injects[mesh.injection_link[mesh.injection_link >= 0]] = True
    ejects[mesh.ejection_link[mesh.ejection_link >= 0]] = True
    into = _local_channels(mesh, mesh.link_src, between, mesh.injection_link, mesh.n_links, router)
    out_of = _local_channels(mesh, mesh.link_dst, between, mesh.ejection_link, mesh.n_links + len(into.owner), router)
    owner = np.concatenate([into.owner, out_of.owner])
    added = np.repeat([True, False], [len(into.owner), len(out_of.owner)])
    return Channels(
        num=np.concatenate([np.where(slower, num, cycle), np.full(len(owner), cycle)]),
        den=np.concatenate([np.where(slower, den, 1), np.ones(len(owner), np.int64)]),
        latency_ps=np.concatenate([mesh.latency_ps, np.zeros(len(owner), np.int64)]),
        near=np.concatenate([mesh.link_src, owner]),
        far=np.concatenate([mesh.link_dst, owner]),
        injects=np.concatenate([injects, added]),
        ejects=np.concatenate([ejects, ~added]),
        cycle_ps=cycle,
        injection=into.serving,
        ejection=out_of.serving,
        first_injection=into.first,
        first_ejection=out_of.first,
    )


def whole_routes(paths: Routes, levels: NDArray[np.int16], channels: Channels) -> tuple[Ints, Ints, NDArray[np.int16]]:
    """(first, channel, level): where each route begins among the channels of all routes, local channels included.

    levels: of the links of `paths`; local channels are on level 0.
    """
    n_links = len(channels.injection)
    length = np.diff(paths.route_ptr)
    some = length > 0
    entry, leave = channels.first_injection[paths.src], channels.first_ejection[paths.dst]
    entry[some] = channels.injection[paths.route_links[paths.route_ptr[:-1][some]]]
    leave[some] = channels.ejection[paths.route_links[paths.route_ptr[1:][some] - 1]]
    before, after = (entry >= n_links).astype(np.int64), (leave >= n_links).astype(np.int64)
    end = np.cumsum(length + before + after)
    first = end - (length + before + after)
    n_hops = int(end[-1]) if end.size else 0
    channel, level = np.zeros(n_hops, np.int64), np.zeros(n_hops, np.int16)
    at = np.arange(len(paths.route_links)) + np.repeat(first + before - paths.route_ptr[:-1], length)
    channel[at], level[at] = paths.route_links, levels
    channel[first[before > 0]] = entry[before > 0]
    channel[end[after > 0] - 1] = leave[after > 0]
    return first, channel, level


@dataclass(frozen=True, eq=False)
class _Local:
    """owner: device of each added channel; serving: local channel of each link; first: of each device."""

    owner: Ints
    serving: Ints
    first: Ints


def _local_channels(
    mesh: Mesh, end: NDArray[np.int32], between: NDArray[np.bool_], stated: NDArray[np.int32], base: int, router: Router
) -> _Local:
    """Local channels one way. end: the device of each link that they join; stated: those of the hardware, or -1."""
    n_links_of = np.bincount(end[between], minlength=mesh.n_devices)
    wanted = np.maximum(1, n_links_of) if router.local_ports == "per_link" else np.ones(mesh.n_devices, np.int64)
    n_added = np.where(stated >= 0, 0, wanted)
    first = np.where(stated >= 0, stated, base + np.cumsum(n_added) - n_added).astype(np.int64)
    serving = first[end]
    if router.local_ports == "per_link":
        links = np.flatnonzero(between & (stated[end] < 0))
        links = links[np.argsort(end[links], kind="stable")]
        serving[links] += np.arange(len(links)) - np.searchsorted(end[links], end[links])
    return _Local(owner=np.repeat(np.arange(mesh.n_devices), n_added), serving=serving, first=first)
