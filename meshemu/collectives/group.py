"""The devices that take part in a collective: a grid with positions left out."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meshemu.collectives.joined import NEIGHBOURS, Joined
from meshemu.errors import InputError

__all__ = ["Group", "group", "group_of"]


@dataclass(frozen=True, eq=False)
class Group:
    """Participants of a grid of rows x cols.

    position: int32[n], the grid position row * cols + col of each participant, ascending. participant:
    int32[rows * cols], the participant at each position, -1 where none is. joined: how, beside links between
    neighbours.
    """

    rows: int
    cols: int
    position: NDArray[np.int32]
    participant: NDArray[np.int32]
    joined: Joined = NEIGHBOURS

    @property
    def size(self) -> int:
        """Number of participants."""
        return len(self.position)

    @property
    def full(self) -> bool:
        """Whether every position of the grid takes part."""
        return self.size == self.rows * self.cols

    @property
    def absent(self) -> NDArray[np.int64]:
        """Positions without a participant."""
        return np.flatnonzero(self.participant < 0)

    def place(self, position: int) -> str:
        """Words for a position, for messages."""
        return f"(row {position // self.cols}, column {position % self.cols})"


def group(rows: int, cols: int, absent: Iterable[int] = (), *, joined: Joined = NEIGHBOURS) -> Group:
    """Number the present positions of a grid in row-major order. Raises InputError for a grid without any."""
    if rows < 1 or cols < 1:
        raise InputError(f"a group needs a grid of at least 1 x 1, not {rows} x {cols}")
    present = np.ones(rows * cols, bool)
    for position in absent:
        if not 0 <= position < rows * cols:
            raise InputError(f"absent position {position} lies outside a grid of {rows} x {cols} = {rows * cols}")
        present[position] = False
    position_of = np.flatnonzero(present).astype(np.int32)
    if not len(position_of):
        raise InputError(f"a group on a grid of {rows} x {cols} has no participant: all positions are absent")
    participant = np.full(rows * cols, -1, np.int32)
    participant[position_of] = np.arange(len(position_of))
    return Group(rows, cols, position_of, participant, joined)


def group_of(devices: ArrayLike, *, joined: Joined = NEIGHBOURS) -> Group:
    """Return the group of a grid of device ids, int[rows, cols], with -1 where none takes part.

    Raises InputError for what is no grid, or a grid without any device.
    """
    grid = np.asarray(devices)
    if grid.ndim != 2:
        raise InputError(f"a group's devices form a grid of rows x cols, not an array of shape {grid.shape}")
    return group(grid.shape[0], grid.shape[1], np.flatnonzero(grid.ravel() < 0).tolist(), joined=joined)
