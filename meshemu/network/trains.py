"""Trains: packets of one message that follow back to back are one event per link, as long as no other comes between.

At the first link of a message all its packets are ready together, so nothing can come between them. What leaves it is a
train, all packets but the last, which travels on its own. Let C(x) = ceil(x ps per byte) at the rate of the link that
spaces a train and P the size of a packet: then the head of packet k comes in at h(k) = h(0) + C(k P), and its tail with
the head of the next. At a link with the time s per packet, against S of the spacing:

* s = S: starts are spaced like heads, start(k) - h(k) is the same for all. The link is busy without a gap.
* s < S (a faster link) and the link is free: start(k) = h(k), the link is busy until each tail is in.
* s > S (a slower link): packets wait for one another, starts are spaced by this link.

In all three the train that goes out is of the same form. The first event of a train at a link therefore opens it: all
its packets enter the link in one go, and one event goes to the next link. What the link notes of them is left open and
settled at the next event at that link (or at the end of the run) for the packets whose heads came in before. If some
came in later, that event, say of packet x, has come between: the train is cut.

* Its rest waits in the heap until its head is due, then goes on as a train of its own.
* A cut goes to the next link, at the time when the head of x would be there: later than all packets that went out,
  not later than the first that did not. There it settles the train, drops its rest and goes on to the next link.

A cut takes effect one latency after what caused it, like a packet, so it crosses to other ranks by the same rules. A
link without latency opens no trains. Where several trains meet, each goes on packet by packet, which costs an event per
packet as if there were no trains. That choice, as all of `opens` and `SHY`, is one of speed and not of results.
"""

from meshemu.network.compiled import at, compiled
from meshemu.network.events import (
    CUT,
    CUT_KEYS,
    KIND_BITS,
    PACKET_BITS,
    PACKET_MASK,
    REST,
    Ints,
)
from meshemu.network.heap import push
from meshemu.network.link_statistics import add_busy, enqueue
from meshemu.network.outlets import jump_line, send_out
from meshemu.network.state import (
    BUSY,
    CARRIED,
    FREE,
    HOPS,
    NONE,
    OPEN,
    OPEN_FIRST,
    OPEN_HEAD,
    OPEN_IN,
    OPEN_OUT,
    OPEN_POSITION,
    OPEN_START,
    PACKETS,
    QUEUE_FREE,
    RESTS,
    SHY,
    WAIT,
    Network,
    State,
    Work,
)

__all__ = ["SHORTEST", "cut", "drop", "open_train", "serialisation", "settle", "spacing_out"]

SHORTEST = 2  # packets of a train that is worth opening
SHY_PACKETS = 8  # how many packets go one by one after a train was cut before it had SHORTEST packets


@compiled
def serialisation(size: int, num: int, den: int) -> int:
    """ceil(size * num / den) ps; most links have a whole number of ps per byte, which spares the division."""
    if den == 1:
        return size * num
    return (size * num + den - 1) // den


@compiled
def spacing_out(network: Network, link_id: int, spacing: int, packet_bytes: int, waits: bool) -> int:
    """The link that spaces a train after this one, `spacing` before it; -1 if the train cannot be opened here.

    waits: whether the link is not free when the head comes in. Rounding shifts a time by less than 2 ps; rates that are
    closer than that have no order for sure. Packets of less than 1 ps could tie with what comes next.
    """
    num, den = network.num[at(link_id)], network.den[at(link_id)]
    num_in, den_in = network.num[at(spacing)], network.den[at(spacing)]
    if packet_bytes * num_in < den_in:
        return -1
    if num == num_in and den == den_in:
        return spacing
    here, before = packet_bytes * (num / den), packet_bytes * (num_in / den_in)
    margin = 2.5 + 1e-9 * (here + before)
    if here < before - margin:
        return -1 if waits else spacing
    return link_id if here > before + margin else -1


@compiled
def open_train(
    network: Network, link: Ints, packet_bytes: int, key: int, position: int, head: int, start: int, into: int, out: int
) -> None:
    """Let a train in whose first packet `key` has its head here at `head` and enters the link (its row) at `start`.

    into, out: the links that space it before and after this one.
    """
    sent = (key & PACKET_MASK) * packet_bytes
    link[OPEN] = link[OPEN_FIRST] = key
    link[OPEN_POSITION] = position
    link[OPEN_IN], link[OPEN_OUT] = into, out
    link[OPEN_HEAD] = head - serialisation(sent, network.num[at(into)], network.den[at(into)])
    link[OPEN_START] = start - serialisation(sent, network.num[at(out)], network.den[at(out)])


@compiled
def _head(network: Network, link: Ints, packet_bytes: int, packet: int) -> int:
    """When the head of a packet of the open train comes in."""
    into = link[OPEN_IN]
    head: int = link[OPEN_HEAD] + serialisation(packet * packet_bytes, network.num[at(into)], network.den[at(into)])
    return head


@compiled
def _start(network: Network, link: Ints, packet_bytes: int, packet: int) -> int:
    """When a packet of the open train enters the link: when the one before has left."""
    out = link[OPEN_OUT]
    start: int = link[OPEN_START] + serialisation(packet * packet_bytes, network.num[at(out)], network.den[at(out)])
    return start


@compiled
def _first_after(network: Network, link: Ints, packet_bytes: int, stop: int, time: int, key: int) -> int:
    """The first packet that comes in after the event (time, key), of the open train, which ends before `stop`."""
    first = link[OPEN]
    if _head(network, link, packet_bytes, stop - 1) < time:
        return stop
    into = link[OPEN_IN]
    base = first & ~PACKET_MASK
    packet: int = (time - link[OPEN_HEAD]) * network.den[at(into)] // network.num[at(into)] // packet_bytes
    packet = min(max(packet, first & PACKET_MASK), stop)
    while base | packet > first:
        head = _head(network, link, packet_bytes, packet - 1)
        if head < time or (head == time and base | (packet - 1) < key):
            break
        packet -= 1
    while packet < stop:
        head = _head(network, link, packet_bytes, packet)
        if head > time or (head == time and base | packet > key):
            break
        packet += 1
    return packet


@compiled
def settle(network: Network, work: Work, state: State, packet_bytes: int, link_id: int, time: int, key: int) -> bool:
    """Note the packets of the open train of a link that came in before the event (time, key); it stays open if some did
    not. False if the pool of waiting packets must grow first.
    """
    link, scalar = state.link[at(link_id)], state.scalar
    first = link[OPEN] & PACKET_MASK
    stop = (work.size[at(link[OPEN] >> PACKET_BITS)] - 1) // packet_bytes
    reached = _first_after(network, link, packet_bytes, stop, time, key)
    packet = first
    if link[OPEN_IN] == link[OPEN_OUT] and link[OPEN_HEAD] == link[OPEN_START]:
        if reached > first:
            scalar[QUEUE_FREE] = enqueue(link, state.queue, scalar[QUEUE_FREE], 0, 0)
        packet = reached
    while packet < reached and scalar[QUEUE_FREE] >= 0:
        head, start = _head(network, link, packet_bytes, packet), _start(network, link, packet_bytes, packet)
        link[WAIT] += start - head
        scalar[QUEUE_FREE] = enqueue(link, state.queue, scalar[QUEUE_FREE], head, start)
        packet += 1
    if packet > first:
        start, end = _start(network, link, packet_bytes, first), _start(network, link, packet_bytes, packet)
        link[FREE] = end
        link[CARRIED] += (packet - first) * packet_bytes
        link[BUSY] += end - start
        link[PACKETS] += packet - first
        scalar[HOPS] += packet - first
        if state.busy_bins.shape[1] > 0:
            add_busy(link, state.busy_bins[at(link_id)], start, end)
        link[OPEN] = link[OPEN] + packet - first if packet < stop else NONE
    done: bool = packet == reached and scalar[QUEUE_FREE] >= 0
    return done


@compiled
def drop(network: Network, state: State, link_id: int, time: int, rank: int) -> None:
    """Close the open train without its rest, of which the next link has to hear."""
    link = state.link[at(link_id)]
    key, position = link[OPEN] - CUT_KEYS, link[OPEN_POSITION] + 1
    where = position << KIND_BITS | CUT
    link[OPEN] = NONE
    following = network.route_links[at(position)]
    if following >= 0:
        time = max(time, link[FREE]) + network.latency[at(link_id)]
        if network.owner[at(following)] == rank:
            jump_line(link, state.heap, state.scalar, time, key, where)
        else:
            send_out(state.out, state.scalar, time, key, where, 0, network.owner[at(following)])


@compiled
def cut(network: Network, state: State, packet_bytes: int, link_id: int, time: int, rank: int) -> None:
    """At `time` another packet comes between those of the open train that are settled and its rest."""
    link = state.link[at(link_id)]
    key = link[OPEN]
    head = _head(network, link, packet_bytes, key & PACKET_MASK)
    push(state.heap, state.scalar, head, key, link[OPEN_POSITION] << KIND_BITS | REST, link[OPEN_IN])
    link[RESTS] += 1
    if key - link[OPEN_FIRST] < SHORTEST:
        link[SHY] = SHY_PACKETS
    drop(network, state, link_id, time, rank)
