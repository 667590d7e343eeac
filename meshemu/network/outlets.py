"""Where the events of packets go that leave a link: to its line, into the heap, or to another rank. Compiled.

Packets leave a link in order, so all but the first of their events can stand in a line outside the heap: it holds about
one event per link, not one per packet that waits. Whenever an event from a line is run, the next of the line takes its
place; so each event that stands in a line has an earlier one of that line in the heap.
"""

from meshemu.network.compiled import at, compiled
from meshemu.network.events import Ints
from meshemu.network.heap import push, replace
from meshemu.network.state import (
    LINE,
    LINE_FREE,
    LINE_HEAD,
    LINE_HEAP,
    LINE_TAIL,
    LINE_TIME,
    OUT,
)

__all__ = ["follow", "join_line", "jump_line", "send_out"]


@compiled
def join_line(
    link: Ints, line: Ints, scalar: Ints, time: int, key: int, where: int, tail: int, last_time: int
) -> bool:
    """Put the event of a packet or train that leaves a link (`link` is its row) at the end of the line of the link.

    last_time: of the last packet of the train. False if the event has to enter the heap now: no other of the line is
    there to be followed, or it ties with the last, when the heap has to decide who goes first, or no entry is free.
    """
    entry = scalar[LINE_FREE]
    joins = link[LINE_HEAP] > 0 and time > link[LINE_TIME] and entry >= 0
    link[LINE_TIME] = last_time
    if not joins:
        link[LINE_HEAP] += 1
        return False
    event = line[at(entry)]
    scalar[LINE_FREE] = event[0]
    event[1], event[2], event[3], event[4] = time, key, where, tail
    if link[LINE] == 0:
        link[LINE_HEAD] = entry
    else:
        line[at(link[LINE_TAIL]), 0] = entry
    link[LINE_TAIL] = entry
    link[LINE] += 1
    return True


@compiled
def jump_line(link: Ints, heap: Ints, scalar: Ints, time: int, key: int, where: int) -> None:
    """Put a cut of the last train of a line into the heap, outside the line: it is due before the train would end.

    What leaves the link next may be due at the same time. It can join the line, since a cut is run before packets.
    """
    link[LINE_TIME] = time - 1
    push(heap, scalar, time, key, where, 0)


@compiled
def follow(link: Ints, line: Ints, heap: Ints, scalar: Ints) -> bool:
    """The first event of the heap is from the line of this link: put the next of the line in its place, if any."""
    if link[LINE] == 0:
        link[LINE_HEAP] -= 1
        return False
    entry = link[LINE_HEAD]
    event = line[at(entry)]
    replace(heap, scalar, event[1], event[2], event[3], event[4])
    link[LINE_HEAD] = event[0]
    link[LINE] -= 1
    event[0] = scalar[LINE_FREE]
    scalar[LINE_FREE] = entry
    return True


@compiled
def send_out(out: Ints, scalar: Ints, time: int, key: int, where: int, tail: int, owner: int) -> None:
    """Put an event in the outbox for the rank `owner`."""
    row = out[at(scalar[OUT])]
    row[0], row[1], row[2], row[3], row[4] = time, key, where, tail, owner
    scalar[OUT] += 1
