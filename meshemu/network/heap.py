"""A binary heap of events in one flat array, compiled; ordered by (time, key).

An event is four numbers, time, key, where and tail (see `events`). scalar[HEAP] is the number of events. The caller
sees to it that the array has room.
"""

from meshemu.network.compiled import compiled
from meshemu.network.events import EVENT, Ints
from meshemu.network.state import HEAP

__all__ = ["pop", "push", "replace"]


@compiled
def _earlier(heap: Ints, child: int) -> int:
    """Whichever of a child and its right neighbour is first; branch-free, since no predictor guesses it."""
    left, right = EVENT * child, EVENT * child + EVENT
    tie = (heap[right] == heap[left]) & (heap[right + 1] < heap[left + 1])
    return child + int((heap[right] < heap[left]) | tie)


@compiled
def _move(heap: Ints, source: int, target: int) -> None:
    """Copy the event at index `source` to index `target`."""
    a, b = EVENT * source, EVENT * target
    heap[b] = heap[a]
    heap[b + 1] = heap[a + 1]
    heap[b + 2] = heap[a + 2]
    heap[b + 3] = heap[a + 3]


@compiled
def _rise(heap: Ints, hole: int, time: int, key: int, where: int, tail: int) -> None:
    """Place an event at the hole or, where it is earlier than what lies above, higher up."""
    while hole > 0:
        parent = (hole - 1) >> 1
        above = heap[EVENT * parent]
        if above < time or (above == time and heap[EVENT * parent + 1] < key):
            break
        _move(heap, parent, hole)
        hole = parent
    at = EVENT * hole
    heap[at] = time
    heap[at + 1] = key
    heap[at + 2] = where
    heap[at + 3] = tail


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
    last = EVENT * n
    _rise(heap, hole, heap[last], heap[last + 1], heap[last + 2], heap[last + 3])


@compiled
def replace(heap: Ints, scalar: Ints, time: int, key: int, where: int, tail: int) -> None:
    """Put an event in the place of the first of the heap: cheaper than to pop one and push the other."""
    n = scalar[HEAP]
    hole, child = 0, 1
    while child < n:
        if child + 1 < n:
            child = _earlier(heap, child)
        at = EVENT * child
        if time < heap[at] or (time == heap[at] and key < heap[at + 1]):
            break
        _move(heap, child, hole)
        hole, child = child, 2 * child + 1
    at = EVENT * hole
    heap[at] = time
    heap[at + 1] = key
    heap[at + 2] = where
    heap[at + 3] = tail
