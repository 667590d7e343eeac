"""What a link notes of the packets that enter it: how many wait, and when it is busy. Compiled."""

from meshemu.network.compiled import at, compiled, kernel
from meshemu.network.events import Ints
from meshemu.network.state import (
    BUSY,
    CARRIED,
    FREE,
    HOPS,
    PACKETS,
    QUEUE,
    QUEUE_FREE,
    QUEUE_HEAD,
    QUEUE_MAX,
    QUEUE_TAIL,
    SHIFT,
    WAIT,
    State,
)

__all__ = ["add_busy", "enqueue", "enter", "widen_all_bins"]


@compiled
def _widen_bins(link: Ints, bins: Ints, shift: int) -> None:
    """Make the bins of a link (`link` is its row) 2**shift ps wide, if they are narrower: each becomes a sum."""
    merge = shift - link[SHIFT]
    if merge <= 0:
        return
    link[SHIFT] = shift
    for b in range(1, len(bins)):
        busy = bins[b]
        bins[b] = 0
        bins[at(b >> merge)] += busy


@kernel
def widen_all_bins(links: Ints, busy_bins: Ints, shift: int) -> None:
    """Make the bins of every link 2**shift ps wide."""
    for link_id in range(len(links)):
        _widen_bins(links[link_id], busy_bins[link_id], shift)


@compiled
def add_busy(link: Ints, bins: Ints, start: int, end: int) -> None:
    """Add the busy time start <= t < end of a link to its bins, which become wide enough to reach there."""
    shift = link[SHIFT]
    while (end - 1) >> shift >= len(bins):
        shift += 1
    _widen_bins(link, bins, shift)
    b = start >> shift
    while start < end:
        edge = (b + 1) << shift
        stop = min(edge, end)
        bins[at(b)] += stop - start
        start = stop
        b += 1


@compiled
def enqueue(link: Ints, queue: Ints, free: int, arrival: int, start: int) -> int:
    """Count a packet that arrives at a link and enters it at `start` among those waiting; returns the free entry.

    `link` is the row of the link; an entry is free. Packets enter in the order of arrival, so those that no longer wait
    are the first of the list; each entry is added and removed once.
    """
    if start == arrival:
        if link[QUEUE] > 0:
            queue[at(link[QUEUE_TAIL]), 0] = free
            free = link[QUEUE_HEAD]
            link[QUEUE] = 0
        return free
    while link[QUEUE] > 0 and queue[at(link[QUEUE_HEAD]), 1] <= arrival:
        first = link[QUEUE_HEAD]
        link[QUEUE_HEAD] = queue[at(first), 0]
        queue[at(first), 0] = free
        free = first
        link[QUEUE] -= 1
    entry = free
    free = queue[at(entry), 0]
    queue[at(entry), 1] = start
    if link[QUEUE] == 0:
        link[QUEUE_HEAD] = entry
    else:
        queue[at(link[QUEUE_TAIL]), 0] = entry
    link[QUEUE_TAIL] = entry
    link[QUEUE] += 1
    if link[QUEUE] > link[QUEUE_MAX]:
        link[QUEUE_MAX] = link[QUEUE]
    return free


@compiled
def enter(state: State, link_id: int, time: int, start: int, end: int, size: int, packets: int) -> None:
    """Note that packets of together `size` bytes, whose head came in at `time`, keep a link busy from start to end."""
    link, scalar = state.link[at(link_id)], state.scalar
    link[FREE] = end
    link[CARRIED] += size
    link[BUSY] += end - start
    link[WAIT] += start - time
    link[PACKETS] += packets
    scalar[HOPS] += packets
    scalar[QUEUE_FREE] = enqueue(link, state.queue, scalar[QUEUE_FREE], time, start)
    if state.busy_bins.shape[1] > 0:
        add_busy(link, state.busy_bins[at(link_id)], start, end)
