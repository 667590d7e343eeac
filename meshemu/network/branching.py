"""Trees of messages in the event loop: packets that fork on their way, or that merge. Compiled.

A branch is a link in a tree; it has a row in `Network.branch` and stands in `route_links` like the links of a route.
docs/timing-model.md says what happens where branches meet. How it is done:

* A fork is an event per copy: one that has entered its branch goes on, with the same time and key, as the event of the
  next branch (COPY).
* A message that a SEND hands over (HANDED) enters its first branches as a whole, like any message. All but its last
  packet leave as a train, which comes apart at the next branch, one packet an event: trees open no trains.
* What comes to a merge over a branch (MERGE, MERGE_TRAIN) waits in the list of that input until all other inputs have
  the packet; packets of one input come in order, so these are the first of each list. What a device contributes itself
  (OWN) is an input without a link: all packets have come at once, and each event merges one. The last input makes the
  packet enter the branch that leaves the merge, or the messages arrive if that is the root.

Events of trees stand in no line, since not all that leave a link come out of it at the same place.
"""

from meshemu.network.compiled import compiled
from meshemu.network.events import (
    ARRIVED,
    BRANCH,
    BRANCH_TRAIN,
    HANDED,
    KIND_BITS,
    MERGE_TRAIN,
    OWN,
    PACKET_BITS,
    PACKET_MASK,
    Ints,
)
from meshemu.network.heap import pop, push, replace
from meshemu.network.link_statistics import enter
from meshemu.network.ops import arrive, end_op
from meshemu.network.outlets import send_out
from meshemu.network.state import (
    ARRIVES,
    COPY,
    DEPARTS,
    FREE,
    HELD,
    HELD_FIRST,
    HELD_LAST,
    INPUT,
    LEAVES,
    LINE_FREE,
    ONWARD,
    ONWARD_LAST,
    OWNER,
    Network,
    State,
    Work,
)
from meshemu.network.trains import serialisation

__all__ = ["enter_branch", "meet"]


@compiled
def _put(heap: Ints, scalar: Ints, root: bool, time: int, key: int, where: int, tail: int) -> bool:
    """Add an event to the heap, if `root` in the place of the one that is being run. That is not the root any more."""
    if root:
        replace(heap, scalar, time, key, where, tail)
    else:
        push(heap, scalar, time, key, where, tail)
    return False


@compiled
def _hand_on(
    state: State, rank: int, root: bool, owner: int, time: int, key: int, where: int, tail: int
) -> bool:
    """Pass on what comes out of a branch at a device of the rank `owner`; returns whether the root stays."""
    if owner != rank:
        send_out(state.out, state.scalar, time, key, where, tail, owner)
        return root
    return _put(state.heap, state.scalar, root, time, key, where, tail)


@compiled
def _tail(network: Network, packet_bytes: int, time: int, key: int, into: int) -> int:
    """When the tail of a packet comes in whose head does at `time`, in a train spaced by the link `into`."""
    num, den, sent = network.num[into], network.den[into], (key & PACKET_MASK) * packet_bytes
    tail: int = time + serialisation(sent + packet_bytes, num, den) - serialisation(sent, num, den)
    return tail


@compiled
def _leave(work: Work, state: State, rank: int, branch: Ints, end: int, arrival: int) -> None:
    """The last packet of a tree is on a branch at `end` and comes out at `arrival`: what ends or arrives with that."""
    message, departs = branch[ARRIVES], branch[DEPARTS]
    if message >= 0:
        if work.dst_owner[message] == rank:
            arrive(work, state, message, arrival)
        else:
            send_out(state.out, state.scalar, arrival, message, ARRIVED, arrival, work.dst_owner[message])
    if departs >= 0:
        op = work.send_op[departs]
        state.end[op] = max(state.end[op], end)
        if branch[COPY] < 0:  # no other first branch takes the message after this one
            end_op(work, state, op, state.end[op])


@compiled
def enter_branch(
    network: Network, work: Work, state: State, packet_bytes: int, rank: int, position: int, time: int, key: int,
    kind: int, tail: int,
) -> None:
    """What comes to the branch at `position` enters its link: a packet, the first of a train, or a whole message.

    The event is the root of the heap, from where it is removed.
    """
    heap, scalar, branch, link_id = state.heap, state.scalar, network.branch[position], network.route_links[position]
    num, den, latency = network.num[link_id], network.den[link_id], network.latency[link_id]
    size = work.size[key >> PACKET_BITS]
    last, packet, root = (size - 1) // packet_bytes, key & PACKET_MASK, True
    into = tail
    if kind == BRANCH_TRAIN:
        tail = _tail(network, packet_bytes, time, key, into)
    if branch[COPY] >= 0:
        copy_kind = HANDED if kind == HANDED else BRANCH
        root = _put(heap, scalar, root, time, key, branch[COPY] << KIND_BITS | copy_kind, tail)
    if kind == BRANCH_TRAIN and packet + 1 < last:
        root = _put(heap, scalar, root, tail, key + 1, position << KIND_BITS | BRANCH_TRAIN, into)

    begin = packet * packet_bytes
    stop = size if kind == HANDED else min(begin + packet_bytes, size)
    start = max(time, state.link[link_id, FREE])
    end = max(start + serialisation(stop, num, den) - serialisation(begin, num, den), tail)
    enter(state, link_id, time, start, end, stop - begin, last + 1 if kind == HANDED else 1)
    departs, head = branch[DEPARTS], start + latency
    if departs >= 0 and packet == 0:
        state.depart[departs] = start
    if kind == HANDED and last > 0:
        if branch[ONWARD] >= 0:
            root = _hand_on(state, rank, root, branch[OWNER], head, key, branch[ONWARD] + 1, link_id)
        head += serialisation(last * packet_bytes, num, den)
        key += last
    onward = branch[ONWARD_LAST] if stop == size else branch[ONWARD]
    if onward >= 0:
        root = _hand_on(state, rank, root, branch[OWNER], head, key, onward, end + latency)
    if root:
        pop(heap, scalar)
    if stop == size:
        _leave(work, state, rank, branch, end, end + latency)


@compiled
def _hold(line: Ints, scalar: Ints, held: Ints, own: int, n: int, tail: int) -> None:
    """Let a packet wait at an input (`held` is its row): its tail, in a list.

    own: -1, or when the device itself has handed over the n packets that are left of its contribution.
    """
    if own >= 0:
        held[HELD], held[HELD_FIRST] = n, own
        return
    entry = scalar[LINE_FREE]
    scalar[LINE_FREE] = line[entry, 0]
    line[entry, 1] = tail
    if held[HELD] == 0:
        held[HELD_FIRST] = entry
    else:
        line[held[HELD_LAST], 0] = entry
    held[HELD_LAST] = entry
    held[HELD] += 1


@compiled
def _take(line: Ints, scalar: Ints, held: Ints, own: bool) -> int:
    """Take the packet that waits first at an input; returns when its tail is there."""
    held[HELD] -= 1
    entry: int = held[HELD_FIRST]
    if own:
        return entry
    held[HELD_FIRST] = line[entry, 0]
    tail: int = line[entry, 1]
    line[entry, 0] = scalar[LINE_FREE]
    scalar[LINE_FREE] = entry
    return tail


@compiled
def meet(
    network: Network, work: Work, state: State, packet_bytes: int, position: int, time: int, key: int, kind: int,
    tail: int,
) -> None:
    """A packet comes to a merge by the input `position`. The event is the root of the heap, from where it is removed.

    An entry of `State.line` is free.
    """
    heap, scalar, line, inputs, branch = state.heap, state.scalar, state.line, state.input, network.branch
    flow = key >> PACKET_BITS
    last, packet, root = (work.size[flow] - 1) // packet_bytes, key & PACKET_MASK, True
    if kind == MERGE_TRAIN:
        into = tail
        tail = _tail(network, packet_bytes, time, key, into)
        if packet + 1 < last:
            root = _put(heap, scalar, root, tail, key + 1, position << KIND_BITS | MERGE_TRAIN, into)
    other = branch[position, INPUT]
    while other != position and inputs[other, HELD] > 0:
        other = branch[other, INPUT]
    if other != position:
        _hold(line, scalar, inputs[position], time if kind == OWN else -1, last + 1 - packet, tail)
        if root:
            pop(heap, scalar)
        return
    other = branch[position, INPUT]
    while other != position:
        tail = max(tail, _take(line, scalar, inputs[other], network.route_links[other] < 0))
        other = branch[other, INPUT]
    leaves = branch[position, LEAVES]
    if leaves >= 0:
        where = leaves << KIND_BITS | BRANCH
        root = _put(heap, scalar, root, time + network.combine, key, where, tail + network.combine)
    if kind == OWN and packet < last:
        root = _put(heap, scalar, root, time, key + 1, position << KIND_BITS | OWN, time)
    if root:
        pop(heap, scalar)
    if leaves < 0:
        arrive(work, state, flow, tail + network.combine)
