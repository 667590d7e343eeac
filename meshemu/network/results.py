"""What the timing engine returns: times of ops and messages, and statistics of every link."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["EngineCounters", "LinkStats", "MessageTimes", "OpTimes", "RankCounters", "Timeline", "Timing"]


@dataclass(frozen=True, eq=False)
class LinkStats:
    """Per link, int64[n_links]: bytes carried; busy_ps; wait_ps, how long heads of packets waited for the link (the
    first link of a message counts its first packet only); packets; max_queue, most packets waiting at once.
    """

    bytes: NDArray[np.int64]
    busy_ps: NDArray[np.int64]
    wait_ps: NDArray[np.int64]
    packets: NDArray[np.int64]
    max_queue: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Timeline:
    """link_busy_ps: int64[n_bins, n_links]; bin b covers b * bin_ps <= t < (b + 1) * bin_ps."""

    bin_ps: int
    link_busy_ps: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class OpTimes:
    """start_ps, end_ps: int64[n_ops] of a Program."""

    start_ps: NDArray[np.int64]
    end_ps: NDArray[np.int64]


@dataclass(frozen=True)
class RankCounters:
    """How one rank worked: events run, events sent to other ranks, processor time in the event loop."""

    events: int
    sent: int
    busy_s: float


@dataclass(frozen=True)
class EngineCounters:
    """How the engine worked (goes to /run: may depend on the number of ranks).

    windows: rounds of running and exchanging. wall_s: of these rounds. ranks: each on its own.
    """

    events: int
    packet_hops: int
    windows: int
    wall_s: float
    ranks: tuple[RankCounters, ...] = ()

    @property
    def imbalance(self) -> float:
        """Processor time of the busiest rank over the mean of all, 1 where they are equal."""
        busy = [rank.busy_s for rank in self.ranks]
        return max(busy) * len(busy) / sum(busy) if any(busy) else 1.0


@dataclass(frozen=True, eq=False)
class Timing:
    """Virtual time of a Program, the same on every rank and for every number of ranks.

    end_ps: when the last op ends. depart_ps, arrival_ps: int64[n_messages], when the head left and the tail arrived.
    """

    end_ps: int
    ops: OpTimes
    depart_ps: NDArray[np.int64]
    arrival_ps: NDArray[np.int64]
    links: LinkStats
    timeline: Timeline
    counters: EngineCounters


@dataclass(frozen=True, eq=False)
class MessageTimes:
    """Times of independent messages: depart_ps, arrival_ps int64[n_messages], and the link statistics."""

    depart_ps: NDArray[np.int64]
    arrival_ps: NDArray[np.int64]
    links: LinkStats
    timeline: Timeline
    counters: EngineCounters

    @property
    def end_ps(self) -> int:
        """Arrival of the last message (0 if there is none)."""
        return int(self.arrival_ps.max(initial=0))
