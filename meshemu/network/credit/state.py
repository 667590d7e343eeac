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
    "FRONT_FIELDS",
    "HANDED",
    "HEAD",
    "HELD",
    "HOP_BITS",
    "HOP_MASK",
    "IN_FREE",
    "IN_PORT",
    "IN_TURN",
    "LAST_CREDIT",
    "LEFT",
    "MESSAGE",
    "MESSAGE_FIELDS",
    "MISSING",
    "NEXT_VC",
    "NUM",
    "ONWARD",
    "OUT",
    "OUT_PORT",
    "OUT_TURN",
    "OUT_VC",
    "PACKETS",
    "PASSED",
    "PLACE",
    "PORT",
    "POSITION",
    "QUEUED",
    "QUEUE_MAX",
    "READY",
    "REST",
    "ROW",
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

# The rows below fill one cache line, three, or a half, and what is used together is in one line.

# Columns of `Routers.channel`. As an output: num / den, ps per flit; ps from when a flit has left it until the router
# behind may pass the flit on (ejection: until the device has it); the device behind it (ejection: -1); its number among
# the outputs; when it is free; the input whose turn is next; flits that it has carried.
NUM, DEN, ONWARD, SINK, OUT_PORT, FREE, OUT_TURN, FLITS = range(8)
# As an input and for its credits: slots of a virtual channel; its number among the inputs; when it may ask again; the
# output and the virtual channel whose turn is next; ps until a credit is back; whether a flit lacked a credit; the
# device that sends on it.
BUFFER, IN_PORT, IN_FREE, IN_TURN, VC_TURN, CREDIT, STARVED, FEEDER = range(8, 16)
# What the last flit left over of a picosecond, in 1 / den; statistics.
REST, PACKETS, WAIT, QUEUE_MAX, CHANNEL_FIELDS = 16, 17, 18, 19, 24

# Columns of `Routers.vc`, a virtual channel of a channel. At the far end: the first slot of its buffer; there the first
# occupied one; how many are occupied, with flits on the way; where the flit in front is in `front`; in which virtual
# channel its packet goes on (-1: none yet); the virtual channel there whose turn is next. At the near end: whether a
# packet holds it; when the last credit is back.
FIRST_SLOT, HEAD, COUNT, PLACE, OUT_VC, NEXT_VC, HELD, LAST_CREDIT, VC_FIELDS = range(9)

# Columns of `Routers.front`, the flit in front of a virtual channel: when it may go on; its hop; the row of the virtual
# channel in `vc`; the number of its channel among the inputs.
READY, OUT, ROW, PORT, FRONT_FIELDS = range(5)

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

    vc: n_vcs rows for each channel. front: [n_devices, most, FRONT_FIELDS], of each device n_front[d] rows in any
    order, one for each virtual channel that is not empty. class_vc: the first virtual channel of the class, of each.
    hop: of all routes in order. Inputs of device d: in_channel[in_ptr[d] : in_ptr[d + 1]], those that it injects
    through: inject_channel[inject_ptr[d] : inject_ptr[d + 1]]; its outputs: out_channel[d]. first_extra: the first
    channel that is no link of the mesh. wake: see `wake`. Scratch: wanted, as bits the inputs that ask for each output,
    0 between looks; granted, as bits the outputs that grant each input; choice, [inputs, outputs, 2]: with which row of
    `vc` an input asks, and for which virtual channel. cycle, restart: ps.
    """

    channel: Ints
    vc: Ints
    slot: Ints
    front: Ints
    n_front: Ints
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
