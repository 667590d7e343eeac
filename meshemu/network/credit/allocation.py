"""The switch of a router, compiled: which flits move on, over which channels, and what that changes."""

from meshemu.network.compiled import at, compiled
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
    for place in range(routers.n_front[at(device)]):
        front = routers.front[at(device), at(place)]
        if front[READY] > time:
            again = min(again, front[READY])
            continue
        port, row, out = front[PORT], front[ROW], front[OUT] >> 2 * HOP_BITS
        channel = routers.in_channel[at(routers.in_ptr[at(device)] + port)]
        owner, output = routers.channel[at(channel)], routers.channel[at(out)]
        if owner[IN_FREE] > time and not asking >> port & 1:
            again = min(again, owner[IN_FREE])
            continue
        if output[FREE] > time:
            again = min(again, output[FREE])
            continue
        out_port, first_vc = output[OUT_PORT], channel * routers.n_vcs
        choice = routers.choice[at(port), at(out_port)]
        if routers.wanted[at(out_port)] >> port & 1 and not _sooner(routers, first_vc, row, choice[0], owner[VC_TURN]):
            continue
        about = routers.vc[at(row)]
        out_vc, when = about[OUT_VC], time
        if output[SINK] < 0:
            out_vc = 0  # the device takes whatever comes
        elif out_vc >= 0:
            when = credit_at(routers, out, out_vc, 0, time)
        else:
            low = routers.class_vc[at(row - first_vc)]
            low, high = low + (front[OUT] >> HOP_BITS & HOP_MASK), low + (front[OUT] & HOP_MASK)
            left = routers.slot[at(about[FIRST_SLOT] + about[HEAD]), LEFT] if routers.cut_through else 1
            out_vc, when = open_vc(routers, out, low, high, about[NEXT_VC], left, time)
        if when > time:
            again = min(again, when)
            continue
        choice[0], choice[1] = row, out_vc
        routers.wanted[at(out_port)] |= 1 << port
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
    for place in range(routers.n_front[at(device)]):
        n += routers.front[at(device), at(place), OUT] >> 2 * HOP_BITS == out
    if n <= most:
        return most
    n = 0
    for place in range(routers.n_front[at(device)]):
        front = routers.front[at(device), at(place)]
        row = routers.vc[at(front[ROW])]
        if front[OUT] >> 2 * HOP_BITS == out and row[OUT_VC] < 0:
            n += routers.slot[at(row[FIRST_SLOT] + row[HEAD]), AT] < time
    return max(n, most)


@compiled
def _note_head(routers: Routers, device: int, channel: int, out: int, message: int, ready: int, time: int) -> None:
    """A packet of a message goes on over a link of the mesh, and came through the pipeline at `ready`."""
    row, wait = routers.channel[at(out)], time - ready
    row[PACKETS] += 1
    if wait > 0:
        row[QUEUE_MAX] = _count_waiting(routers, device, out, row[QUEUE_MAX], time)
    if channel >= routers.first_extra:  # its first link: of a message only the first packet counts, from the beginning
        about, own = routers.message[at(message)], routers.channel[at(channel)]
        wait = 0 if about[PASSED] else time - about[HANDED] - own[NUM] - own[ONWARD]
        about[PASSED] = 1
    row[WAIT] += wait


@compiled
def _take_front(routers: Routers, device: int, channel: int, vc: int, left: int, out_vc: int, time: int) -> None:
    """Take the flit in front out of a buffer, a row of `vc`: its credit goes back, the next one comes to the front."""
    row, owner, fronts = routers.vc[at(vc)], routers.channel[at(channel)], routers.front[at(device)]
    head, place = row[HEAD], row[PLACE]
    back = time + owner[CREDIT]
    routers.slot[at(row[FIRST_SLOT] + head), AT] = row[LAST_CREDIT] = back
    if owner[STARVED]:
        owner[STARVED] = 0
        advance(routers.wake, owner[FEEDER], back)
    head = head + 1 if head + 1 < owner[BUFFER] else 0
    row[HEAD] = head
    row[COUNT] -= 1
    row[OUT_VC] = out_vc if left > 1 else -1
    if row[COUNT] > 0:
        slot, front = routers.slot[at(row[FIRST_SLOT] + head)], fronts[at(place)]
        # a head is routed and gets its virtual channel once it is in front
        front[READY] = max(slot[AT], time + routers.restart) if left == 1 else slot[AT]
        front[OUT] = routers.hop[at(slot[POSITION])]
    else:
        last = routers.n_front[at(device)] - 1
        routers.n_front[at(device)] = last
        for column in range(FRONT_FIELDS):
            fronts[at(place), column] = fronts[at(last), column]
        routers.vc[at(fronts[at(place), ROW]), PLACE] = place


@compiled
def _move(
    routers: Routers, work: Work, state: State, device: int, channel: int, vc: int, out: int, out_vc: int, time: int
) -> None:
    """Send the flit in front of a virtual channel, a row of `vc`, over the channel `out`."""
    row = routers.vc[at(vc)]
    slot = routers.slot[at(row[FIRST_SLOT] + row[HEAD])]
    message, position, left = slot[MESSAGE], slot[POSITION], slot[LEFT]
    if row[OUT_VC] < 0:
        row[NEXT_VC] = out_vc + 1
        if out < routers.first_extra:
            _note_head(routers, device, channel, out, message, slot[AT], time)
    _take_front(routers, device, channel, vc, left, out_vc, time)
    if routers.channel[at(out), SINK] >= 0:
        send(routers, state, out, out_vc, time, message, position + 1, left)
    else:
        arrival = time + carry(routers, state, out, time) + routers.channel[at(out), ONWARD]
        about = routers.message[at(message)]
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
        out = routers.out_channel[at(device), at(out_port)]
        port = next_bit(routers.wanted[at(out_port)], routers.channel[at(out), OUT_TURN])
        routers.wanted[at(out_port)] = 0
        routers.granted[at(port)] |= 1 << out_port
        inputs |= 1 << port
    while inputs:
        port = lowest_bit(inputs)
        inputs &= inputs - 1
        channel = routers.in_channel[at(routers.in_ptr[at(device)] + port)]
        owner = routers.channel[at(channel)]
        out_port = next_bit(routers.granted[at(port)], owner[IN_TURN])
        routers.granted[at(port)] = 0
        choice, out = routers.choice[at(port), at(out_port)], routers.out_channel[at(device), at(out_port)]
        vc, out_vc = choice[0], choice[1]
        routers.channel[at(out), OUT_TURN] = port + 1
        owner[IN_TURN] = out_port + 1
        owner[VC_TURN] = vc - channel * routers.n_vcs + 1
        _move(routers, work, state, device, channel, vc, out, out_vc, time)
    return again
