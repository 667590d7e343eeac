"""What each rank knows, joined on all: every row of a result belongs to the rank of one vertex. Compiled.

Rows of one rank mostly follow one another, so they are found once as runs, and moved as such.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from meshemu.comm import Comm
from meshemu.network.compiled import kernel, writable
from meshemu.network.events import Ints

__all__ = ["merge_rows"]

Ids = NDArray[np.int32]


@kernel
def _find_runs(vertex: Ids, rank_of_vertex: Ids, runs: Ints, n_rows: Ints) -> int:
    """Fill `runs` with [first row, row behind the last, rank] of rows that follow one another; returns their number.

    n_rows: int64[n_ranks], zeros: becomes the number of rows of each rank.
    """
    n, row = 0, 0
    while row < len(vertex):
        owner, first = rank_of_vertex[vertex[row]], row
        while row < len(vertex) and rank_of_vertex[vertex[row]] == owner:
            row += 1
        runs[n, 0], runs[n, 1], runs[n, 2] = first, row, owner
        n_rows[owner] += row - first
        n += 1
    return n


@kernel
def _move(values: Ints, runs: Ints, width: int, packed: Ints, begin: Ints, rank: int, pack: bool) -> None:
    """Copy the rows of `rank` to `packed` or, unless `pack`, those of all others from there.

    Rows are `width` numbers each; in `packed` those of each rank stand together, at begin[rank], which moves on.
    """
    for run in range(len(runs)):
        owner, first = runs[run, 2], runs[run, 0] * width
        if (owner == rank) == pack:
            at, n = begin[owner], runs[run, 1] * width - first
            begin[owner] += n
            if pack:
                for i in range(n):
                    packed[at + i] = values[first + i]
            else:
                for i in range(n):
                    values[first + i] = packed[at + i]


def merge_rows(arrays: Sequence[Ints], vertex: Ids, rank_of_vertex: Ids, comm: Comm | None) -> None:
    """Complete on every rank contiguous arrays (n, ...), of which each rank knows the rows of its own vertices.

    vertex: int32[n], that of each row.
    """
    rank, size = (0, 1) if comm is None else (comm.rank, comm.size)
    n_rows, runs = np.zeros(size, np.int64), np.empty((len(vertex), 3), np.int64)
    runs = runs[: _find_runs(writable(vertex, np.int32), rank_of_vertex, runs, n_rows)]
    packed = np.empty(max(values.size for values in arrays), np.int64)
    for values in arrays:
        width, flat = values.size // max(1, len(vertex)), values.reshape(-1)
        end = np.cumsum(n_rows) * width
        begin = end - n_rows * width
        pieces = [packed[a:b].view(np.uint8) for a, b in zip(begin, end, strict=True)]
        _move(flat, runs, width, packed, begin.copy(), rank, True)
        if comm is not None:
            comm.exchange(
                {peer: pieces[rank] for peer in range(size) if peer != rank and pieces[rank].size},
                {peer: piece for peer, piece in enumerate(pieces) if peer != rank and piece.size},
            )
        _move(flat, runs, width, packed, begin, rank, False)
