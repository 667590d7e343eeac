"""The compiled event loop of the timing engine: arrays in, arrays out.

With NUMBA_DISABLE_JIT=1 the same code runs as plain Python. The model is
described in `engine`; `reference` states it again, uncompiled and event by event. Three properties make it fast:

* At its first link a message is one event: its packets are ready together, so they follow back to back (a train).
* Packet k + 1 of a train becomes an event when that of packet k at the second link is run. Packets that leave a link do
  so in order, so all but the first stand in a line outside the heap: it holds about one event per link, not one per
  packet that waits.
* The end of an op or of a message is known when it starts, so it is passed on at once and needs no event.

Events are ordered by (time, key). A key holds ids that every rank count agrees on: op id - OP_KEYS for ops, message id
and packet index for packets. An event is four numbers, time, key, position and tail: position is the index in
`route_links` of the link that the packet is about to enter, tail is when its last byte comes in there.
"""

import numpy as np
from numpy.typing import NDArray

from meshemu.network.compiled import compiled
from meshemu.network.heap import EVENT, pop, push, replace
from meshemu.network.state import (
    BUSY,
    CARRIED,
    DEPTH,
    EVENTS,
    FREE,
    HEAP,
    HOPS,
    LINE,
    LINE_FREE,
    LINE_HEAD,
    LINE_HEAP,
    LINE_TAIL,
    LINE_TIME,
    NEXT_START,
    OUT,
    PACKETS,
    QUEUE,
    QUEUE_FREE,
    QUEUE_HEAD,
    QUEUE_MAX,
    QUEUE_TAIL,
    ROOM,
    SHIFT,
    WAIT,
    Network,
    State,
    Work,
)

__all__ = [
    "FIRST_SHIFT",
    "MAX_PACKETS",
    "NEVER",
    "PACKET_BITS",
    "accept",
    "begin",
    "coalesce",
    "invert",
    "next_time",
    "run",
]

Ints = NDArray[np.int64]

NEVER = 2**63 - 1
OP_KEYS = 2**62
PACKET_BITS = 31
MAX_PACKETS = 2**PACKET_BITS
ARRIVED = -1  # position of a row that tells the rank of the destination when a message arrives
FIRST_SHIFT = 10  # the narrowest timeline bin is 2**10 = 1024 ps

SEND, RECV, REDUCE = 1, 2, 3  # values of program.OpKind, as constants that the compiler sees


@compiled
def invert(ptr: Ints, target: Ints, out_ptr: Ints, out: Ints) -> None:
    """Reverse a graph in CSR form: write for each target the sources that name it, ascending.

    out_ptr: int64[n_targets + 2], zeros; its first n_targets + 1 entries become the pointers into `out`, which is as
    long as `target`.
    """
    for entry in range(len(target)):
        out_ptr[target[entry] + 2] += 1
    for node in range(2, len(out_ptr)):
        out_ptr[node] += out_ptr[node - 1]
    for source in range(len(ptr) - 1):
        for entry in range(ptr[source], ptr[source + 1]):
            node = target[entry]
            out[out_ptr[node + 1]] = source
            out_ptr[node + 1] += 1


@compiled
def _serialisation(size: int, num: int, den: int) -> int:
    """ceil(size * num / den) ps; most links have a whole number of ps per byte, which spares the division."""
    if den == 1:
        return size * num
    return (size * num + den - 1) // den


@compiled
def coalesce(busy_bins: Ints) -> None:
    """Double the width of every timeline bin: bin b becomes the sum of bins 2b and 2b + 1."""
    n_links, n_bins = busy_bins.shape
    for link in range(n_links):
        for b in range(n_bins):
            total = 0
            for half in range(2 * b, min(2 * b + 2, n_bins)):
                total += busy_bins[link, half]
            busy_bins[link, b] = total


@compiled
def _add_busy(busy_bins: Ints, link: int, start: int, end: int, shift: int) -> int:
    """Add the busy time start <= t < end of a link to the timeline; returns log2 of the bin width."""
    n_bins = busy_bins.shape[1]
    while (end - 1) >> shift >= n_bins:
        coalesce(busy_bins)
        shift += 1
    b = start >> shift
    while start < end:
        edge = (b + 1) << shift
        stop = min(edge, end)
        busy_bins[link, b] += stop - start
        start = stop
        b += 1
    return shift


@compiled
def _enqueue(link: Ints, queue: Ints, free: int, arrival: int, start: int) -> int:
    """Count a packet that arrives at a link and enters it at `start` among those waiting; returns the free entry.

    `link` is the row of the link. Packets enter in the order of arrival, so those that no longer wait are the first of
    the list; each entry is added and removed once.
    """
    if start == arrival:
        if link[QUEUE] > 0:
            queue[link[QUEUE_TAIL], 0] = free
            free = link[QUEUE_HEAD]
            link[QUEUE] = 0
        return free
    while link[QUEUE] > 0 and queue[link[QUEUE_HEAD], 1] <= arrival:
        first = link[QUEUE_HEAD]
        link[QUEUE_HEAD] = queue[first, 0]
        queue[first, 0] = free
        free = first
        link[QUEUE] -= 1
    entry = free
    free = queue[entry, 0]
    queue[entry, 1] = start
    if link[QUEUE] == 0:
        link[QUEUE_HEAD] = entry
    else:
        queue[link[QUEUE_TAIL], 0] = entry
    link[QUEUE_TAIL] = entry
    link[QUEUE] += 1
    if link[QUEUE] > link[QUEUE_MAX]:
        link[QUEUE_MAX] = link[QUEUE]
    return free


@compiled
def _release(work: Work, state: State, op: int) -> None:
    """An op has nothing left to wait for: give it to its unit or to the network, or end it."""
    kind, time, scalar = work.kind[op], state.ready[op], state.scalar
    state.start[op] = time
    message = work.message[op]
    if kind == SEND:
        scalar[ROOM] -= 1
        push(state.heap, scalar, time, message << PACKET_BITS, work.route[message], time)
    elif kind != RECV and work.duration[op] > 0:
        scalar[ROOM] -= 1
        push(state.heap, scalar, time, op - OP_KEYS, op, time)
    else:
        state.end[op] = max(time, state.arrival[message]) if kind == RECV else time
        state.stack[scalar[DEPTH]] = op
        scalar[DEPTH] += 1


@compiled
def _pass_on(work: Work, state: State) -> None:
    """Pass the ends of the ops on the stack to their successors."""
    scalar = state.scalar
    while scalar[DEPTH] > 0:
        scalar[DEPTH] -= 1
        op = state.stack[scalar[DEPTH]]
        end = state.end[op]
        for entry in range(work.successor_ptr[op], work.successor_ptr[op + 1]):
            successor = work.successor[entry]
            state.ready[successor] = max(state.ready[successor], end)
            state.waiting[successor] -= 1
            if state.waiting[successor] == 0:
                _release(work, state, successor)


@compiled
def _end_op(work: Work, state: State, op: int, end: int) -> None:
    """Record when an op ends and pass it on."""
    state.end[op] = end
    state.stack[0] = op
    state.scalar[DEPTH] = 1
    _pass_on(work, state)


@compiled
def _arrive(work: Work, state: State, message: int, time: int) -> None:
    """A message has arrived at a device of this rank."""
    state.arrival[message] = time
    op = work.recv_op[message]
    if op >= 0:
        state.waiting[op] -= 1
        if state.waiting[op] == 0:
            _release(work, state, op)
            _pass_on(work, state)


@compiled
def begin(work: Work, state: State, first: Ints) -> None:
    """Release the ops of this rank that wait for nothing, `first`. Called once, before `run`."""
    for i in range(len(first)):
        _release(work, state, first[i])
        _pass_on(work, state)


@compiled
def accept(work: Work, state: State, rows: Ints) -> None:
    """Take in event rows [time, key, position, tail] that came from other ranks; the heap has room for them."""
    for i in range(len(rows)):
        if rows[i, 2] == ARRIVED:
            _arrive(work, state, rows[i, 1], rows[i, 0])
        else:
            push(state.heap, state.scalar, rows[i, 0], rows[i, 1], rows[i, 2], rows[i, 3])


@compiled
def _join_line(
    link: Ints, line: Ints, scalar: Ints, time: int, key: int, position: int, tail: int, last_time: int
) -> bool:
    """Put a packet's event at its next link at the end of the line of the link that it leaves (`link` is the row).

    last_time: of the last packet of its train. False if the event has to enter the heap now: no other of the line is
    there to be followed, or it ties with the last, when the heap has to decide who goes first.
    """
    joins = link[LINE_HEAP] > 0 and time > link[LINE_TIME]
    link[LINE_TIME] = last_time
    if not joins:
        link[LINE_HEAP] += 1
        return False
    entry = scalar[LINE_FREE]
    scalar[LINE_FREE] = line[entry, 0]
    line[entry, 1], line[entry, 2], line[entry, 3], line[entry, 4] = time, key, position, tail
    if link[LINE] == 0:
        link[LINE_HEAD] = entry
    else:
        line[link[LINE_TAIL], 0] = entry
    link[LINE_TAIL] = entry
    link[LINE] += 1
    return True


@compiled
def _follow(link: Ints, line: Ints, heap: Ints, scalar: Ints) -> bool:
    """The first event of the heap is from the line of this link: put the next of the line in its place, if any."""
    if link[LINE] == 0:
        link[LINE_HEAP] -= 1
        return False
    entry = link[LINE_HEAD]
    replace(heap, scalar, line[entry, 1], line[entry, 2], line[entry, 3], line[entry, 4])
    link[LINE_HEAD] = line[entry, 0]
    link[LINE] -= 1
    line[entry, 0] = scalar[LINE_FREE]
    scalar[LINE_FREE] = entry
    return True


@compiled
def _send_out(out: Ints, scalar: Ints, time: int, key: int, position: int, tail: int, owner: int) -> None:
    """Put an event in the outbox for the rank `owner`."""
    row = out[scalar[OUT]]
    row[0], row[1], row[2], row[3], row[4] = time, key, position, tail, owner
    scalar[OUT] += 1


@compiled
def next_time(work: Work, state: State) -> int:
    """Time of the first pending event, NEVER if there is none."""
    time = NEVER
    if state.scalar[HEAP] > 0:
        time = state.heap[0]
    if state.scalar[NEXT_START] < len(work.start):
        time = min(time, work.start[state.scalar[NEXT_START], 0])
    return time


@compiled
def run(network: Network, work: Work, state: State, packet_bytes: int, rank: int, horizon: int) -> bool:
    """Run the events before `horizon`. False if it stopped early because the heap, outbox or pool must grow."""
    heap, out, scalar, starts = state.heap, state.out, state.scalar, work.start
    heap_room, out_room, timeline = len(heap) // EVENT, len(out), state.busy_bins.shape[1] > 0
    done = True
    while True:
        n, next_start = scalar[HEAP], scalar[NEXT_START]
        root = n > 0
        if next_start < len(starts):
            time = starts[next_start, 0]
            root = root and (heap[0] < time or (heap[0] == time and heap[1] < starts[next_start, 1]))
            if not root:
                key, position, tail = starts[next_start, 1], starts[next_start, 2], starts[next_start, 3]
        elif not root:
            break
        if root:  # the event stays at the root of the heap, where it is in nobody's way, until another replaces it
            time, key, position, tail = heap[0], heap[1], heap[2], heap[3]
        if time >= horizon:
            break
        full = n + scalar[ROOM] + 2 > heap_room or scalar[OUT] + 2 > out_room
        if full or scalar[QUEUE_FREE] < 0 or scalar[LINE_FREE] < 0:
            done = False
            break
        scalar[NEXT_START] += not root
        scalar[EVENTS] += 1

        if key < 0:
            unit = 1 if work.kind[position] == REDUCE else 0
            start = max(time, state.unit_free[work.device[position], unit])
            end = start + work.duration[position]
            state.unit_free[work.device[position], unit] = end
            state.start[position] = start
            pop(heap, scalar)
            _end_op(work, state, position, end)
            continue

        message = key >> PACKET_BITS
        size = work.size[message]
        link_id = network.route_links[position]
        num, den = network.num[link_id], network.den[link_id]
        link = state.link[link_id]
        start = max(time, link[FREE])
        first = position == work.route[message]
        if first:
            carried = size
            packets = (size + packet_bytes - 1) // packet_bytes
            end = start + _serialisation(size, num, den)
            tail = start + _serialisation(min(size, packet_bytes), num, den)
            last_head = start + _serialisation((packets - 1) * packet_bytes, num, den)
            last = True
            state.depart[message] = start
        else:
            begin_byte = (key & (MAX_PACKETS - 1)) * packet_bytes
            end_byte = min(begin_byte + packet_bytes, size)
            carried = end_byte - begin_byte
            packets = 1
            last_head = start
            last = end_byte == size
            back = network.route_links[position - 1]
            if not last and position == work.route[message] + 1:  # the next packet of the train: head follows tail
                num_back, den_back = network.num[back], network.den[back]
                next_byte = min(end_byte + packet_bytes, size)
                sent_ps = _serialisation(end_byte, num_back, den_back)
                next_tail = tail + _serialisation(next_byte, num_back, den_back) - sent_ps
                replace(heap, scalar, tail, key + 1, position, next_tail)
                root = False
            elif network.owner[back] == rank:
                root = not _follow(state.link[back], state.line, heap, scalar)
            end = max(start + _serialisation(end_byte, num, den) - _serialisation(begin_byte, num, den), tail)
            tail = end
        link[FREE] = end
        link[CARRIED] += carried
        link[BUSY] += end - start
        link[WAIT] += start - time
        link[PACKETS] += packets
        scalar[HOPS] += packets
        scalar[QUEUE_FREE] = _enqueue(link, state.queue, scalar[QUEUE_FREE], time, start)
        if timeline:
            scalar[SHIFT] = _add_busy(state.busy_bins, link_id, start, end, scalar[SHIFT])

        latency = network.latency[link_id]
        following = network.route_links[position + 1]
        if following >= 0 and network.owner[following] == rank:
            head = start + latency
            if not _join_line(link, state.line, scalar, head, key, position + 1, tail + latency, last_head + latency):
                if root:
                    replace(heap, scalar, head, key, position + 1, tail + latency)
                else:
                    push(heap, scalar, head, key, position + 1, tail + latency)
                root = False
        if root:
            pop(heap, scalar)
        if following >= 0 and network.owner[following] != rank:
            _send_out(out, scalar, start + latency, key, position + 1, tail + latency, network.owner[following])
        elif following < 0 and last and work.dst_owner[message] == rank:
            _arrive(work, state, message, end + latency)
        elif following < 0 and last:
            _send_out(out, scalar, end + latency, message, ARRIVED, end + latency, work.dst_owner[message])
        if first and work.send_op[message] >= 0:
            _end_op(work, state, work.send_op[message], end)
    return done
