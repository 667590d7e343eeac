"""What the kernels read and change, as arrays; the numbers of fields and columns end up in the compiled code."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BUSY",
    "CARRIED",
    "DEPTH",
    "EVENTS",
    "FREE",
    "HEAP",
    "HOPS",
    "LINE",
    "LINE_FREE",
    "LINE_HEAD",
    "LINE_HEAP",
    "LINE_TAIL",
    "LINE_TIME",
    "LINK_FIELDS",
    "NEXT_START",
    "OUT",
    "PACKETS",
    "QUEUE",
    "QUEUE_FREE",
    "QUEUE_HEAD",
    "QUEUE_MAX",
    "QUEUE_TAIL",
    "ROOM",
    "SCALARS",
    "SHIFT",
    "WAIT",
    "Network",
    "State",
    "Work",
]

Ints = NDArray[np.int64]

# Columns of `State.link`: when the link is free; its statistics; its queue (packets that wait for it); its line (events
# of packets that leave it): how many of these are in the heap, how many are not, and the time of the last one.
FREE, CARRIED, BUSY, WAIT, PACKETS, QUEUE_MAX = range(6)
QUEUE, QUEUE_HEAD, QUEUE_TAIL, LINE_HEAP, LINE, LINE_HEAD, LINE_TAIL, LINE_TIME, LINK_FIELDS = range(6, 15)

# Entries of `State.scalar`: events in the heap, first free entry of `queue` and of `line`, next row of `Work.start`,
# rows in the outbox, log2 of the timeline bin width, events for which the heap keeps room since their ops are not yet
# in it, ops on the stack, events and packet hops done.
HEAP, QUEUE_FREE, LINE_FREE, NEXT_START, OUT, SHIFT, ROOM, DEPTH, EVENTS, HOPS, SCALARS = range(11)


class Network(NamedTuple):
    """Links and routes, the same on every rank.

    num, den: link rate in ps per byte as a fraction; latency: ps; owner: rank that owns the link; int64[n_links].
    route_links: link ids of all routes in order, each route closed by -1.
    """

    num: Ints
    den: Ints
    latency: Ints
    owner: Ints
    route_links: Ints


class Work(NamedTuple):
    """Messages and ops, the same on every rank but `start`.

    Messages: size in bytes; route: index of the first link in Network.route_links; send_op, recv_op (-1: none);
    dst_owner: rank of the destination. Ops: kind int8, device int32, duration ps, message, successors as CSR.
    start: rows [time, key, position, time] of messages that wait for nothing, sorted by (time, key).
    """

    size: Ints
    route: Ints
    send_op: Ints
    recv_op: Ints
    dst_owner: Ints
    kind: NDArray[np.int8]
    device: NDArray[np.int32]
    duration: Ints
    message: Ints
    successor_ptr: Ints
    successor: Ints
    start: Ints


class State(NamedTuple):
    """What changes: clocks, the heap, counters. Times in ps.

    link: [n_links, LINK_FIELDS]; unit_free: [n_devices, 2], compute and communication unit; per message depart,
    arrival;
    waiting: events that an op still waits for; ready, start, end per op; busy_bins: [n_links, n_bins];
    heap: EVENT numbers per event, a binary heap; out: rows of an event and the rank it is for; queue: [n, 2],
    lists of the start times of waiting packets; line: [n, 5], lists of events, the next entry in column 0;
    stack: scratch, one entry per op; scalar: [SCALARS].
    """

    link: Ints
    unit_free: Ints
    depart: Ints
    arrival: Ints
    waiting: Ints
    ready: Ints
    start: Ints
    end: Ints
    busy_bins: Ints
    heap: Ints
    out: Ints
    queue: Ints
    line: Ints
    stack: Ints
    scalar: Ints
