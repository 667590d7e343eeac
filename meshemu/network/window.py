"""Conservative windows: how the regions of several ranks run one virtual time without ever undoing an event.

What one rank does to another crosses a cut link, so it takes effect at least one lookahead (the least latency of a cut
link) later. Each round, a rank runs its events up to a horizon that nothing can come in before, then all exchange what
crossed, each with the time of its first pending event:

    horizon of a rank = min(first event of all others + lookahead, its own first event + 2 lookahead)

since another rank reaches this one with its own events after one lookahead, and with its answers to what this rank
sends after two. Times without events are skipped. At every link and unit events run in the order of (time, key), so the
results do not depend on how ranks and windows cut the work.
"""

import time
from dataclasses import dataclass

import numpy as np

from meshemu.comm import Comm
from meshemu.network.engine import NO_ROWS, Region
from meshemu.network.events import NEVER, ROW, Ints

__all__ = ["WindowCounts", "run_windows"]

HEADER = -2  # `where` of the rows [first pending time, rank, HEADER, -, -] that come before the events


@dataclass(frozen=True)
class WindowCounts:
    """How one rank ran: windows; events sent to other ranks; busy_s, processor time in the event loop."""

    windows: int
    sent: int
    busy_s: float


def run_windows(region: Region, comm: Comm | None, lookahead_ps: int | None) -> WindowCounts:
    """Run all events of all ranks (comm None: one rank).

    `lookahead_ps` > 0, or None if no link is cut: then nothing crosses and one window does.
    """
    rank = 0 if comm is None else comm.rank
    lookahead = NEVER if lookahead_ps is None else lookahead_ps
    windows, sent, busy_s = 0, 0, 0.0
    first, rows = [region.next_time], NO_ROWS
    while True:
        if comm is not None:
            outgoing = region.take_outgoing()
            sent += len(outgoing)
            first, rows = _exchange(comm, outgoing, region.next_time)
        if min(first) == NEVER:
            break
        others = min(first[:rank] + first[rank + 1 :], default=NEVER)
        entered = time.thread_time()
        region.run(min(_later(others, lookahead), _later(first[rank], lookahead, lookahead)), rows)
        busy_s += time.thread_time() - entered
        windows += 1
        first = [region.next_time]
    region.finish()
    return WindowCounts(windows, sent, busy_s)


def _later(moment: int, *delays: int) -> int:
    """Moment plus delays, at most NEVER."""
    return min(NEVER, moment + sum(delays))


def _exchange(comm: Comm, outgoing: Ints, own_first: int) -> tuple[list[int], Ints]:
    """Send what crossed; returns the first pending time of every rank, what comes in counted, and what came in.

    Every rank sends every other, ahead of the events, what it knows of all: its own first event and the first that it
    sends to each. So all agree on the times without another round.
    """
    rows = [outgoing[outgoing[:, 4] == peer] for peer in range(comm.size)]
    header = np.zeros((comm.size, ROW), np.int64)
    header[:, 0] = [int(part[:, 0].min(initial=NEVER)) for part in rows]
    header[comm.rank, 0] = own_first
    header[:, 1] = range(comm.size)
    header[:, 2] = HEADER
    incoming = comm.all_to_all_rows([np.concatenate((header, part)) for part in rows])
    is_header = incoming[:, 2] == HEADER
    told = incoming[is_header, 0].reshape(comm.size, comm.size)
    return [int(moment) for moment in told.min(axis=0)], incoming[~is_header]
