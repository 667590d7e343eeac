"""Where the blocks of a value lie: how each tensor dim is cut over which axis of the device grid.

A `Split` gives every coordinate of an axis, or of several axes together, a half-open range of one dim. Ranges that
tile the dim make a partition; ranges that overlap or reach beyond the dim make windows (a block with its halo). Axes
that a layout does not mention hold the same block everywhere; `partial` axes hold terms that still have to be summed.
"""

from dataclasses import dataclass, field
from itertools import pairwise

from meshemu.mesh import split_bounds
from meshemu.workload.plan import Place

__all__ = ["REPLICATED", "Layout", "Ranges", "Split", "even_ranges"]

Ranges = tuple[tuple[int, int], ...]


def even_ranges(size: int, parts: int) -> Ranges:
    """Cut [0, size) into `parts` contiguous ranges; the first `size % parts` are one longer, some may be empty."""
    bounds = split_bounds(size, parts)
    return tuple(pairwise(bounds))


@dataclass(frozen=True)
class Split:
    """One dim cut over `axes`: ranges[c] belongs to joint coordinate c, the first axis being the slowest."""

    dim: int
    axes: tuple[str, ...]
    ranges: Ranges

    def tiles(self, size: int) -> bool:
        """Whether the ranges cover [0, size) once, in order."""
        stops = [0, *(hi for _, hi in self.ranges)]
        return all(lo == stop for (lo, _), stop in zip(self.ranges, stops, strict=False)) and stops[-1] == size

    def at(self, place: Place) -> tuple[int, int]:
        """The range of one position."""
        return self.ranges[place(self.axes)]

    def moved(self, dim: int) -> "Split":
        """The same cut of another dim."""
        return Split(dim, self.axes, self.ranges)


@dataclass(frozen=True)
class Layout:
    """splits: at most one per dim and per axis, sorted by dim. partial: axes over which blocks are terms of a sum."""

    splits: tuple[Split, ...] = ()
    partial: tuple[str, ...] = ()
    axes: tuple[str, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        """Sort and derive `axes`, all axes on which blocks differ."""
        ordered = tuple(sorted(self.splits, key=lambda s: s.dim))
        object.__setattr__(self, "splits", ordered)
        used = [*(axis for s in ordered for axis in s.axes), *self.partial]
        object.__setattr__(self, "axes", tuple(dict.fromkeys(used)))
        if len(self.axes) != len(used) or len({s.dim for s in ordered}) != len(ordered):
            raise AssertionError(f"an axis or a dim is used twice in {self}")

    def split_of(self, dim: int) -> Split | None:
        """The split of a dim, or None."""
        return next((s for s in self.splits if s.dim == dim), None)

    def local_shape(self, shape: tuple[int, ...], place: Place) -> tuple[int, ...]:
        """Shape of the block at `place`."""
        local = list(shape)
        for split in self.splits:
            lo, hi = split.at(place)
            local[split.dim] = hi - lo
        return tuple(local)

    def empty(self, place: Place) -> bool:
        """Whether the cut leaves nothing of the value at `place`."""
        return any(hi <= lo for lo, hi in (split.at(place) for split in self.splits))


REPLICATED = Layout()
