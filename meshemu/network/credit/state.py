"""What the kernels of back-pressure mode read and change, as arrays.

A channel is a link, or what joins a device to its router where the hardware states no such link. `vc` stands for
virtual channel. Ops, and what is reported of links, are in the arrays of `network.state`, as in FIFO mode.
"""

from typing import NamedTuple

from meshemu.network.events import Ints

__all__ = [
    "AT",
    "BACK",
    "BUFFER",
    "CHANNEL_FIELDS",
    "COUNT",
    "CREDIT",
    "DEN",
    "FEEDER",
    "FIRST_SLOT",
    "FLITS",
    "FLITS_IN_ALL",
    "FOLLOWING",
    "FREE",
    "FRONT",
    "HANDED",
    "HEAD",
    "HELD",
    "HOP_BITS",
    "HOP_MASK",
    "IN_FREE",
    "IN_TURN",
    "LAST_CREDIT",
    "LEFT",
    "MESSAGE",
    "MESSAGE_FIELDS",
    "MISSING",
    "NEXT_VC",
    "NUM",
    "OCCUPIED",
    "ONWARD",
    "OUT",
    "OUT_PORT",
    "OUT_TURN",
    "OUT_VC",
    "PACKETS",
    "PASSED",
    "POSITION",
    "QUEUED",
    "QUEUE_MAX",
    "READY",
    "REST",
    "SENDER",
    "SENT",
    "SINK",
    "SLOT_FIELDS",
    "SOURCE",
    "SOURCE_FIELDS",
    "START",
    "STARVED",
    "TO_SEND",
    "TURN",
    "VC",
    "VC_FIELDS",
    "VC_TURN",
    "WAIT",
    "Routers",
]

# Columns of `Routers.channel`. What it is: num / den, ps per flit; ps from when a flit has left it until the router
# behind may pass the flit on (ejection: until the device has it); ps until a credit is back; slots of a virtual
# channel; the first of them all; the device that sends on it; the device behind it (ejection: -1); its number among the
# outputs. As an output: when it is free; what the last flit left over of a picosecond, in 1 / den; the input whose turn
# is next; whether a flit lacked a credit; statistics. As an input: when it may ask again; the output and the virtual
# channel whose turn is next; how many virtual channels are occupied.
NUM, DEN, ONWARD, CREDIT, BUFFER, FIRST_SLOT, FEEDER, SINK, OUT_PORT = range(9)
FREE, REST, OUT_TURN, STARVED, FLITS, PACKETS, WAIT, QUEUE_MAX = range(9, 17)
IN_FREE, IN_TURN, VC_TURN, OCCUPIED, CHANNEL_FIELDS = range(17, 22)

# Columns of `Routers.vc`, a virtual channel of a channel. At the far end: first occupied slot of its buffer; how many
# are occupied, with flits on the way; of the flit in front, when it may go on, its hop, and in which virtual channel
# its packet goes on (-1: none yet); the virtual channel there whose turn is next. At the near end: whether a packet
# holds it; when the last credit is back.
HEAD, COUNT, READY, OUT, OUT_VC, NEXT_VC, HELD, LAST_CREDIT, VC_FIELDS = range(9)

# Columns of `Routers.slot`, room for one flit: when the flit in it may go on or, without one, when its credit is back;
# its message; where its route goes on in `hop`; how many flits of its packet are left, itself included.
AT, MESSAGE, POSITION, LEFT, SLOT_FIELDS = range(5)

# Columns of `Routers.source`, the queue of one message class at one injection channel: first and last message (-1:
# none); how many; of the first, flits sent, flits left of its packet, virtual channel of its packet (-1: none);
# the virtual channel whose turn is next.
FRONT, BACK, QUEUED, SENT, TO_SEND, VC, TURN, SOURCE_FIELDS = range(8)

# Columns of `Routers.message`: flits that have not arrived; its flits; where its route starts in `hop`; the device that
# sends it; its row of `source`; the message behind it there; when it came there (-1: not yet); whether a flit has gone
# on from the injection channel.
MISSING, FLITS_IN_ALL, START, SENDER, SOURCE, FOLLOWING, HANDED, PASSED, MESSAGE_FIELDS = range(9)

HOP_BITS = 8  # a hop is a channel and the virtual channels low <= vc < high of a class, packed
HOP_MASK = 2**HOP_BITS - 1


class Routers(NamedTuple):
    """Channels, routers, routes and messages: see the columns above.

    vc, occupied: n_vcs entries for each channel; the first channel[c, OCCUPIED] of occupied are numbers of occupied
    virtual channels. class_vc: the first virtual channel of the class, of each. hop: of all routes in order. Inputs of
    device d: in_channel[in_ptr[d] : in_ptr[d + 1]], those that it injects through: inject_channel[inject_ptr[d] :
    inject_ptr[d + 1]]; its outputs: out_channel[d]. first_extra: the first channel that is no link of the mesh. wake:
    see `wake`. Scratch, as bits: wanted, inputs that ask for each output; granted, outputs that grant each input; and
    choice, [inputs, outputs, 2]: with which entry of occupied an input asks, and for which virtual channel. cycle,
    restart: ps.
    """

    channel: Ints
    vc: Ints
    slot: Ints
    occupied: Ints
    class_vc: Ints
    source: Ints
    message: Ints
    hop: Ints
    in_ptr: Ints
    in_channel: Ints
    inject_ptr: Ints
    inject_channel: Ints
    out_channel: Ints
    wake: Ints
    wanted: Ints
    granted: Ints
    choice: Ints
    first_extra: int
    cycle: int
    restart: int
    n_vcs: int
    n_classes: int
    per_class: int
    packet_flits: int
    cut_through: int
