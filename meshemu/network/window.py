"""Conservative windows: how the regions of several ranks run one virtual time without ever undoing an event.

Each round, a rank says before which time nothing that is pending on it can be felt elsewhere (`reach`), its effect. All
run their events up to one horizon, the least effect, since nothing comes in anywhere before that; then they exchange
what crossed, with their new effects. Whatever has an effect happens at least one lookahead (the least latency of a cut
link) before it, so each round runs something. The rank that the horizon comes from could go on for one lookahead more,
but the others would then wait for it, and it for them in the next round. Events on their way to a rank count as pending
there. Times in which nothing crosses are skipped. At every link and unit events run in the order of (time, key), so the
results do not depend on how ranks and windows cut the work.
"""

import time
from dataclasses import dataclass

import numpy as np

from meshemu.comm import Comm
from meshemu.network.engine import NO_ROWS, Region
from meshemu.network.events import Ints

__all__ = ["WindowCounts", "run_windows"]

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
    windows, sent, busy_s = 0, 0, 0.0
    rows, last = NO_ROWS, False
    while not last:
        if comm is not None and lookahead_ps is not None:
            outgoing = region.outgoing()
            sent += len(outgoing) - comm.size
            rows = _exchange(comm, outgoing)
        entered = time.thread_time()
        last = region.run(rows)
        busy_s += time.thread_time() - entered
        windows += 1
    region.finish()
    return WindowCounts(windows, sent, busy_s)


def _exchange(comm: Comm, outgoing: Ints) -> Ints:
    """Send what crossed; returns what came in.

    Every rank sends every other, ahead of the events, what it knows of all: its own effect, and for each other rank
    that of the events for it. So all find the same horizon without another round.
    """
    n = comm.size
    told = [outgoing] * n
    if n > 2:
        headers, events = outgoing[:n], outgoing[n:]
        told = [np.concatenate((headers, events[events[:, 4] == peer])) for peer in range(n)]
    heard = comm.all_to_all_rows(told)
    del heard[comm.rank]
    return heard[0] if n == 2 else np.concatenate(heard)
