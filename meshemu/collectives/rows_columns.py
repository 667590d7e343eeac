"""Rows and columns: rings along one axis of the grid, then along the other; every line of the grid works at once.

reduce_scatter runs down the columns first: the participant in row r ends its column with the chunks of all owners in
row r, which are contiguous because participants are numbered in row-major order; then each row scatters its range.
all_gather is the same backwards, rows first. all_reduce is one after the other: as few bytes as the ring, in
2 (rows + cols - 2) phases instead of 2 (rows cols - 1). broadcast follows the row of the root and then all columns;
reduce is its mirror image. A line is folded unless it is a ring (`order.line_order`), so each directed link carries one
ring edge.
"""

import numpy as np

from meshemu.collectives.group import Group
from meshemu.collectives.order import line_order
from meshemu.collectives.transfers import Transfers, concatenate, rotate_gather, rotate_scatter
from meshemu.collectives.tree import tree_broadcast, tree_reduce
from meshemu.errors import InputError

__all__ = ["rows_columns", "rows_columns_default_chunks"]


def rows_columns(kind: str, group: Group, root: int, n_chunks: int) -> Transfers:
    """Return the transfers of one collective over rows and columns. Raises InputError if a position is absent."""
    if not group.full:
        absent = int(group.absent[0])
        raise InputError(
            f"rows_columns needs a full grid of {group.rows} x {group.cols}, but position {absent} "
            f"{group.place(absent)} is absent; ring and tree work without it"
        )
    match kind:
        case "broadcast":
            return tree_broadcast(group, root, n_chunks, columns_first=True)
        case "reduce":
            return tree_reduce(group, root, n_chunks, columns_first=True)
        case "reduce_scatter":
            return _scatter(group)
        case "all_gather":
            return _gather(group)
    scatter = _scatter(group)
    return concatenate((scatter, _gather(group).after(scatter.end_phase)))


def rows_columns_default_chunks(kind: str, group: Group) -> int:
    """Return one chunk per participant, or per stage of the pipeline of a broadcast or reduce."""
    return max(1, group.rows + group.cols - 2) if kind in ("broadcast", "reduce") else group.size


def _scatter(group: Group) -> Transfers:
    (columns, column_lo, column_hi), (rows, row_lo, row_hi) = _lines(group)
    first = rotate_scatter(columns, column_lo, column_hi)
    return concatenate((first, rotate_scatter(rows, row_lo, row_hi).after(first.end_phase)))


def _gather(group: Group) -> Transfers:
    (columns, column_lo, column_hi), (rows, row_lo, row_hi) = _lines(group)
    first = rotate_gather(rows, row_lo, row_hi)
    return concatenate((first, rotate_gather(columns, column_lo, column_hi).after(first.end_phase)))


_Rings = tuple[np.ndarray, np.ndarray, np.ndarray]


def _lines(group: Group) -> tuple[_Rings, _Rings]:
    """Rings of all columns and of all rows, each with the chunk range lo, hi that its members own."""
    grid = np.arange(group.rows * group.cols, dtype=np.int32).reshape(group.rows, group.cols)
    columns = grid.T[:, line_order(group.rows, is_ring=group.joined.column_rings)]
    rows = grid[:, line_order(group.cols, is_ring=group.joined.row_rings)]
    start = columns // group.cols * group.cols
    return (columns, start, start + group.cols), (rows, rows, rows + 1)
