"""The switch of a router, compiled: which flits move on, over which channels, and what that changes."""

from meshemu.network.compiled import compiled
from meshemu.network.credit.sending import carry, credit_at, open_vc, send
from meshemu.network.credit.state import (
    AT,
    BUFFER,
    COUNT,
    CREDIT,
    FEEDER,
    FIRST_SLOT,
    FREE,
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
    OCCUPIED,
    ONWARD,
    OUT,
    OUT_PORT,
    OUT_TURN,
    OUT_VC,
    PACKETS,
    PASSED,
    POSITION,
    QUEUE_MAX,
    READY,
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
def _next_bit(bits: int, turn: int, n: int) -> int:
    """The first of `n` bits that is set, counted from `turn` around; one of them is."""
    at = turn if turn < n else 0
    while not bits >> at & 1:
        at = at + 1 if at + 1 < n else 0
    return at


@compiled
def _ask(routers: Routers, channel: int, port: int, time: int) -> int:
    """Let an input ask for every output to which it could send a flit now, for each with one virtual channel, by turns.

    The flit has to be through the pipeline, the output free, and a credit there for the virtual channel that its packet
    has or can take. Returns when to look again.
    """
    row, again = routers.channel[channel], NEVER
    first_vc = channel * routers.n_vcs
    asked = False
    for entry in range(first_vc, first_vc + row[OCCUPIED]):
        vc = routers.occupied[entry]
        front = routers.vc[first_vc + vc]
        if front[READY] > time:
            again = min(again, front[READY])
            continue
        out = front[OUT] >> 2 * HOP_BITS
        output = routers.channel[out]
        if output[FREE] > time:
            again = min(again, output[FREE])
            continue
        out_port = output[OUT_PORT]
        choice = routers.choice[port, out_port]
        if routers.wanted[out_port] >> port & 1:
            turn, other = row[VC_TURN], routers.occupied[choice[0]]
            if (vc - turn) % routers.n_vcs > (other - turn) % routers.n_vcs:
                continue
        out_vc, at = front[OUT_VC], time
        if output[SINK] < 0:
            out_vc = 0  # the device takes whatever comes
        elif out_vc >= 0:
            at = credit_at(routers, out, out_vc, 0, time)
        else:
            low = routers.class_vc[vc]
            low, high = low + (front[OUT] >> HOP_BITS & HOP_MASK), low + (front[OUT] & HOP_MASK)
            left = routers.slot[row[FIRST_SLOT] + vc * row[BUFFER] + front[HEAD], LEFT] if routers.cut_through else 1
            out_vc, at = open_vc(routers, out, low, high, front[NEXT_VC], left, time)
        if at > time:
            again = min(again, at)
            continue
        choice[0], choice[1] = entry, out_vc
        routers.wanted[out_port] |= 1 << port
        asked = True
    if asked:
        row[IN_FREE] = time + routers.cycle
    return again


@compiled
def _count_waiting(routers: Routers, device: int, out: int, time: int) -> int:
    """Packets in front of the virtual channels of a router that have been waiting for the channel `out`."""
    n = 0
    for port in range(routers.in_ptr[device], routers.in_ptr[device + 1]):
        first_vc, owner = routers.in_channel[port] * routers.n_vcs, routers.channel[routers.in_channel[port]]
        for entry in range(first_vc, first_vc + owner[OCCUPIED]):
            vc = routers.occupied[entry]
            row = routers.vc[first_vc + vc]
            if row[OUT] >> 2 * HOP_BITS == out and row[OUT_VC] < 0:
                n += routers.slot[owner[FIRST_SLOT] + vc * owner[BUFFER] + row[HEAD], AT] < time
    return n


@compiled
def _note_head(
    routers: Routers, device: int, channel: int, out: int, message: int, ready: int, time: int
) -> None:
    """A packet of a message goes on over a link of the mesh, and came through the pipeline at `ready`."""
    row, wait = routers.channel[out], time - ready
    row[PACKETS] += 1
    if wait > 0:
        row[QUEUE_MAX] = max(row[QUEUE_MAX], _count_waiting(routers, device, out, time))
    if channel >= routers.first_extra:  # its first link: of a message only the first packet counts, from the beginning
        about, own = routers.message[message], routers.channel[channel]
        wait = 0 if about[PASSED] else time - about[HANDED] - own[NUM] - own[ONWARD]
        about[PASSED] = 1
    row[WAIT] += wait


@compiled
def _take_front(routers: Routers, channel: int, entry: int, left: int, out_vc: int, time: int) -> None:
    """Take the flit in front out of the buffer: its credit goes back, and the next one comes to the front."""
    vc, owner = routers.occupied[entry], routers.channel[channel]
    row = routers.vc[channel * routers.n_vcs + vc]
    first_slot = owner[FIRST_SLOT] + vc * owner[BUFFER]
    head = row[HEAD]
    back = time + owner[CREDIT]
    routers.slot[first_slot + head, AT] = row[LAST_CREDIT] = back
    if owner[STARVED]:
        owner[STARVED] = 0
        advance(routers.wake, owner[FEEDER], back)
    head = head + 1 if head + 1 < owner[BUFFER] else 0
    row[HEAD] = head
    row[COUNT] -= 1
    row[OUT_VC] = out_vc if left > 1 else -1
    if row[COUNT] > 0:
        front = routers.slot[first_slot + head]
        row[READY], row[OUT] = front[AT], routers.hop[front[POSITION]]
        if left == 1:  # a head: it is routed and gets its virtual channel once it is in front
            row[READY] = max(row[READY], time + routers.restart)
    else:
        owner[OCCUPIED] -= 1
        routers.occupied[entry] = routers.occupied[channel * routers.n_vcs + owner[OCCUPIED]]


@compiled
def _move(
    routers: Routers, work: Work, state: State, device: int, channel: int, entry: int, out: int, out_vc: int, time: int
) -> None:
    """Send the flit in front of a virtual channel, an entry of `occupied`, over the channel `out`."""
    vc = routers.occupied[entry]
    row, owner = routers.vc[channel * routers.n_vcs + vc], routers.channel[channel]
    slot = routers.slot[owner[FIRST_SLOT] + vc * owner[BUFFER] + row[HEAD]]
    message, position, left = slot[MESSAGE], slot[POSITION], slot[LEFT]
    if row[OUT_VC] < 0:
        row[NEXT_VC] = out_vc + 1
        if out < routers.first_extra:
            _note_head(routers, device, channel, out, message, slot[AT], time)
    _take_front(routers, channel, entry, left, out_vc, time)
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
    begin, n_out = routers.in_ptr[device], len(routers.wanted)
    n_ports = routers.in_ptr[device + 1] - begin
    again = NEVER
    for out_port in range(n_out):
        routers.wanted[out_port] = 0
    for port in range(n_ports):
        channel = routers.in_channel[begin + port]
        row = routers.channel[channel]
        if row[OCCUPIED] > 0:
            routers.granted[port] = 0
            if row[IN_FREE] <= time:
                again = min(again, _ask(routers, channel, port, time))
            if row[IN_FREE] > time:
                again = min(again, row[IN_FREE])
    inputs = 0
    for out_port in range(n_out):
        wanted = routers.wanted[out_port]
        if wanted:
            port = _next_bit(wanted, routers.channel[routers.out_channel[device, out_port], OUT_TURN], n_ports)
            routers.granted[port] |= 1 << out_port
            inputs |= 1 << port
    for port in range(n_ports):
        if inputs >> port & 1:
            channel = routers.in_channel[begin + port]
            out_port = _next_bit(routers.granted[port], routers.channel[channel, IN_TURN], n_out)
            entry, out_vc = routers.choice[port, out_port, 0], routers.choice[port, out_port, 1]
            out = routers.out_channel[device, out_port]
            routers.channel[out, OUT_TURN] = port + 1
            routers.channel[channel, IN_TURN] = out_port + 1
            routers.channel[channel, VC_TURN] = routers.occupied[entry] + 1
            _move(routers, work, state, device, channel, entry, out, out_vc, time)
    return again
