"""What each rank knows, joined on all: every row of a result belongs to the rank of one vertex. Compiled.

Rows of one rank mostly follow one another, so they are found once as runs, and moved as such.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.comm import Comm
from meshemu.network.compiled import at, copy, kernel, writable
from meshemu.network.events import Ints

__all__ = ["Rows", "merge_rows", "rows_of"]

Ids = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Rows:
    """Which rank each row belongs to. runs: int64[n_runs, 3], [first row, row behind the last, rank] of rows that
    follow one another; count: int64[n_ranks], the rows of each rank.
    """

    runs: Ints
    count: Ints


@kernel
def _find_runs(vertex: Ids, rank_of_vertex: Ids, runs: Ints, count: Ints) -> int:
    """Fill `runs` and `count`, zeros before, as in `Rows`; returns how many runs there are."""
    n, row = 0, 0
    while row < len(vertex):
        owner, first = rank_of_vertex[at(vertex[at(row)])], row
        while row < len(vertex) and rank_of_vertex[at(vertex[at(row)])] == owner:
            row += 1
        runs[n, 0], runs[n, 1], runs[n, 2] = first, row, owner
        count[owner] += row - first
        n += 1
    return n


@kernel
def _take_out(values: Ints, runs: Ints, width: int, rank: int, own: Ints) -> None:
    """Fill `own` with the rows of one rank, of `width` numbers each."""
    n = 0
    for run in range(len(runs)):
        if runs[run, 2] == rank:
            source = values[runs[run, 0] * width : runs[run, 1] * width]
            copy(source, own[n : n + len(source)])
            n += len(source)


@kernel
def _put_in(packed: Ints, runs: Ints, width: int, rank: int, own: bool, begin: Ints, values: Ints) -> None:
    """Put rows back in their places: those of `rank` if `own`, else those of all others.

    In `packed` the rows of each rank stand together, at begin[rank], which moves on. It may be `values` itself, if no
    row stands there before its place.
    """
    for run in range(len(runs)):
        owner = runs[run, 2]
        if (owner == rank) == own:
            target = values[runs[run, 0] * width : runs[run, 1] * width]
            copy(packed[begin[owner] : begin[owner] + len(target)], target)
            begin[owner] += len(target)


def rows_of(vertex: Ids, rank_of_vertex: Ids, n_ranks: int) -> Rows:
    """Of rows that belong to a vertex each, int32[n]."""
    runs, count = np.empty((len(vertex), 3), np.int64), np.zeros(n_ranks, np.int64)
    return Rows(runs[: _find_runs(writable(vertex, np.int32), rank_of_vertex, runs, count)], count)


def merge_rows(arrays: Sequence[Ints], rows: Rows, comm: Comm | None, *, at_end: bool = False) -> None:
    """Complete on every rank contiguous arrays (n, ...) of which each rank knows its own rows. comm: None for one rank.

    at_end: these stand not in their places but one after another at the end of the array.
    """
    rank, begin = 0 if comm is None else comm.rank, np.cumsum(rows.count) - rows.count
    n_own = int(rows.count[rank])
    widths = [int(np.prod(values.shape[1:], dtype=np.int64)) for values in arrays]
    room = max(widths, default=0)
    packed, taken = np.empty(int(rows.count.sum()) * room, np.int64), np.empty(0 if at_end else n_own * room, np.int64)
    for values, width in zip(arrays, widths, strict=True):
        flat = values.reshape(-1)
        first_own = flat.size - n_own * width
        own = flat[first_own:] if at_end else taken[: n_own * width]
        if not at_end:
            _take_out(flat, rows.runs, width, rank, own)
        if comm is not None:
            _swap(own, packed, begin * width, rows.count * width, comm)
        if at_end:  # no row moves on, so none is overwritten before it has moved
            _put_in(flat, rows.runs, width, rank, True, np.full(len(begin), first_own), flat)
        _put_in(packed, rows.runs, width, rank, False, begin * width, flat)


def _swap(own: Ints, packed: Ints, begin: Ints, count: Ints, comm: Comm) -> None:
    """Send `own` to all other ranks; what each of them sends comes to begin[rank] in `packed`."""
    peers = [peer for peer in range(comm.size) if peer != comm.rank]
    comm.exchange(
        {peer: own.view(np.uint8) for peer in peers if own.size},
        {peer: packed[begin[peer] : begin[peer] + count[peer]].view(np.uint8) for peer in peers if count[peer]},
    )
