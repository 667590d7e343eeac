"""Which blocks of a value a rank holds, and where a global box lies in one of them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from meshemu.workload.layout import Layout
from meshemu.workload.plan import Plan
from meshemu.workload.spmd import Value

__all__ = ["Host", "Key"]

Key = tuple[int, ...]
"""Coordinates of a block along the axes of its value's layout; () is the block of a replicated value."""


@dataclass(frozen=True, eq=False)
class Host:
    """One rank's share of a plan: `rank_of_position` says who emulates whom. Replicated blocks exist once a rank."""

    plan: Plan
    rank: int
    rank_of_position: NDArray[np.int64]

    @cached_property
    def positions(self) -> list[int]:
        """Positions that this rank emulates."""
        return [int(p) for p in np.flatnonzero(self.rank_of_position == self.rank)]

    def key(self, axes: tuple[str, ...], position: int) -> Key:
        """Key of the block that `position` holds of a value that differs along `axes`."""
        return tuple(int(self.plan.coords[axis][position]) for axis in axes)

    def representatives(self, axes: tuple[str, ...], rank: int | None = None) -> dict[Key, int]:
        """Key -> first position of a rank (this one by default) that holds it, for all its blocks."""
        hosted = self.positions if rank is None else np.flatnonzero(self.rank_of_position == rank).tolist()
        found: dict[Key, int] = {}
        for position in hosted:
            found.setdefault(self.key(axes, position), position)
        return found

    def local_shape(self, value: Value, position: int) -> tuple[int, ...]:
        """Shape of the block of `value` at `position`."""
        return value.layout.local_shape(value.shape, self.plan.at(position))

    def origin(self, layout: Layout, rank: int, position: int) -> list[int]:
        """Global index of the first element of the block at `position` (`rank` = number of dims)."""
        start = [0] * rank
        place = self.plan.at(position)
        for split in layout.splits:
            start[split.dim] = split.at(place)[0]
        return start
