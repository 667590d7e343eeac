"""What each rank knows, joined on all: every row of a result belongs to the rank of one vertex. Compiled.

Rows of one rank mostly follow one another, so they are found once as runs, and moved as such.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.comm import Comm
from meshemu.network.compiled import at, copy, kernel, writable
from meshemu.network.events import Ints

__all__ = ["Rows", "joined_rows", "own_rows", "rows_of"]

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
def _place(own: Ints, others: Ints, runs: Ints, width: int, rank: int, begin: Ints, values: Ints) -> None:
    """Fill `values` with the rows of all ranks: those of `rank`, which stand together in `own`, and those of each other
    rank, which stand together in `others` from begin[that rank] on. begin[rank] is 0; all of it moves on.
    """
    for run in range(len(runs)):
        owner, target = runs[run, 2], values[runs[run, 0] * width : runs[run, 1] * width]
        end = begin[owner] + len(target)
        copy((own if owner == rank else others)[begin[owner] : end], target)
        begin[owner] = end


def rows_of(vertex: Ids, rank_of_vertex: Ids, n_ranks: int) -> Rows:
    """Of rows that belong to a vertex each, int32[n]."""
    runs, count = np.empty((len(vertex), 3), np.int64), np.zeros(n_ranks, np.int64)
    return Rows(runs[: _find_runs(writable(vertex, np.int32), rank_of_vertex, runs, count)], count)


def own_rows(values: Ints, rows: Rows, rank: int) -> Ints:
    """The rows of a rank, (n_own, ...), of an array of all rows, (n, ...)."""
    own = np.empty((int(rows.count[rank]), *values.shape[1:]), np.int64)
    _take_out(values.reshape(-1), rows.runs, _width(values), rank, own.reshape(-1))
    return own


def joined_rows(own: Ints, rows: Rows, comm: Comm | None) -> Ints:
    """All rows on every rank, (n, ...), of each of which its own are known, (n_own, ...). comm: None for one rank."""
    width, flat, rank = _width(own), own.reshape(-1), 0 if comm is None else comm.rank
    count = rows.count * width
    count[rank] = 0
    begin = np.cumsum(count) - count
    others = np.empty(int(count.sum()), np.int64)
    if comm is not None:
        peers = [peer for peer in range(comm.size) if peer != rank]
        comm.exchange(
            {peer: flat.view(np.uint8) for peer in peers if flat.size},
            {peer: others[begin[peer] : begin[peer] + count[peer]].view(np.uint8) for peer in peers if count[peer]},
        )
    values = np.empty((int(rows.count.sum()), *own.shape[1:]), np.int64)
    begin[rank] = 0
    _place(flat, others, rows.runs, width, rank, begin, values.reshape(-1))
    return values


def _width(rows: Ints) -> int:
    """How many numbers a row has."""
    return int(np.prod(rows.shape[1:], dtype=np.int64))
