"""The compiled loop of back-pressure mode: devices are looked at when something may have changed for them.

What one device does reaches another strictly later (a flit takes its time on a link, a credit at least 1 ps), so
devices that are looked at in one picosecond do not see each other, and a look at which nothing can move changes
nothing. That is why no order among devices and no common clock has to be kept. With NUMBA_DISABLE_JIT=1 the same code
runs as plain Python; `reference` states the model again.
"""

from meshemu.network.compiled import compiled
from meshemu.network.credit.state import (
    AT,
    BACK,
    BUFFER,
    COUNT,
    CREDIT,
    DEN,
    FEEDER,
    FIRST_SLOT,
    FLITS,
    FLITS_IN_ALL,
    FOLLOWING,
    FREE,
    FRONT,
    HANDED,
    HEAD,
    HELD,
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
    QUEUED,
    READY,
    REST,
    SENDER,
    SENT,
    SINK,
    SOURCE,
    START,
    STARVED,
    TO_SEND,
    TURN,
    VC,
    VC_TURN,
    WAIT,
    Routers,
)
from meshemu.network.credit.wake import advance, first, settle
from meshemu.network.events import NEVER, OP_KEYS, PACKET_BITS
from meshemu.network.heap import pop
from meshemu.network.link_statistics import add_busy
from meshemu.network.ops import arrive, end_op, start_op
from meshemu.network.state import EVENTS, HEAP, NEXT_START, State, Work

__all__ = ["run"]


@compiled
def _credit_at(routers: Routers, channel: int, vc: int, ahead: int, time: int) -> int:
    """When a flit `ahead` of the next one has a credit, that is, room behind the channel; `time` if it has one now.

    Credits come back in the order in which the flits were sent, so those before it have one by then. NEVER where its
    slot is still occupied: then the sender is told when that changes.
    """
    row, owner = routers.vc[channel * routers.n_vcs + vc], routers.channel[channel]
    size = owner[BUFFER]
    if row[COUNT] + ahead >= size:
        owner[STARVED] = 1
        return NEVER
    if row[LAST_CREDIT] <= time:  # spares a look at the slots, which are seldom in the cache
        return time
    slot = row[HEAD] + row[COUNT] + ahead
    if slot >= size:
        slot -= size
    at: int = routers.slot[owner[FIRST_SLOT] + vc * size + slot, AT]
    return at


@compiled
def _open_vc(routers: Routers, channel: int, low: int, high: int, turn: int, left: int, time: int) -> tuple[int, int]:
    """A virtual channel low <= vc < high that a packet of `left` flits can take now, and `time`, by turns; or -1 and
    when there may be one.
    """
    ahead = left - 1 if routers.cut_through else 0
    vc = turn if low <= turn < high else low
    earliest = NEVER
    for _ in range(high - low):
        if routers.vc[channel * routers.n_vcs + vc, HELD] == 0:
            at = _credit_at(routers, channel, vc, ahead, time)
            if at <= time:
                return vc, time
            earliest = min(earliest, at)
        vc += 1
        if vc == high:
            vc = low
    return -1, earliest


@compiled
def _carry(routers: Routers, state: State, channel: int, time: int) -> int:
    """Put a flit on a free channel; returns how long it takes.

    Flit k takes C(k + 1) - C(k) with C(k) = ceil(k num / den), so that rates are exact however short a flit is.
    """
    row = routers.channel[channel]
    took: int = row[NUM]
    den = row[DEN]
    if den > 1:
        took = (took - row[REST] + den - 1) // den
        row[REST] += took * den - row[NUM]
    row[FREE] = time + took
    if channel < routers.first_extra:
        row[FLITS] += 1
        if state.busy_bins.shape[1] > 0:
            add_busy(state.link[channel], state.busy_bins[channel], time, time + took)
    return took


@compiled
def _send(
    routers: Routers, state: State, channel: int, vc: int, time: int, message: int, position: int, left: int
) -> int:
    """Send a flit over a channel into the buffer behind it; returns how long it takes. position: of its next hop."""
    took = _carry(routers, state, channel, time)
    owner, row = routers.channel[channel], routers.vc[channel * routers.n_vcs + vc]
    ready = time + took + owner[ONWARD]
    if row[COUNT] == 0 and row[LAST_CREDIT] <= time:
        row[HEAD] = 0  # all slots are free alike: use few of them, which stay in the cache
    tail = row[HEAD] + row[COUNT]
    if tail >= owner[BUFFER]:
        tail -= owner[BUFFER]
    slot = routers.slot[owner[FIRST_SLOT] + vc * owner[BUFFER] + tail]
    slot[AT], slot[MESSAGE], slot[POSITION], slot[LEFT] = ready, message, position, left
    row[HELD] = left > 1
    row[COUNT] += 1
    if row[COUNT] == 1:
        row[READY], row[OUT] = ready, routers.hop[position]
        routers.occupied[channel * routers.n_vcs + owner[OCCUPIED]] = vc
        owner[OCCUPIED] += 1
        advance(routers.wake, owner[SINK], ready)
    return took


@compiled
def _depart(routers: Routers, state: State, channel: int, message: int, queued: int, time: int) -> None:
    """The first flit of a message leaves its source queue, in which so many are."""
    state.depart[message] = time
    wait, row = time - routers.message[message, HANDED], routers.channel[channel]
    row[WAIT] += wait
    if wait > 0:
        row[QUEUE_MAX] = max(row[QUEUE_MAX], queued)


@compiled
def _inject(routers: Routers, work: Work, state: State, device: int, time: int) -> int:
    """Send the next flit from the source queues of a device, over each injection channel that is free.

    Message classes take turns flit by flit; within a class one packet follows the other. Returns when to look again.
    """
    again, n_classes, per_class = NEVER, routers.n_classes, routers.per_class
    for port in range(routers.inject_ptr[device], routers.inject_ptr[device + 1]):
        channel = routers.inject_channel[port]
        row = routers.channel[channel]
        for turn in range(n_classes):
            message_class = row[OUT_TURN] + turn
            if message_class >= n_classes:
                message_class -= n_classes
            source = routers.source[port * n_classes + message_class]
            message = source[FRONT]
            if message < 0:
                continue
            if row[FREE] > time:
                again = min(again, row[FREE])
                break
            about, vc = routers.message[message], source[VC]
            if vc < 0:
                left, low = min(routers.packet_flits, about[FLITS_IN_ALL] - source[SENT]), message_class * per_class
                vc, at = _open_vc(routers, channel, low, low + per_class, source[TURN], left, time)
            else:
                left = source[TO_SEND]
                at = _credit_at(routers, channel, vc, 0, time)
            if at > time:
                again = min(again, at)
                continue
            if source[VC] < 0:
                source[TURN] = vc + 1
                row[PACKETS] += 1
            if source[SENT] == 0:
                _depart(routers, state, channel, message, source[QUEUED], time)
            took = _send(routers, state, channel, vc, time, message, about[START] + 1, left)
            row[OUT_TURN] = message_class + 1 if message_class + 1 < n_classes else 0
            source[SENT] += 1
            source[TO_SEND] = left - 1
            source[VC] = vc if left > 1 else -1
            if source[SENT] == about[FLITS_IN_ALL]:
                source[FRONT] = about[FOLLOWING]
                source[SENT] = 0
                source[QUEUED] -= 1
                if work.send_op[message] >= 0:
                    end_op(work, state, work.send_op[message], time + took)
            if n_classes > 1 or source[FRONT] >= 0:
                again = min(again, row[FREE])
            break
    return again


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
            at = _credit_at(routers, out, out_vc, 0, time)
        else:
            low = routers.class_vc[vc]
            low, high = low + (front[OUT] >> HOP_BITS & HOP_MASK), low + (front[OUT] & HOP_MASK)
            left = routers.slot[row[FIRST_SLOT] + vc * row[BUFFER] + front[HEAD], LEFT] if routers.cut_through else 1
            out_vc, at = _open_vc(routers, out, low, high, front[NEXT_VC], left, time)
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
        _send(routers, state, out, out_vc, time, message, position + 1, left)
    else:
        arrival = time + _carry(routers, state, out, time) + routers.channel[out, ONWARD]
        about = routers.message[message]
        about[MISSING] -= 1
        if about[MISSING] == 0:
            arrive(work, state, message, arrival)


@compiled
def _switch(routers: Routers, work: Work, state: State, device: int, time: int) -> int:
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


@compiled
def _hand_over(routers: Routers, message: int, time: int) -> None:
    """Put a message at the end of its source queue."""
    about = routers.message[message]
    source = routers.source[about[SOURCE]]
    if source[FRONT] < 0:
        source[FRONT] = message
    else:
        routers.message[source[BACK], FOLLOWING] = message
    source[BACK] = message
    source[QUEUED] += 1
    about[HANDED] = time
    advance(routers.wake, about[SENDER], time)


@compiled
def run(routers: Routers, work: Work, state: State) -> None:
    """Run everything. At one time first ops start and messages are handed over, then devices are looked at."""
    scalar, starts, wake = state.scalar, work.start, routers.wake
    while True:
        time, key = NEVER, NEVER
        if scalar[HEAP] > 0:
            time, key = state.heap[0], state.heap[1]
        next_start = scalar[NEXT_START]
        from_heap = next_start == len(starts) or (time, key) < (starts[next_start, 0], starts[next_start, 1])
        if not from_heap:
            time, key = starts[next_start, 0], starts[next_start, 1]
        if wake[1] < time:
            time = wake[1]
            device = first(wake)
            again = _inject(routers, work, state, device, time)
            settle(wake, device, min(again, _switch(routers, work, state, device, time)))
        elif time == NEVER:
            return
        else:
            if from_heap:
                pop(state.heap, scalar)
            else:
                scalar[NEXT_START] += 1
            if key < 0:
                start_op(work, state, key + OP_KEYS, time)
            else:
                _hand_over(routers, key >> PACKET_BITS, time)
        scalar[EVENTS] += 1
