"""Conservative windows: how the regions of several ranks run one virtual time without ever undoing an event.

Each round, a rank says before which time nothing that is pending on it can be felt elsewhere (`reach`), its effect. It
runs its events up to a horizon that nothing can come in before, then all exchange what crossed, with their effects:

    horizon of a rank = min(effects of all others, its own effect + lookahead)

since what it does itself comes back, if at all, over another cut link, one lookahead (the least latency of a cut link)
after it was felt elsewhere. Events on their way to a rank count as pending there. Times in which nothing crosses are
skipped. At every link and unit events run in the order of (time, key), so the results do not depend on how ranks and
windows cut the work.
"""

import time
from dataclasses import dataclass

import numpy as np

from meshemu.comm import Comm
from meshemu.network.engine import NO_ROWS, Region
from meshemu.network.events import NEVER, ROW, Ints

__all__ = ["WindowCounts", "run_windows"]

HEADER = -2  # `where` of the rows [-, -, HEADER, -, -, effect] that come before the events, one for each rank


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
    effects, rows = [NEVER], NO_ROWS
    rank = 0 if comm is None else comm.rank
    while True:
        if comm is not None and lookahead_ps is not None:
            outgoing = region.take_outgoing()
            sent += len(outgoing)
            effects, rows = _exchange(comm, outgoing, region.effect)
        horizon = min(effects[:rank] + effects[rank + 1 :], default=NEVER)
        if lookahead_ps is not None:
            horizon = min(horizon, effects[rank] + lookahead_ps)
        entered = time.thread_time()
        region.run(horizon, rows)
        busy_s += time.thread_time() - entered
        windows += 1
        if min(effects) == NEVER:
            break
    region.finish()
    return WindowCounts(windows, sent, busy_s)


def _exchange(comm: Comm, outgoing: Ints, own_effect: int) -> tuple[list[int], Ints]:
    """Send what crossed; returns the effect of every rank, what comes in counted, and what came in.

    Every rank sends every other, ahead of the events, what it knows of all: its own effect, and for each other rank
    that of the events for it. So all agree without another round.
    """
    header = np.full((comm.size, ROW), NEVER)
    header[:, 2] = HEADER
    header[comm.rank, 5] = own_effect
    told = [header] * comm.size
    if len(outgoing):
        rows = [outgoing[outgoing[:, 4] == peer] for peer in range(comm.size)]
        for peer, part in enumerate(rows):
            header[peer, 5] = part[:, 5].min(initial=header[peer, 5])
        told = [np.concatenate((header, part)) for part in rows]
    incoming = comm.all_to_all_rows(told)
    is_header = incoming[:, 2] == HEADER
    effects = incoming[is_header, 5].reshape(comm.size, comm.size).min(axis=0)
    return effects.tolist(), incoming[~is_header]
