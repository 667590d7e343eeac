"""What the kernels read and change, as arrays; the numbers of fields and columns end up in the compiled code."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ARRIVES",
    "BRANCH_FIELDS",
    "BUSY",
    "CARRIED",
    "COPY",
    "DEPARTS",
    "DEPTH",
    "EVENTS",
    "FREE",
    "HEADERS",
    "HEAP",
    "HELD",
    "HELD_FIRST",
    "HELD_LAST",
    "HOPS",
    "HORIZON",
    "INPUT",
    "INPUT_FIELDS",
    "LEAVES",
    "LINE",
    "LINE_FREE",
    "LINE_HEAD",
    "LINE_HEAP",
    "LINE_TAIL",
    "LINE_TIME",
    "LINK_FIELDS",
    "NEXT_START",
    "NONE",
    "ONWARD",
    "ONWARD_LAST",
    "OPEN",
    "OPEN_FIRST",
    "OPEN_HEAD",
    "OPEN_IN",
    "OPEN_OUT",
    "OPEN_POSITION",
    "OPEN_START",
    "OUT",
    "OWNER",
    "PACKETS",
    "QUEUE",
    "QUEUE_FREE",
    "QUEUE_HEAD",
    "QUEUE_MAX",
    "QUEUE_TAIL",
    "RESTS",
    "ROOM",
    "SCALARS",
    "SHIFT",
    "SHY",
    "VOID",
    "WAIT",
    "Network",
    "State",
    "Work",
]

Ints = NDArray[np.int64]

NONE = -1  # no train in OPEN, no event in VOID, nothing in a column of `Network.branch`

# Columns of `State.link`: when the link is free; its statistics; the trains that come to it (see `trains`): how many
# have a rest in the heap, for how many more packets none is opened; its queue (packets that wait for it); its line
# (events of packets that leave it): how many of these are in the heap, how many are not, and the time of the last one;
# the event of a train that left it and that is void; the open train: key of its first packet that is not settled, and
# of the first that was not when it was opened, its position, the links whose rates space the heads that come in and
# those that go out, and when head and start of packet 0 would have been in that spacing; log2 of its bin width.
FREE, CARRIED, BUSY, WAIT, PACKETS, QUEUE_MAX, OPEN, RESTS, SHY = range(9)
QUEUE, QUEUE_HEAD, QUEUE_TAIL, LINE_HEAP, LINE, LINE_HEAD, LINE_TAIL, LINE_TIME, VOID = range(9, 18)
OPEN_FIRST, OPEN_POSITION, OPEN_IN, OPEN_OUT, OPEN_HEAD, OPEN_START, SHIFT, LINK_FIELDS = range(18, 26)

# Entries of `State.scalar`: events in the heap, first free entry of `queue` and of `line`, next row of `Work.start`,
# rows in the outbox, events for which the heap keeps room since their ops are not yet in it, ops on the stack, events
# and packet hops done, of the rows in the outbox those at its front that say something of each rank (see `reach`), the
# time before which events run now.
HEAP, QUEUE_FREE, LINE_FREE, NEXT_START, OUT, ROOM, DEPTH, EVENTS, HOPS, HEADERS, HORIZON, SCALARS = range(12)

# Columns of `Network.branch` (see `branching`). Of a branch: the next branch that takes a copy of what enters this one;
# `where` of the event of a packet that comes out of it, for all but the last packet and for the last one (that of a
# train is one more); the rank of the device where it comes out; the message that has arrived with the last packet, and
# the one that departs with the first. Of an input of a merge: the next input, in a ring, and the branch that leaves it.
COPY, ONWARD, ONWARD_LAST, OWNER, ARRIVES, DEPARTS, INPUT, LEAVES, BRANCH_FIELDS = range(9)

# Columns of `State.input`: packets that wait at an input of a merge, and the first and last entry of their list; for
# what a device contributes itself, of which all packets are there, when it came in place of the list.
HELD, HELD_FIRST, HELD_LAST, INPUT_FIELDS = range(4)


class Network(NamedTuple):
    """Links and routes, the same on every rank.

    num, den: link rate in ps per byte as a fraction; latency: ps; owner: rank that owns the link; int64[n_links].
    route_links: link ids, first of the branches of trees (-1: no link, an input that a device feeds itself), then of
    all routes in order, each route closed by -1. branch: [n_branches, BRANCH_FIELDS]; combine: ps that a merge takes.
    reach, onward: of every position in route_links, how soon it is felt on other ranks and how far its end is (see
    `reach`), both empty where one rank runs alone; lookahead: ps.
    """

    num: Ints
    den: Ints
    latency: Ints
    owner: Ints
    route_links: Ints
    branch: Ints
    combine: int
    reach: Ints
    onward: Ints
    lookahead: int


class Work(NamedTuple):
    """Messages, the same on every rank but for their ops, and the ops of a rank, by their numbers in its `Share`.

    Messages: size in bytes; flow: id under which it travels; where: of the event with which it starts; dst_owner: rank
    of the destination; send_op (-1: none, or another rank's); recv_op (-1: none; of another rank's, its place in
    `after`). Ops: kind int8, device int32, unit int32 (column of unit_free, the first of `combining` alike if it is 0;
    -1: none), duration ps, message, successors as CSR. after: how soon the end of an op is felt on other ranks, of ops,
    then of those of other ranks that `recv_op` names (see `after`); meaningless where one rank runs alone.
    start: rows [time, key, where, tail] of messages that wait for nothing, sorted by (time, key).
    """

    size: Ints
    flow: Ints
    where: Ints
    send_op: Ints
    recv_op: Ints
    dst_owner: NDArray[np.int32]
    kind: NDArray[np.int8]
    device: NDArray[np.int32]
    unit: NDArray[np.int32]
    combining: int
    duration: Ints
    message: Ints
    successor_ptr: NDArray[np.int32]
    successor: NDArray[np.int32]
    after: Ints
    start: Ints


class State(NamedTuple):
    """What changes: clocks, the heap, counters. Times in ps.

    link: [n_links, LINK_FIELDS]; unit_free: [n_devices, n_units], first those that combine; per message depart,
    arrival;
    waiting: events that an op still waits for; start, end per op (start: when it is ready, as far as is known, until
    it has started); busy_bins: [n_links, n_bins];
    heap: [n, EVENT], a binary heap; out: rows as in `events.ROW`; queue: [n, 2],
    lists of the start times of waiting packets; line: [n, 5], lists of events, the next entry in column 0;
    input: [n_branches, INPUT_FIELDS], whose lists are in `line` too;
    stack: scratch, one entry per op; scalar: [SCALARS].
    """

    link: Ints
    unit_free: Ints
    depart: Ints
    arrival: Ints
    waiting: NDArray[np.int32]
    start: Ints
    end: Ints
    busy_bins: Ints
    heap: Ints
    out: Ints
    queue: Ints
    line: Ints
    input: Ints
    stack: Ints
    scalar: Ints
