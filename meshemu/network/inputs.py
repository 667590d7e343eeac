"""From a Job to the arrays that the kernels of one rank read."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from meshemu.mesh import Routes, cut_links
from meshemu.network.branches import owned
from meshemu.network.compiled import at, copy, kernel, writable
from meshemu.network.events import EVENT, KIND_BITS, PACKET_BITS, SINGLE, Ints
from meshemu.network.prepare import Job
from meshemu.network.reach import find_reach
from meshemu.network.shares import Share
from meshemu.network.state import Network, Work
from meshemu.program.units import Units

__all__ = ["network_of", "work_of"]

Ids = NDArray[np.int32]


def network_of(job: Job, rank_of_vertex: Ids, lookahead: int | None) -> Network:
    """Links and routes for the kernels; a link belongs to the rank of its source device.

    lookahead: least latency in ps of the links between ranks, None if there are none.
    """
    mesh, n_branches = job.mesh, len(job.branches.link)
    latency = writable(mesh.latency_ps, np.int64)
    route_links = np.concatenate((job.branches.link, _closed(job.routes)))
    reach, onward = np.zeros((2, 0 if lookahead is None else len(route_links)), np.int64)
    if lookahead is not None:
        is_cut = np.zeros(mesh.n_links, np.int64)
        is_cut[cut_links(mesh, rank_of_vertex)] = 1
        find_reach(route_links, n_branches, latency, is_cut, np.zeros(mesh.n_links, np.int64), reach, onward)
    return Network(
        num=job.num,
        den=job.den,
        latency=latency,
        owner=rank_of_vertex[mesh.link_src].astype(np.int64),
        route_links=route_links,
        branch=owned(job.branches, job.mesh, rank_of_vertex),
        combine=int(job.mesh.combine_ps),
        reach=reach,
        onward=onward,
        lookahead=0 if lookahead is None else lookahead,
    )


def work_of(job: Job, rank_of_device: Ids, rank: int, share: Share) -> tuple[Work, Ints]:
    """Messages, and the ops of one rank, for its kernels; and the messages that go from one rank to another."""
    program, n, n_own = job.program, len(job.size_bytes), len(share.waiting)
    first = len(job.branches.link) + job.routes.route_ptr[:-1] + np.arange(job.routes.n_routes)
    flow, where, dst_owner = job.alone, np.empty(n, np.int64), np.empty(n, np.int32)
    _take(first << KIND_BITS | SINGLE, writable(job.routes.index, np.int32), job.alone, where)
    if len(job.branches.member):
        flow = np.arange(n)
        flow[job.branches.member], where[job.branches.member] = job.branches.flow, job.branches.where
    if program is None:
        np.take(rank_of_device, job.dst, out=dst_owner)
        send_op = recv_op = np.full(n, -1, np.int64)
        crossing, sent = np.zeros(0, np.int64), np.flatnonzero(rank_of_device[job.src] == rank)
        start = np.stack([job.ready_ps[sent], sent << PACKET_BITS, where[sent], job.ready_ps[sent]], axis=1)
    else:
        send_op, recv_op, crossing = np.empty((3, n), np.int64)
        n_crossing = _assign(
            writable(job.src, np.int32), writable(job.dst, np.int32), writable(program.send_op, np.int64),
            writable(program.recv_op, np.int64), rank_of_device, rank, share.number, n_own, send_op, recv_op, dst_owner,
            crossing,
        )  # fmt: skip
        crossing, start = crossing[:n_crossing], np.zeros((0, EVENT), np.int64)
    kind, device, unit, duration, message = _ops_of(job, share, rank)
    work = Work(
        size=writable(job.size_bytes, np.int64),
        flow=flow,
        where=where,
        send_op=send_op,
        recv_op=recv_op,
        dst_owner=dst_owner,
        kind=kind,
        device=device,
        unit=unit,
        combining=job.units.combining,
        duration=duration,
        message=message,
        successor_ptr=share.successor_ptr,
        successor=share.successor,
        after=np.empty(n_own + 1 + len(crossing), np.int64),
        start=np.ascontiguousarray(start),
    )
    return work, crossing


@kernel
def _take(of_route: Ints, route: Ids, alone: Ints, where: Ints) -> None:
    """Fill where[alone[i]] with of_route[route[i]]."""
    for i in range(len(route)):
        where[at(alone[i])] = of_route[at(route[i])]


@kernel
def _assign(
    src: Ids, dst: Ids, send_op: Ints, recv_op: Ints, rank_of_device: Ids, rank: int, number: Ids, n_own: int,
    own_send: Ints, own_recv: Ints, dst_owner: Ids, crossing: Ints,
) -> int:
    """Fill what `Work` says of the ends of messages, and crossing, those between ranks; returns how many these are.

    The ops that receive these have places from n_own + 1 on; place n_own is that of all others of other ranks.
    """
    n_crossing = 0
    for message in range(len(src)):
        source, target = rank_of_device[at(src[message])], rank_of_device[at(dst[message])]
        if source != target:
            crossing[at(n_crossing)] = message
            n_crossing += 1
        place: int = number[at(recv_op[message])]
        if place < 0:
            place = n_own if source == target else n_own + n_crossing
        own_send[message], own_recv[message], dst_owner[message] = number[at(send_op[message])], place, target
    return n_crossing


@kernel
def _gather(
    runs: Ints, rank: int, kind: NDArray[np.int8], device: Ids, unit: Ids, duration: Ints, message: Ints,
    own_kind: NDArray[np.int8], own_device: Ids, own_unit: Ids, own_duration: Ints, own_message: Ints,
) -> None:
    """Fill what `Work` says of the ops of a rank, from what the Program says of all."""
    begin = 0
    for run in range(len(runs)):
        if runs[run, 2] == rank:
            first, behind = runs[run, 0], runs[run, 1]
            end = begin + behind - first
            copy(kind[first:behind], own_kind[begin:end])
            copy(device[first:behind], own_device[begin:end])
            copy(unit[first:behind], own_unit[begin:end])
            copy(duration[first:behind], own_duration[begin:end])
            copy(message[first:behind], own_message[begin:end])
            begin = end


def _ops_of(job: Job, share: Share, rank: int) -> tuple[NDArray[Any], ...]:
    """Kind, device, unit, duration and message of the ops of a rank."""
    program = job.program
    if program is None:
        return tuple(np.zeros(0, dtype) for dtype in (np.int8, np.int32, np.int32, np.int64, np.int64))
    of_all = (
        writable(program.kind, np.int8), writable(program.device, np.int32), _columns(job.units),
        writable(job.duration_ps, np.int64), writable(program.message, np.int64),
    )  # fmt: skip
    if 0 < len(share.waiting) == program.n_ops:
        return of_all
    of_own = tuple(np.empty(len(share.waiting), values.dtype) for values in of_all)
    _gather(share.rows.runs, rank, *of_all, *of_own)
    return of_own


def _columns(units: Units) -> Ids:
    """The column of `State.unit_free` that each op takes: those of all units that combine come first."""
    if units.combining == 1:
        return writable(units.of_op, np.int32)
    return units.of_op + np.where(units.of_op > 0, np.int32(units.combining - 1), np.int32(0))


def _closed(routes: Routes) -> Ints:
    """The links of all routes with -1 after each route, so that a packet needs no lookup to see its last hop."""
    closed = np.full(len(routes.route_links) + routes.n_routes, -1, np.int64)
    route = np.repeat(np.arange(routes.n_routes), np.diff(routes.route_ptr))
    closed[np.arange(len(routes.route_links)) + route] = routes.route_links
    return closed
