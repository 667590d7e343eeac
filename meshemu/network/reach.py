"""How soon what is pending on a rank can be felt by another one: the further ahead, the fewer windows. Compiled.

Another rank feels a packet when it crosses a cut link, that is a link between regions, and a train when it, or the cut
that shortens it, does. It also feels the end of an op or of a message, when something crosses that was sent because of
it. So an event that comes to a link at time t has an effect elsewhere not before the least of

* t + the latencies on the rest of its route up to the first cut link, that link included, unless it is the last one:
  then only the end of the message is felt;
* t + the same for any other route that shares a link with the rest of this one: the packet may cut a train there;
* t + the time that the rest of the message takes at this link + the latencies to its end + `after` of its RECV, or
  nothing where it ends elsewhere;
* at the first link, t + the time that the message takes there + `after` of its SEND, which ends then.

Events of ops count with their duration and `after`, those of trees with one lookahead, the least latency of a cut link.
"""

from meshemu.network.compiled import at, compiled, kernel
from meshemu.network.events import (
    ARRIVED,
    BRANCH,
    CUT,
    CUT_KEYS,
    KIND_BITS,
    KIND_MASK,
    NEVER,
    PACKET_BITS,
    PACKET_MASK,
    Ints,
)
from meshemu.network.state import HEADERS, HEAP, LINE, LINE_HEAD, NEXT_START, OUT, Network, State, Work

__all__ = ["FAR", "find_reach", "foresee", "message_effect"]

FAR = 2**62  # no time is as late
LOOKED_AT = 4  # how many events of a line are looked at: it may be long


@kernel
def find_reach(
    route_links: Ints, first: int, latency: Ints, is_cut: Ints, via: Ints, reach: Ints, onward: Ints
) -> None:
    """Fill `reach`, of every position in `route_links` from `first` on (the routes, each closed by -1): the least time
    from when a packet comes in until it, or a train that it cuts, is felt on another rank; and `onward`, the latencies
    from there to the end of the route.

    is_cut: of each link, 1 if it is cut. via: int64[n_links], scratch.
    """
    via[:] = FAR
    for share in range(2):  # without, then with the routes of others
        following, rest = FAR, 0
        for position in range(len(route_links) - 1, first - 1, -1):
            link = route_links[position]
            if link < 0:
                following, rest = FAR, 0
                continue
            rest += latency[link]
            goes_on = route_links[position + 1] >= 0
            following = latency[link] if is_cut[link] == 1 and goes_on else min(FAR, latency[link] + following)
            if share == 0:
                via[link] = min(via[link], following)
            else:
                following = min(following, via[link])
            reach[position], onward[position] = following, rest


@compiled
def message_effect(
    network: Network, work: Work, message: int, position: int, left_bytes: int, after_send_ps: int, after_recv_ps: int
) -> int:
    """The least time from when the last left_bytes of a message come to the link at `position`, until they or what
    waits for them are felt elsewhere: what waits for its SEND (FAR where that has ended) or for its RECV.
    """
    here, link = at(position), at(network.route_links[at(position)])
    if work.dst_owner[at(message)] != network.owner[link]:
        after_recv_ps = 0
    passed = left_bytes * network.num[link]
    if network.den[link] > 1:
        passed //= network.den[link]
    felt: int = min(network.reach[here], passed + min(after_send_ps, network.onward[here] + after_recv_ps))
    return felt


@compiled
def _effect(network: Network, work: Work, packet_bytes: int, time: int, key: int, where: int) -> int:
    """A time before which no other rank feels this event."""
    if key < -CUT_KEYS:
        end: int = time + work.duration[at(where)] + work.after[at(where)]
        return end
    position, kind = where >> KIND_BITS, where & KIND_MASK
    if where == ARRIVED:
        recv_op = work.recv_op[at(key)]
        arrived: int = time + work.after[at(recv_op)] if recv_op >= 0 else FAR
        return arrived
    if kind >= BRANCH:
        next_send: int = time + network.lookahead
        return next_send
    if kind == CUT:
        felt: int = time + network.reach[at(position)]
        return felt
    message = key >> PACKET_BITS
    i = at(message)
    left = work.size[i] - (key & PACKET_MASK) * packet_bytes
    send_op, recv_op = work.send_op[i], work.recv_op[i]
    after_send = work.after[at(send_op)] if send_op >= 0 and where == work.where[i] else FAR
    after_recv = work.after[at(recv_op)] if recv_op >= 0 else FAR
    there: int = time + message_effect(network, work, message, position, left, after_send, after_recv)
    return there


@compiled
def _effect_of_line(network: Network, work: Work, state: State, packet_bytes: int, link: int) -> int:
    """A time before which no other rank feels the events in the line of a link: the first of them are looked at, those
    behind, later than these, count with one lookahead.
    """
    line, entry = state.line, state.link[at(link), LINE_HEAD]
    first: int = FAR
    for i in range(state.link[at(link), LINE]):
        event = line[at(entry)]
        time = event[1]
        if i == LOOKED_AT:
            first = min(first, time + network.lookahead)
            break
        first = min(first, _effect(network, work, packet_bytes, time, event[2], event[3]))
        entry = event[0]
    return first


@compiled
def foresee(network: Network, work: Work, state: State, packet_bytes: int, rank: int) -> None:
    """Note in the last column of the outbox, in the header of this rank, a time before which nothing that is pending
    has an effect on other ranks, NEVER if it has none; and in the header of each other rank a time before which none of
    the rows for it has an effect elsewhere than there.
    """
    heap, out, scalar = state.heap, state.out, state.scalar
    first = FAR
    for i in range(scalar[HEAP]):
        time, key, where = heap[i, 0], heap[i, 1], heap[i, 2]
        if time >= first - network.lookahead:  # nothing is felt sooner than one lookahead after it happens
            continue
        first = min(first, _effect(network, work, packet_bytes, time, key, where))
        back = network.route_links[(where >> KIND_BITS) - 1] if key >= 0 else -1
        if back >= 0 and state.link[at(back), LINE] > 0:
            first = min(first, _effect_of_line(network, work, state, packet_bytes, back))
    for i in range(scalar[NEXT_START], len(work.start)):
        if work.start[i, 0] >= first - network.lookahead:
            break
        first = min(first, _effect(network, work, packet_bytes, work.start[i, 0], work.start[i, 1], work.start[i, 2]))
    for header in range(scalar[HEADERS]):
        out[header, 5] = NEVER
    out[rank, 5] = first if first < FAR else NEVER
    for i in range(scalar[HEADERS], scalar[OUT]):
        felt, header = _effect(network, work, packet_bytes, out[i, 0], out[i, 1], out[i, 2]), out[i, 4]
        if felt < FAR:
            out[header, 5] = min(out[header, 5], felt)
