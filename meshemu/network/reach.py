"""How soon what is pending on a rank can be felt by another one: the further ahead, the fewer windows. Compiled.

Another rank feels a packet when it crosses a cut link, that is a link between regions, and a train when it, or the cut
that shortens it, does. It may also feel the end of an op or of a message, at the earliest one lookahead (the least
latency of a cut link) later, since what the op sends then has to cross a cut link, too. So an event that comes to a
link at time t has an effect elsewhere not before the least of

* t + the latencies on the rest of its route up to the first cut link, that link included;
* t + the same for any other route that shares a link with the rest of this one: the packet may cut a train there;
* t + the time that the rest of the message takes at this link + the latencies to its end + one lookahead.

All of it follows from routes and sizes; what others do can only make it later. A SEND ends when its message is on the
first link, so the latencies do not count there. Events of ops count with their duration, those of trees with nothing
but the lookahead.
"""

from meshemu.network.compiled import compiled, kernel
from meshemu.network.events import (
    ARRIVED,
    BRANCH,
    CUT,
    CUT_KEYS,
    EVENT,
    KIND_BITS,
    KIND_MASK,
    NEVER,
    PACKET_BITS,
    PACKET_MASK,
    Ints,
)
from meshemu.network.state import EFFECT, HEAP, LINE, LINE_HEAD, NEXT_START, OUT, Network, State, Work

__all__ = ["FAR", "find_reach", "foresee"]

FAR = 2**62  # no time is as late


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
            following = latency[link] if is_cut[link] == 1 else min(FAR, latency[link] + following)
            if share == 0:
                via[link] = min(via[link], following)
            else:
                following = min(following, via[link])
            reach[position], onward[position] = following, rest


@compiled
def _effect(network: Network, work: Work, packet_bytes: int, time: int, key: int, where: int) -> int:
    """A time before which no other rank feels this event."""
    if key < -CUT_KEYS:
        end: int = time + work.duration[where] + network.lookahead
        return end
    position, kind = where >> KIND_BITS, where & KIND_MASK
    if where == ARRIVED or kind >= BRANCH:
        next_send: int = time + network.lookahead
        return next_send
    felt: int = time + network.reach[position]
    if kind == CUT:
        return felt
    message, link = key >> PACKET_BITS, network.route_links[position]
    left = work.size[message] - (key & PACKET_MASK) * packet_bytes
    done: int = time + left * network.num[link] // network.den[link] + network.lookahead
    if work.send_op[message] < 0:
        return felt
    if where != work.where[message]:
        done += network.onward[position]
    return done if done < felt else felt


@compiled
def foresee(network: Network, work: Work, state: State, packet_bytes: int) -> None:
    """Note in scalar[EFFECT] a time before which nothing that is pending has an effect on other ranks, NEVER if it has
    none; and in the last column of the outbox a time before which none of its rows has an effect elsewhere than where
    it goes.
    """
    heap, line, out, scalar = state.heap, state.line, state.out, state.scalar
    first = FAR
    for i in range(scalar[HEAP]):
        time, key, where = heap[EVENT * i], heap[EVENT * i + 1], heap[EVENT * i + 2]
        if time >= first - network.lookahead:  # nothing is felt sooner than one lookahead after it happens
            continue
        first = min(first, _effect(network, work, packet_bytes, time, key, where))
        back = network.route_links[(where >> KIND_BITS) - 1] if key >= 0 else -1
        if back >= 0 and state.link[back, LINE] > 0:  # more behind it in a line, too long to look through
            first = min(first, line[state.link[back, LINE_HEAD], 1] + network.lookahead)
    for i in range(scalar[NEXT_START], len(work.start)):
        if work.start[i, 0] >= first - network.lookahead:
            break
        first = min(first, _effect(network, work, packet_bytes, work.start[i, 0], work.start[i, 1], work.start[i, 2]))
    scalar[EFFECT] = first if first < FAR else NEVER
    for i in range(scalar[OUT]):
        felt = _effect(network, work, packet_bytes, out[i, 0], out[i, 1], out[i, 2])
        out[i, 5] = felt if felt < FAR else NEVER
