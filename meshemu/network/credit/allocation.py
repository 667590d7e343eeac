"""The switch of a router, compiled: which flits move on, over which channels, and what that changes."""

from meshemu.network.compiled import compiled
from meshemu.network.credit.bits import lowest_bit, next_bit
from meshemu.network.credit.sending import carry, credit_at, open_vc, send
from meshemu.network.credit.state import (
    AT,
    BUFFER,
    COUNT,
    CREDIT,
    FEEDER,
    FIRST_SLOT,
    FREE,
    FRONT_FIELDS,
    HANDED,
    HEAD,
    HOP_BITS,
    HOP_MASK,
    IN_FREE,
    IN_TURN,
    LAST_CREDIT,
    LEFT,
    MESSAGE,
    MISSING,
    NEXT_VC,
    NUM,
    ONWARD,
    OUT,
    OUT_PORT,
    OUT_TURN,
    OUT_VC,
    PACKETS,
    PASSED,
    PLACE,
    PORT,
    POSITION,
    QUEUE_MAX,
    READY,
    ROW,
    SINK,
    STARVED,
    VC_TURN,
    WAIT,
    Routers,
)
from meshemu.network.credit.wake import advance
from meshemu.network.events import NEVER
from meshemu.network.ops import arrive
from meshemu.network.state import State, Work

__all__ = ["allocate"]


@compiled
def _sooner(routers: Routers, first_vc: int, row: int, other: int, turn: int) -> bool:
    """Whether it is the turn of one of two virtual channels of an input, rows of `vc`, before that of the other."""
    a, b = row - first_vc - turn, other - first_vc - turn
    return (a + routers.n_vcs if a < 0 else a) < (b + routers.n_vcs if b < 0 else b)


@compiled
def _ask(routers: Routers, device: int, time: int) -> tuple[int, int]:
    """Let inputs ask for every output to which they could send a flit now, for each with one virtual channel, by turns.

    The flit has to be through the pipeline, the output free, and a credit there for the virtual channel that its packet
    has or can take. Returns the outputs that are asked for, as bits, and when to look again.
    """
    outputs, asking, again = 0, 0, NEVER
    for place in range(routers.n_front[device]):
        front = routers.front[device, place]
        if front[READY] > time:
            again = min(again, front[READY])
            continue
        port, row, out = front[PORT], front[ROW], front[OUT] >> 2 * HOP_BITS
        channel = routers.in_channel[routers.in_ptr[device] + port]
        owner, output = routers.channel[channel], routers.channel[out]
        if owner[IN_FREE] > time and not asking >> port & 1:
            again = min(again, owner[IN_FREE])
            continue
        if output[FREE] > time:
            again = min(again, output[FREE])
            continue
        out_port, first_vc = output[OUT_PORT], channel * routers.n_vcs
        choice = routers.choice[port, out_port]
        if routers.wanted[out_port] >> port & 1 and not _sooner(routers, first_vc, row, choice[0], owner[VC_TURN]):
            continue
        about = routers.vc[row]
        out_vc, at = about[OUT_VC], time
        if output[SINK] < 0:
            out_vc = 0  # the device takes whatever comes
        elif out_vc >= 0:
            at = credit_at(routers, out, out_vc, 0, time)
        else:
            low = routers.class_vc[row - first_vc]
            low, high = low + (front[OUT] >> HOP_BITS & HOP_MASK), low + (front[OUT] & HOP_MASK)
            left = routers.slot[about[FIRST_SLOT] + about[HEAD], LEFT] if routers.cut_through else 1
            out_vc, at = open_vc(routers, out, low, high, about[NEXT_VC], left, time)
        if at > time:
            again = min(again, at)
            continue
        choice[0], choice[1] = row, out_vc
        routers.wanted[out_port] |= 1 << port
        outputs |= 1 << out_port
        asking |= 1 << port
        owner[IN_FREE] = time + routers.cycle
    return outputs, min(again, time + routers.cycle) if asking else again


@compiled
def _count_waiting(routers: Routers, device: int, out: int, most: int, time: int) -> int:
    """Packets in front of the virtual channels of a router that have been waiting for the channel `out`, or `most`
    where there are fewer: seldom are there more flits for it in front at all.
    """
    n = 0
    for place in range(routers.n_front[device]):
        n += routers.front[device, place, OUT] >> 2 * HOP_BITS == out
    if n <= most:
        return most
    n = 0
    for place in range(routers.n_front[device]):
        front = routers.front[device, place]
        row = routers.vc[front[ROW]]
        if front[OUT] >> 2 * HOP_BITS == out and row[OUT_VC] < 0:
            n += routers.slot[row[FIRST_SLOT] + row[HEAD], AT] < time
    return max(n, most)


@compiled
def _note_head(routers: Routers, device: int, channel: int, out: int, message: int, ready: int, time: int) -> None:
    """A packet of a message goes on over a link of the mesh, and came through the pipeline at `ready`."""
    row, wait = routers.channel[out], time - ready
    row[PACKETS] += 1
    if wait > 0:
        row[QUEUE_MAX] = _count_waiting(routers, device, out, row[QUEUE_MAX], time)
    if channel >= routers.first_extra:  # its first link: of a message only the first packet counts, from the beginning
        about, own = routers.message[message], routers.channel[channel]
        wait = 0 if about[PASSED] else time - about[HANDED] - own[NUM] - own[ONWARD]
        about[PASSED] = 1
    row[WAIT] += wait


@compiled
def _take_front(routers: Routers, device: int, channel: int, vc: int, left: int, out_vc: int, time: int) -> None:
    """Take the flit in front out of a buffer, a row of `vc`: its credit goes back, the next one comes to the front."""
    row, owner, fronts = routers.vc[vc], routers.channel[channel], routers.front[device]
    head, place = row[HEAD], row[PLACE]
    back = time + owner[CREDIT]
    routers.slot[row[FIRST_SLOT] + head, AT] = row[LAST_CREDIT] = back
    if owner[STARVED]:
        owner[STARVED] = 0
        advance(routers.wake, owner[FEEDER], back)
    head = head + 1 if head + 1 < owner[BUFFER] else 0
    row[HEAD] = head
    row[COUNT] -= 1
    row[OUT_VC] = out_vc if left > 1 else -1
    if row[COUNT] > 0:
        slot = routers.slot[row[FIRST_SLOT] + head]
        # a head is routed and gets its virtual channel once it is in front
        fronts[place, READY] = max(slot[AT], time + routers.restart) if left == 1 else slot[AT]
        fronts[place, OUT] = routers.hop[slot[POSITION]]
    else:
        last = routers.n_front[device] - 1
        routers.n_front[device] = last
        for column in range(FRONT_FIELDS):
            fronts[place, column] = fronts[last, column]
        routers.vc[fronts[place, ROW], PLACE] = place


@compiled
def _move(
    routers: Routers, work: Work, state: State, device: int, channel: int, vc: int, out: int, out_vc: int, time: int
) -> None:
    """Send the flit in front of a virtual channel, a row of `vc`, over the channel `out`."""
    row = routers.vc[vc]
    slot = routers.slot[row[FIRST_SLOT] + row[HEAD]]
    message, position, left = slot[MESSAGE], slot[POSITION], slot[LEFT]
    if row[OUT_VC] < 0:
        row[NEXT_VC] = out_vc + 1
        if out < routers.first_extra:
            _note_head(routers, device, channel, out, message, slot[AT], time)
    _take_front(routers, device, channel, vc, left, out_vc, time)
    if routers.channel[out, SINK] >= 0:
        send(routers, state, out, out_vc, time, message, position + 1, left)
    else:
        arrival = time + carry(routers, state, out, time) + routers.channel[out, ONWARD]
        about = routers.message[message]
        about[MISSING] -= 1
        if about[MISSING] == 0:
            arrive(work, state, message, arrival)


@compiled
def allocate(routers: Routers, work: Work, state: State, device: int, time: int) -> int:
    """One round of allocation in a router; returns when to look again.

    An iteration of iSLIP (N. McKeown, The iSLIP scheduling algorithm for input-queued switches, IEEE/ACM Transactions
    on Networking 1999): inputs ask, each output grants the input whose turn it is, each input accepts the output whose
    turn it is, and turns pass on when a flit moves. An input that has asked may ask again a cycle later.
    """
    outputs, again = _ask(routers, device, time)
    inputs = 0
    while outputs:
        out_port = lowest_bit(outputs)
        outputs &= outputs - 1
        port = next_bit(routers.wanted[out_port], routers.channel[routers.out_channel[device, out_port], OUT_TURN])
        routers.wanted[out_port] = 0
        routers.granted[port] |= 1 << out_port
        inputs |= 1 << port
    while inputs:
        port = lowest_bit(inputs)
        inputs &= inputs - 1
        channel = routers.in_channel[routers.in_ptr[device] + port]
        out_port = next_bit(routers.granted[port], routers.channel[channel, IN_TURN])
        routers.granted[port] = 0
        vc, out_vc = routers.choice[port, out_port, 0], routers.choice[port, out_port, 1]
        out = routers.out_channel[device, out_port]
        routers.channel[out, OUT_TURN] = port + 1
        routers.channel[channel, IN_TURN] = out_port + 1
        routers.channel[channel, VC_TURN] = vc - channel * routers.n_vcs + 1
        _move(routers, work, state, device, channel, vc, out, out_vc, time)
    return again
