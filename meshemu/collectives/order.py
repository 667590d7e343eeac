"""The cyclic order in which a ring visits the devices of a grid.

An even grid of at least 2 x 2 has a Hamiltonian cycle, here A B ... L on 4 x 3. An odd one has none (neighbours
alternate between two colours, and one colour has a device more), so one edge spans two hops, here from I to A over B:

    L A B
    K D C      A B I
    J E F      D C H
    I H G      E F G

A line is folded, 0 2 4 ... 5 3 1, so that every edge spans at most two hops. Where a link joins the ends of rows, or of
columns, a line goes on from its last position to its first, and an odd grid has a cycle too: the even one, with that
link between its last row and the column that leads back. In all of them, each directed link carries at most one ring
edge under XY routing: the ring runs without contention.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

__all__ = ["column_order", "dilation", "folded_line", "line_order", "ring_order"]

Order = NDArray[np.int32]


def ring_order(
    rows: int, cols: int, absent: Iterable[int] = (), *, column_rings: bool = False, row_rings: bool = False
) -> Order:
    """Grid positions (row * cols + col) in ring order, int32; the last is followed by the first.

    Absent positions are left out: their neighbours in the order become neighbours in the ring, at a longer distance.
    column_rings, row_rings: whether links join the ends of columns, and of rows.
    """
    if rows == 1 or cols == 1:
        order = line_order(rows * cols, is_ring=row_rings if rows == 1 else column_rings)
    elif rows % 2 == 0 or (row_rings and cols % 2):
        order = _even_cycle(rows, cols)
    elif cols % 2 == 0 or column_rings:
        row, col = np.divmod(_even_cycle(cols, rows), rows)[::-1]
        order = (row * cols + col).astype(np.int32)
    else:
        order = _odd_cycle(rows, cols)
    return order[~np.isin(order, list(absent))]


def column_order(rows: int, cols: int, absent: Iterable[int] = ()) -> Order:
    """Grid positions column by column, int32, without absent ones."""
    order = np.arange(rows * cols, dtype=np.int32).reshape(rows, cols).T.ravel()
    return order[~np.isin(order, list(absent))]


def line_order(n: int, *, is_ring: bool) -> Order:
    """The positions of a line as a ring, int32[n]: as they stand where a link joins its ends, else folded."""
    return np.arange(n, dtype=np.int32) if is_ring else folded_line(n)


def folded_line(n: int) -> Order:
    """0 2 4 ... 5 3 1: the positions of a line as a ring whose edges span at most two hops, int32[n]."""
    return np.concatenate((np.arange(0, n, 2), np.arange(1, n, 2)[::-1])).astype(np.int32)


def dilation(order: Order, cols: int) -> int:
    """Return the hops of the longest ring edge on a grid of `cols` columns."""
    row, col = np.divmod(order, cols)
    return int((np.abs(row - np.roll(row, -1)) + np.abs(col - np.roll(col, -1))).max(initial=0))


def _even_cycle(rows: int, cols: int) -> Order:
    """Hamiltonian cycle for even rows: a snake over columns 1 and up, and back to the north through column 0."""
    snake = np.arange(rows * cols, dtype=np.int32).reshape(rows, cols)[:, 1:].copy()
    snake[1::2] = snake[1::2, ::-1]
    return np.concatenate((snake.ravel(), np.arange(rows - 1, -1, -1, dtype=np.int32) * np.int32(cols)))


def _odd_cycle(rows: int, cols: int) -> Order:
    """Return a Hamiltonian path from (0, 0) to (0, 2) for odd rows and cols >= 3, closed by one edge over (0, 1).

    The path leaves (0, 0) to the east and reaches (0, 1) only there, so that the two westward links under the closing
    edge, (0, 2) to (0, 1) to (0, 0), are free. It goes down the two west columns, then up through the rest: rows from
    the south in pairs of a snake, the last three rows as a zigzag over rows 2 and 1 and a run west along row 0.
    """
    grid = np.arange(rows * cols, dtype=np.int32).reshape(rows, cols)
    west = grid[1:, :2].copy()
    west[0::2] = west[0::2, ::-1]
    south = grid[:2:-1, 2:].copy()
    south[1::2] = south[1::2, ::-1]
    zigzag = grid[2:0:-1, 2:].T.copy()
    zigzag[1::2] = zigzag[1::2, ::-1]
    parts = (grid[0, :2], west.ravel(), south.ravel(), zigzag.ravel(), grid[0, :1:-1])
    return np.concatenate(parts)
