"""The compiled event loop of the timing engine: arrays in, arrays out.

With NUMBA_DISABLE_JIT=1 the same code runs as plain Python. The model is described in `engine`; `reference` states it
again, uncompiled and event by event. What makes it fast has modules of its own: `trains` (many packets, one event),
`outlets` (a small heap), `ops` (ends are passed on at once); `branching` has the trees. `events` says what an event is.
"""

from meshemu.network.branching import enter_branch, meet
from meshemu.network.compiled import at, compiled, kernel
from meshemu.network.events import (
    ARRIVED,
    BRANCH,
    CUT,
    CUT_KEYS,
    HEADER,
    KIND_BITS,
    KIND_MASK,
    MERGE,
    NEVER,
    PACKET_BITS,
    PACKET_MASK,
    REST,
    SINGLE,
    TRAIN,
    Ints,
)
from meshemu.network.heap import pop, push, replace
from meshemu.network.link_statistics import enter
from meshemu.network.ops import arrive, end_op, start_op
from meshemu.network.outlets import follow, join_line, send_out
from meshemu.network.reach import foresee
from meshemu.network.state import (
    EVENTS,
    FREE,
    HEADERS,
    HEAP,
    HORIZON,
    LINE_FREE,
    NEXT_START,
    NONE,
    OPEN,
    OPEN_START,
    OUT,
    QUEUE_FREE,
    RESTS,
    ROOM,
    SHY,
    VOID,
    Network,
    State,
    Work,
)
from meshemu.network.trains import SHORTEST, cut, drop, open_train, serialisation, settle, spacing_out

__all__ = ["EVENTS_OF_ONE", "FULL", "ROWS_OF_ONE", "finish", "run"]

EVENTS_OF_ONE = 6  # most events that one event puts into the heap, besides those of ops
ROWS_OF_ONE = 4  # most rows that one event puts into the outbox
FULL, NO_ROOM = -1, -2  # why a run stops early: before an event, or before the rows of other ranks are taken in


@compiled
def _accept(work: Work, state: State, rows: Ints) -> None:
    """Take in rows that came from other ranks, for which the heap has room: the events, and a new horizon, the least
    effect that this rank and the others tell of. What this rank had for them is gone.
    """
    scalar = state.scalar
    if len(rows) > 0:
        scalar[OUT] = scalar[HEADERS]
        scalar[HORIZON] = NEVER
        for header in range(scalar[HEADERS]):
            scalar[HORIZON] = min(scalar[HORIZON], state.out[header, 5])
    for i in range(len(rows)):
        if rows[i, 2] == HEADER:
            scalar[HORIZON] = min(scalar[HORIZON], rows[i, 5])
        elif rows[i, 2] == ARRIVED:
            arrive(work, state, rows[i, 1], rows[i, 0])
        else:
            push(state.heap, scalar, rows[i, 0], rows[i, 1], rows[i, 2], rows[i, 3])


@kernel
def finish(network: Network, work: Work, state: State, packet_bytes: int) -> bool:
    """Settle what is open after the last event. False if it stopped early because the pool must grow."""
    for link_id in range(len(state.link)):
        if state.link[link_id, OPEN] != NONE and not settle(
            network, work, state, packet_bytes, link_id, NEVER, NEVER
        ):
            return False
    return True


@compiled
def _hand_on(
    network: Network, state: State, rank: int, root: bool, position: int, time: int, key: int, kind: int, tail: int,
    last_time: int,
) -> bool:
    """Pass the event of a packet or train from the link at `position` to the next; returns whether the root stays.

    root: whether the event that is being run is still the root of the heap. last_time: of the train's last packet.
    """
    link_id, following = network.route_links[at(position)], network.route_links[at(position + 1)]
    where = (position + 1) << KIND_BITS | kind
    if network.owner[at(following)] != rank:
        send_out(state.out, state.scalar, time, key, where, tail, network.owner[at(following)])
    elif not join_line(state.link[at(link_id)], state.line, state.scalar, time, key, where, tail, last_time):
        if root:
            replace(state.heap, state.scalar, time, key, where, tail)
        else:
            push(state.heap, state.scalar, time, key, where, tail)
        root = False
    return root


@compiled
def _message(
    network: Network, work: Work, state: State, packet_bytes: int, rank: int, root: bool, position: int, time: int,
    key: int,
) -> bool:
    """A message enters its first link, all packets at once; all but the last go on as a train."""
    link_id, message = network.route_links[at(position)], key >> PACKET_BITS
    link = at(link_id)
    num, den, latency = network.num[link], network.den[link], network.latency[link]
    size = work.size[at(message)]
    whole = (size - 1) // packet_bytes
    start = max(time, state.link[link, FREE])
    end = start + serialisation(size, num, den)
    state.depart[at(message)] = start
    enter(state, link_id, time, start, end, size, whole + 1)
    if network.route_links[at(position + 1)] >= 0:
        last = start + serialisation(whole * packet_bytes, num, den) + latency
        if whole == 1:
            root = _hand_on(network, state, rank, root, position, start + latency, key, SINGLE, last, start + latency)
        elif whole > 1:
            before = start + serialisation((whole - 1) * packet_bytes, num, den) + latency
            root = _hand_on(network, state, rank, root, position, start + latency, key, TRAIN, link_id, before)
        root = _hand_on(network, state, rank, root, position, last, key + whole, SINGLE, end + latency, last)
    return root


@compiled
def _train(
    network: Network, work: Work, state: State, packet_bytes: int, rank: int, root: bool, position: int, time: int,
    key: int, into: int,
) -> bool:
    """Open the train of packet `key`, spaced by the link `into`, at the link at `position`, if that may be.

    Returns whether the root stays; the train is open afterwards if it was opened.
    """
    link_id = network.route_links[at(position)]
    link, latency = state.link[at(link_id)], network.latency[at(link_id)]
    last, packet = (work.size[at(key >> PACKET_BITS)] - 1) // packet_bytes, key & PACKET_MASK
    ends_here = network.route_links[at(position + 1)] < 0
    if link[RESTS] > 0 or last - packet < SHORTEST or (latency == 0 and not ends_here):
        return root
    if link[SHY] > 0:
        link[SHY] -= 1
        return root
    start = max(time, link[FREE])
    spacing = spacing_out(network, link_id, into, packet_bytes, start > time)
    if spacing < 0:
        return root
    open_train(network, link, packet_bytes, key, position, time, start, into, spacing)
    if not ends_here:
        num, den = network.num[at(spacing)], network.den[at(spacing)]
        final = link[OPEN_START] + serialisation((last - 1) * packet_bytes, num, den)
        root = _hand_on(
            network, state, rank, root, position, start + latency, key, TRAIN, spacing, final + latency
        )
    return root


@compiled
def _packet(
    network: Network, work: Work, state: State, packet_bytes: int, rank: int, root: bool, position: int, time: int,
    key: int, tail: int,
) -> bool:
    """One packet enters a link that is not the first of its message; its tail comes in at `tail`."""
    link_id = network.route_links[at(position)]
    link = at(link_id)
    num, den, latency = network.num[link], network.den[link], network.latency[link]
    begin = (key & PACKET_MASK) * packet_bytes
    stop = min(begin + packet_bytes, work.size[at(key >> PACKET_BITS)])
    start = max(time, state.link[link, FREE])
    end = max(start + serialisation(stop, num, den) - serialisation(begin, num, den), tail)
    enter(state, link_id, time, start, end, stop - begin, 1)
    if network.route_links[at(position + 1)] >= 0:
        head = start + latency
        root = _hand_on(network, state, rank, root, position, head, key, SINGLE, end + latency, head)
    return root


@kernel
def run(network: Network, work: Work, state: State, rows: Ints, packet_bytes: int, rank: int) -> int:
    """Take in rows from other ranks and run the events before the horizon.

    Returns the horizon, or FULL or NO_ROOM if it stopped early because the heap, outbox or a pool must grow. With
    several ranks it says, when it is done, when others can feel what is pending.
    """
    heap, out, scalar, starts = state.heap, state.out, state.scalar, work.start
    top = heap[0]
    heap_room, out_room = len(heap) - EVENTS_OF_ONE, len(out) - ROWS_OF_ONE
    if scalar[HEAP] + scalar[ROOM] + len(rows) > heap_room:
        return NO_ROOM
    _accept(work, state, rows)
    horizon: int = scalar[HORIZON]
    while True:
        n, next_start = scalar[HEAP], scalar[NEXT_START]
        root = n > 0
        if next_start < len(starts):
            time = starts[next_start, 0]
            root = root and (top[0] < time or (top[0] == time and top[1] < starts[next_start, 1]))
            if not root:
                key, where, tail = starts[next_start, 1], starts[next_start, 2], starts[next_start, 3]
        elif not root:
            break
        if root:  # the event stays at the root of the heap, where it is in nobody's way, until another replaces it
            time, key, where, tail = top[0], top[1], top[2], top[3]
        if time >= horizon:
            break
        full = n + scalar[ROOM] > heap_room or scalar[OUT] > out_room
        if full or scalar[QUEUE_FREE] < 0 or scalar[LINE_FREE] < 0:
            return FULL
        if key < -CUT_KEYS:
            scalar[EVENTS] += 1
            pop(heap, scalar)
            start_op(work, state, where, time)
            continue

        position, kind = where >> KIND_BITS, where & KIND_MASK
        if kind >= MERGE:
            scalar[EVENTS] += 1
            meet(network, work, state, packet_bytes, position, time, key, kind, tail)
            continue
        link_id = network.route_links[at(position)]
        link = state.link[at(link_id)]
        back = network.route_links[position - 1]  # -1 or another route's last link at the first link of a message
        if link[OPEN] != NONE and not settle(network, work, state, packet_bytes, link_id, time, key):
            return FULL
        scalar[NEXT_START] += not root
        scalar[EVENTS] += 1
        if kind == CUT:
            if link[OPEN] == key + CUT_KEYS:
                drop(network, state, link_id, time, rank)
            else:
                state.link[back, VOID] = key + CUT_KEYS
            pop(heap, scalar)
            continue
        if kind == REST and state.link[back, VOID] == key:
            state.link[back, VOID] = NONE
            link[RESTS] -= 1
            pop(heap, scalar)
            continue
        if link[OPEN] != NONE:
            cut(network, state, packet_bytes, link_id, time, rank)
        if kind >= BRANCH:
            enter_branch(network, work, state, packet_bytes, rank, position, time, key, kind, tail)
            continue

        message = key >> PACKET_BITS
        first = where == work.where[at(message)]
        if first:
            root = _message(network, work, state, packet_bytes, rank, root, position, time, key)
            key += (work.size[at(message)] - 1) // packet_bytes
        else:
            if kind == REST:
                link[RESTS] -= 1
            elif network.owner[at(back)] == rank:
                root = not follow(state.link[at(back)], state.line, heap, scalar)
            if kind != SINGLE:
                root = _train(network, work, state, packet_bytes, rank, root, position, time, key, tail)
                if link[OPEN] != NONE:
                    if root:
                        pop(heap, scalar)
                    continue
                into, sent = tail, (key & PACKET_MASK) * packet_bytes
                num, den = network.num[at(into)], network.den[at(into)]
                tail = time + serialisation(sent + packet_bytes, num, den) - serialisation(sent, num, den)
                if sent + 2 * packet_bytes < work.size[at(message)]:
                    link[RESTS] += 1
                    rest = position << KIND_BITS | REST
                    if root:
                        replace(heap, scalar, tail, key + 1, rest, into)
                    else:
                        push(heap, scalar, tail, key + 1, rest, into)
                    root = False
            root = _packet(network, work, state, packet_bytes, rank, root, position, time, key, tail)
        if root:
            pop(heap, scalar)
        end = link[FREE]
        ends_here = network.route_links[at(position + 1)] < 0
        if ends_here and ((key & PACKET_MASK) + 1) * packet_bytes >= work.size[at(message)]:
            arrival = end + network.latency[at(link_id)]
            if work.dst_owner[at(message)] == rank:
                arrive(work, state, message, arrival)
            else:
                send_out(out, scalar, arrival, message, ARRIVED, arrival, work.dst_owner[message])
        if first and work.send_op[at(message)] >= 0:
            end_op(work, state, work.send_op[at(message)], end)
    if scalar[HEADERS] > 0:
        foresee(network, work, state, packet_bytes, rank)
    return horizon
