"""Conservative windows: how the regions of several ranks run one virtual time without ever undoing an event.

What one rank does to another crosses a cut link, so it takes effect at least one lookahead (the least latency of a cut
link) later. Each round, a rank runs its events up to a horizon that nothing can come in before, then all exchange what
crossed, each with the time of its first pending event:

    horizon of a rank = min(first event of all others + lookahead, its own first event + 2 lookahead)

since another rank reaches this one with its own events after one lookahead, and with its answers to what this rank
sends after two. Times without events are skipped. At every link and unit events run in the order of (time, key), so the
results do not depend on how ranks and windows cut the work.
"""

import numpy as np
from numpy.typing import NDArray

from meshemu.comm import Comm
from meshemu.network.engine import Region
from meshemu.network.kernels import NEVER

__all__ = ["run_windows"]

Ints = NDArray[np.int64]

HEADER = -2  # position in the rows [first pending time, rank, HEADER, -] that come before the events


def run_windows(region: Region, comm: Comm | None, lookahead_ps: int | None) -> int:
    """Run all events of all ranks (comm None: one rank); returns the number of windows.

    `lookahead_ps` > 0, or None if no link is cut: then nothing crosses and one window does.
    """
    if comm is None:
        region.run(NEVER)
        return 1
    lookahead = NEVER if lookahead_ps is None else lookahead_ps
    first = _exchange(region, comm)
    windows = 0
    while min(first) < NEVER:
        others = min(time for rank, time in enumerate(first) if rank != comm.rank)
        region.run(min(_later(others, lookahead), _later(first[comm.rank], lookahead, lookahead)))
        first = _exchange(region, comm)
        windows += 1
    return windows


def _later(time: int, *delays: int) -> int:
    """Time plus delays, at most NEVER."""
    return min(NEVER, time + sum(delays))


def _exchange(region: Region, comm: Comm) -> list[int]:
    """Deliver what crossed; returns the first pending time of every rank.

    Every rank sends every other, ahead of the events, what it knows of all: its own first event and the first that it
    sends to each. So all agree on the times without another round.
    """
    outgoing = region.take_outgoing()
    pending = np.full(comm.size, NEVER, np.int64)
    np.minimum.at(pending, outgoing.rank, outgoing.rows[:, 0])
    pending[comm.rank] = region.next_time
    ranks = np.arange(comm.size)
    header = np.stack([pending, ranks, np.full(comm.size, HEADER), pending], axis=1)
    rows = [np.concatenate([header, outgoing.rows[outgoing.rank == peer]]) for peer in range(comm.size)]
    incoming = comm.all_to_all_rows(rows)
    is_header = incoming[:, 2] == HEADER
    headers = incoming[is_header]
    first = np.full(comm.size, NEVER, np.int64)
    np.minimum.at(first, headers[:, 1], headers[:, 0])
    region.accept(np.ascontiguousarray(incoming[~is_header]))
    return [int(time) for time in first]
