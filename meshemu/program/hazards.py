"""Which ops touch the same piece of a buffer, and so must run in a given order.

A cell is one piece of one buffer. Read after write, write after write and write after read must keep their order; two
reads need none. `Hazards` is told all accesses in an order that is right and answers, for each access, which earlier
ones it must wait for: builders turn that into dependencies, verification checks that the dependencies imply it.
"""

import numpy as np
from numpy.typing import NDArray

from meshemu.program.pieces import expand_ranges

__all__ = ["Hazards", "Waits"]

Ids = NDArray[np.int64]

Waits = tuple[Ids, Ids]
"""(index, on): the access of that index in the call waits for op `on`; -1 where it meets a cell nobody has written."""


class Hazards:
    """The last writer of every cell, and who has read the cell since.

    writer: int64[n_cells], op id, -1 before the first.
    """

    def __init__(self, n_cells: int) -> None:
        """Start with cells that nobody has touched."""
        self.writer: Ids = np.full(n_cells, -1, np.int64)
        self._readers: list[Ids] = []
        self._turn = np.empty(n_cells, np.int64)

    def read(self, op: Ids, start: Ids, length: Ids) -> Waits:
        """Each op[i] reads the cells start[i] <= cell < start[i] + length[i]; it waits for their writers."""
        cell, index = _cells(start, length)
        waits = _distinct(index, self.writer[cell])
        reader = op[index]
        slot = 0
        while len(cell):
            if slot == len(self._readers):
                self._readers.append(np.full(len(self.writer), -1, np.int64))
            readers = self._readers[slot]
            free = readers[cell] < 0
            readers[cell[free]] = reader[free]
            left = readers[cell] != reader
            cell, reader, slot = cell[left], reader[left], slot + 1
        return waits

    def write(self, op: Ids, start: Ids, length: Ids) -> Waits:
        """Each op[i] writes its cells, after their writers and readers; ops on one cell follow in their order here."""
        waits = []
        cell, index = _cells(start, length)
        while len(cell):
            # Of equal entries the one assigned last stays: backwards, that is the first op of a cell.
            self._turn[cell[::-1]] = index[::-1]
            late = np.zeros(len(op), bool)
            late[index[self._turn[cell] != index]] = True
            now = ~late[index]
            waits += self._write_disjoint(op, cell[now], index[now])
            cell, index = cell[~now], index[~now]
        return _joined(waits)

    def _write_disjoint(self, op: Ids, cell: Ids, index: Ids) -> list[Waits]:
        waits = [_distinct(index, self.writer[cell])]
        for readers in self._readers:
            who, on = _distinct(index, readers[cell])
            waits.append((who[on >= 0], on[on >= 0]))
            readers[cell] = -1
        self.writer[cell] = op[index]
        return waits


def _cells(start: Ids, length: Ids) -> tuple[Ids, Ids]:
    """All cells of the accesses, and for each the index of its access."""
    return expand_ranges(start, length), np.repeat(np.arange(len(start)), length)


def _distinct(index: Ids, on: Ids) -> Waits:
    """Merge runs of equal pairs, as ranges of cells make them."""
    fresh = np.concatenate(([True], (np.diff(index) != 0) | (np.diff(on) != 0)))[: len(on)]
    return index[fresh], on[fresh]


def _joined(waits: list[Waits]) -> Waits:
    if not waits:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate([index for index, _ in waits]), np.concatenate([on for _, on in waits])
