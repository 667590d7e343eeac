"""Cut a sequence into contiguous stages of nearly equal cost where little crosses: exact, by dynamic programming."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["balanced_starts"]

SLACK = 0.05
"""A stage may cost this much more than the best balance would have it, if fewer bytes cross for that."""

Int64Array = NDArray[np.int64]


def balanced_starts(
    costs: Sequence[int], crossing_bytes: Sequence[int], legal: Sequence[bool], n_stages: int
) -> tuple[int, ...] | None:
    """Where each stage begins (the first at 0), or None if there are too few places for that.

    crossing_bytes[i], legal[i]: what crosses a cut just before item i, and whether there may be one. Of all cuts whose
    largest stage costs at most 1 + SLACK times the least possible, those with the fewest bytes; then the most even.
    """
    n = len(costs)
    places = np.asarray([0, *(i for i in range(1, n) if legal[i]), n], np.int64)
    if n == 0 or len(places) - 1 < n_stages:
        return None
    total = np.concatenate((np.zeros(1, np.int64), np.cumsum(np.asarray(costs, np.int64))))[places]
    crossing = np.asarray([0, *(crossing_bytes[i] for i in places[1:-1].tolist()), 0], np.int64)
    limit = _least_limit(total, n_stages)
    starts = _fewest_bytes(total, crossing, n_stages, limit + int(SLACK * limit))
    return tuple(places[starts].tolist())


def _least_limit(total: Int64Array, n_stages: int) -> int:
    """The smallest cost of the largest of n_stages stages. total[p]: cost of all before place p."""
    low, high = 0, int(total[-1])
    while low < high:
        middle = (low + high) // 2
        if _fits(total, n_stages, middle):
            high = middle
        else:
            low = middle + 1
    return low


def _fits(total: Int64Array, n_stages: int, limit: int) -> bool:
    """Whether n_stages stages of at most `limit` suffice; taking as much as fits is best, and never too few stages."""
    begin, last = 0, len(total) - 1
    for _ in range(n_stages):
        end = int(np.searchsorted(total, total[begin] + limit, side="right")) - 1
        if end == begin:
            return False
        begin = end
        if begin == last:
            return True
    return False


def _fewest_bytes(total: Int64Array, crossing: Int64Array, n_stages: int, limit: int) -> list[int]:
    """Places at which stages begin, each stage holding something and costing at most `limit`."""
    n_places = len(total)
    unreachable = np.iinfo(np.int64).max // 2
    first = np.searchsorted(total, total - limit, side="left")  # the earliest begin of a stage that ends here
    least = np.full(n_places, unreachable, np.int64)
    least[0] = 0
    unevenness = np.zeros(n_places)  # sum of the squares of the stages' costs
    begins: list[Int64Array] = []
    for _ in range(n_stages):
        following = np.full(n_places, unreachable, np.int64)
        begin = np.zeros(n_places, np.int64)
        squares = np.zeros(n_places)
        for end in range(1, n_places):
            lo = int(first[end])
            if lo < end:
                uneven = unevenness[lo:end] + np.square((total[end] - total[lo:end]).astype(np.float64))
                best = int(np.lexsort((uneven, least[lo:end]))[0])
                begin[end], squares[end] = lo + best, uneven[best]
                following[end] = min(least[begin[end]] + crossing[end], unreachable)
        least, unevenness = following, squares
        begins.append(begin)
    starts = [n_places - 1]
    for begin in reversed(begins):
        starts.append(int(begin[starts[-1]]))
    return starts[:0:-1]
