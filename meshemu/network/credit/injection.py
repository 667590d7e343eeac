"""The source queues of devices, compiled: messages come in whole and leave flit by flit."""

from meshemu.network.compiled import compiled
from meshemu.network.credit.sending import credit_at, open_vc, send
from meshemu.network.credit.state import (
    BACK,
    FLITS_IN_ALL,
    FOLLOWING,
    FREE,
    FRONT,
    HANDED,
    OUT_TURN,
    PACKETS,
    QUEUE_MAX,
    QUEUED,
    SENDER,
    SENT,
    SOURCE,
    START,
    TO_SEND,
    TURN,
    VC,
    WAIT,
    Routers,
)
from meshemu.network.credit.wake import advance
from meshemu.network.events import NEVER
from meshemu.network.ops import end_op
from meshemu.network.state import State, Work

__all__ = ["hand_over", "inject"]


@compiled
def _depart(routers: Routers, state: State, channel: int, message: int, queued: int, time: int) -> None:
    """The first flit of a message leaves its source queue, in which so many are."""
    state.depart[message] = time
    wait, row = time - routers.message[message, HANDED], routers.channel[channel]
    row[WAIT] += wait
    if wait > 0:
        row[QUEUE_MAX] = max(row[QUEUE_MAX], queued)


@compiled
def inject(routers: Routers, work: Work, state: State, device: int, time: int) -> int:
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
                vc, when = open_vc(routers, channel, low, low + per_class, source[TURN], left, time)
            else:
                left = source[TO_SEND]
                when = credit_at(routers, channel, vc, 0, time)
            if when > time:
                again = min(again, when)
                continue
            if source[VC] < 0:
                source[TURN] = vc + 1
                row[PACKETS] += 1
            if source[SENT] == 0:
                _depart(routers, state, channel, message, source[QUEUED], time)
            took = send(routers, state, channel, vc, time, message, about[START] + 1, left)
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
def hand_over(routers: Routers, message: int, time: int) -> None:
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
