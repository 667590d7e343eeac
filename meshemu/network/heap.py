"""A binary heap of events in one array, compiled; ordered by (time, key).

An event is a row [time, key, where, tail] (see `events`). scalar[HEAP] is the number of events. The caller sees to it
that the array has room.
"""

from meshemu.network.compiled import at, compiled
from meshemu.network.events import Ints
from meshemu.network.state import HEAP

__all__ = ["pop", "push", "replace"]


@compiled
def _earlier(heap: Ints, child: int) -> int:
    """Whichever of a child and its right neighbour is first; branch-free, since no predictor guesses it."""
    left, right = heap[at(child)], heap[at(child + 1)]
    tie = (right[0] == left[0]) & (right[1] < left[1])
    return child + int((right[0] < left[0]) | tie)


@compiled
def _move(heap: Ints, source: int, target: int) -> None:
    """Copy the event at `source` to `target`."""
    a, b = heap[at(source)], heap[at(target)]
    b[0], b[1], b[2], b[3] = a[0], a[1], a[2], a[3]


@compiled
def _place(heap: Ints, hole: int, time: int, key: int, where: int, tail: int) -> None:
    """Note an event at `hole`."""
    event = heap[at(hole)]
    event[0], event[1], event[2], event[3] = time, key, where, tail


@compiled
def _rise(heap: Ints, hole: int, time: int, key: int, where: int, tail: int) -> None:
    """Place an event at the hole or, where it is earlier than what lies above, higher up."""
    while hole > 0:
        parent = (hole - 1) >> 1
        above = heap[at(parent)]
        if above[0] < time or (above[0] == time and above[1] < key):
            break
        _move(heap, parent, hole)
        hole = parent
    _place(heap, hole, time, key, where, tail)


@compiled
def push(heap: Ints, scalar: Ints, time: int, key: int, where: int, tail: int) -> None:
    """Add an event to the heap."""
    _rise(heap, scalar[HEAP], time, key, where, tail)
    scalar[HEAP] += 1


@compiled
def pop(heap: Ints, scalar: Ints) -> None:
    """Remove the first event of the heap.

    The hole sinks to a leaf along the earlier children, then the last event rises from there: it came from a leaf, so
    it seldom rises far, and each level costs one comparison instead of two.
    """
    n = scalar[HEAP] - 1
    scalar[HEAP] = n
    hole, child = 0, 1
    while child < n:
        if child + 1 < n:
            child = _earlier(heap, child)
        _move(heap, child, hole)
        hole, child = child, 2 * child + 1
    last = heap[at(n)]
    _rise(heap, hole, last[0], last[1], last[2], last[3])


@compiled
def replace(heap: Ints, scalar: Ints, time: int, key: int, where: int, tail: int) -> None:
    """Put an event in the place of the first of the heap: cheaper than to pop one and push the other."""
    n = scalar[HEAP]
    hole, child = 0, 1
    while child < n:
        if child + 1 < n:
            child = _earlier(heap, child)
        below = heap[at(child)]
        if time < below[0] or (time == below[0] and key < below[1]):
            break
        _move(heap, child, hole)
        hole, child = child, 2 * child + 1
    _place(heap, hole, time, key, where, tail)
