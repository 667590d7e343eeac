"""A flit over a channel: whether there is a credit and a virtual channel for it, and sending it. Compiled."""

from meshemu.network.compiled import at, compiled
from meshemu.network.credit.state import (
    AT,
    BUFFER,
    COUNT,
    DEN,
    FIRST_SLOT,
    FLITS,
    FREE,
    HEAD,
    HELD,
    IN_PORT,
    LAST_CREDIT,
    LEFT,
    MESSAGE,
    NUM,
    ONWARD,
    OUT,
    PLACE,
    PORT,
    POSITION,
    READY,
    REST,
    ROW,
    SINK,
    STARVED,
    Routers,
)
from meshemu.network.credit.wake import advance
from meshemu.network.events import NEVER
from meshemu.network.link_statistics import add_busy
from meshemu.network.state import State

__all__ = ["carry", "credit_at", "open_vc", "send"]


@compiled
def credit_at(routers: Routers, channel: int, vc: int, ahead: int, time: int) -> int:
    """When a flit `ahead` of the next one has a credit, that is, room behind the channel; `time` if it has one now.

    Credits come back in the order in which the flits were sent, so those before it have one by then. NEVER where its
    slot is still occupied: then the sender is told when that changes.
    """
    row, owner = routers.vc[at(channel * routers.n_vcs + vc)], routers.channel[at(channel)]
    size = owner[BUFFER]
    if row[COUNT] + ahead >= size:
        owner[STARVED] = 1
        return NEVER
    if row[LAST_CREDIT] <= time:  # spares a look at the slots, which are seldom in the cache
        return time
    slot = row[HEAD] + row[COUNT] + ahead
    if slot >= size:
        slot -= size
    back: int = routers.slot[at(row[FIRST_SLOT] + slot), AT]
    return back


@compiled
def open_vc(routers: Routers, channel: int, low: int, high: int, turn: int, left: int, time: int) -> tuple[int, int]:
    """A virtual channel low <= vc < high that a packet of `left` flits can take now, and `time`, by turns; or -1 and
    when there may be one.
    """
    ahead = left - 1 if routers.cut_through else 0
    vc = turn if low <= turn < high else low
    earliest = NEVER
    for _ in range(high - low):
        if routers.vc[at(channel * routers.n_vcs + vc), HELD] == 0:
            when = credit_at(routers, channel, vc, ahead, time)
            if when <= time:
                return vc, time
            earliest = min(earliest, when)
        vc += 1
        if vc == high:
            vc = low
    return -1, earliest


@compiled
def carry(routers: Routers, state: State, channel: int, time: int) -> int:
    """Put a flit on a free channel; returns how long it takes.

    Flit k takes C(k + 1) - C(k) with C(k) = ceil(k num / den), so that rates are exact however short a flit is.
    """
    row = routers.channel[at(channel)]
    took: int = row[NUM]
    den = row[DEN]
    if den > 1:
        took = (took - row[REST] + den - 1) // den
        row[REST] += took * den - row[NUM]
    row[FREE] = time + took
    if channel < routers.first_extra:
        row[FLITS] += 1
        if state.busy_bins.shape[1] > 0:
            add_busy(state.link[at(channel)], state.busy_bins[at(channel)], time, time + took)
    return took


@compiled
def send(
    routers: Routers, state: State, channel: int, vc: int, time: int, message: int, position: int, left: int
) -> int:
    """Send a flit over a channel into the buffer behind it; returns how long it takes. position: of its next hop."""
    took = carry(routers, state, channel, time)
    owner, row = routers.channel[at(channel)], routers.vc[at(channel * routers.n_vcs + vc)]
    ready = time + took + owner[ONWARD]
    if row[COUNT] == 0 and row[LAST_CREDIT] <= time:
        row[HEAD] = 0  # all slots are free alike: use few of them, which stay in the cache
    tail = row[HEAD] + row[COUNT]
    if tail >= owner[BUFFER]:
        tail -= owner[BUFFER]
    slot = routers.slot[at(row[FIRST_SLOT] + tail)]
    slot[AT], slot[MESSAGE], slot[POSITION], slot[LEFT] = ready, message, position, left
    row[HELD] = left > 1
    row[COUNT] += 1
    if row[COUNT] == 1:
        sink = owner[SINK]
        place = routers.n_front[at(sink)]
        front = routers.front[at(sink), at(place)]
        front[READY], front[OUT] = ready, routers.hop[at(position)]
        front[ROW], front[PORT] = channel * routers.n_vcs + vc, owner[IN_PORT]
        row[PLACE] = place
        routers.n_front[at(sink)] = place + 1
        advance(routers.wake, sink, ready)
    return took
