"""What each rank knows, joined on all: every row of a result belongs to the rank of one vertex. Compiled.

Rows of one rank mostly follow one another, so they are found once as runs, and moved as such.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.comm import Comm
from meshemu.network.compiled import kernel, writable
from meshemu.network.events import Ints

__all__ = ["Rows", "joined_rows", "merge_rows", "rows_of"]

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
        owner, first = rank_of_vertex[vertex[row]], row
        while row < len(vertex) and rank_of_vertex[vertex[row]] == owner:
            row += 1
        runs[n, 0], runs[n, 1], runs[n, 2] = first, row, owner
        count[owner] += row - first
        n += 1
    return n


@kernel
def _take_out(values: Ints, runs: Ints, width: int, rank: int, own: Ints) -> None:
    """Fill `own` with the rows of one rank, of `width` numbers each."""
    at = 0
    for run in range(len(runs)):
        if runs[run, 2] == rank:
            first, n = runs[run, 0] * width, (runs[run, 1] - runs[run, 0]) * width
            for i in range(n):
                own[at + i] = values[first + i]
            at += n


@kernel
def _put_in(packed: Ints, runs: Ints, width: int, rank: int, own: bool, begin: Ints, values: Ints) -> None:
    """Put rows back in their places: those of `rank` if `own`, else those of all others.

    In `packed` the rows of each rank stand together, at begin[rank], which moves on.
    """
    for run in range(len(runs)):
        owner, first = runs[run, 2], runs[run, 0] * width
        if (owner == rank) == own:
            at, n = begin[owner], (runs[run, 1] - runs[run, 0]) * width
            for i in range(n):
                values[first + i] = packed[at + i]
            begin[owner] += n


def rows_of(vertex: Ids, rank_of_vertex: Ids, n_ranks: int) -> Rows:
    """Of rows that belong to a vertex each, int32[n]."""
    runs, count = np.empty((len(vertex), 3), np.int64), np.zeros(n_ranks, np.int64)
    return Rows(runs[: _find_runs(writable(vertex, np.int32), rank_of_vertex, runs, count)], count)


def joined_rows(own: Ints, rows: Rows, comm: Comm | None) -> Ints:
    """All rows (n, ...) on every rank, from those (n_own, ...) of this rank; arrays are contiguous."""
    values, rank = np.empty((rows.count.sum(), *own.shape[1:]), np.int64), 0 if comm is None else comm.rank
    flat, begin = values.reshape(-1), np.zeros(len(rows.count), np.int64)
    _put_in(own.reshape(-1), rows.runs, _width(own), rank, True, begin, flat)
    _put_in_others(flat, own, rows, comm)
    return values


def merge_rows(values: Ints, rows: Rows, comm: Comm | None) -> None:
    """Complete on every rank a contiguous array (n, ...) of which each rank knows its own rows."""
    rank = 0 if comm is None else comm.rank
    flat, own = values.reshape(-1), np.empty((rows.count[rank], *values.shape[1:]), np.int64)
    _take_out(flat, rows.runs, _width(values), rank, own.reshape(-1))
    _put_in_others(flat, own, rows, comm)


def _put_in_others(flat: Ints, own: Ints, rows: Rows, comm: Comm | None) -> None:
    """Send own rows to all other ranks, and put in what they send."""
    if comm is None:
        return
    width = _width(own)
    end = np.cumsum(rows.count) * width
    begin, packed, sent = end - rows.count * width, np.empty(end[-1], np.int64), own.reshape(-1).view(np.uint8)
    others = [peer for peer in range(comm.size) if peer != comm.rank]
    pieces = {peer: packed[begin[peer] : end[peer]].view(np.uint8) for peer in others}
    comm.exchange(
        {peer: sent for peer in others if sent.size}, {peer: piece for peer, piece in pieces.items() if piece.size}
    )
    _put_in(packed, rows.runs, width, comm.rank, False, begin, flat)


def _width(rows: Ints) -> int:
    """How many numbers a row has."""
    return int(np.prod(rows.shape[1:], dtype=np.int64))
