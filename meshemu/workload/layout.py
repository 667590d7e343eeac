"""Where the blocks of a value lie: how each tensor dim is cut over which axis of the device grid.

A `Split` gives every coordinate of an axis a half-open range of one dim. Ranges that tile the dim make a partition;
ranges that overlap or reach beyond the dim make windows (a block with its halo). Axes that a layout does not mention
hold the same block everywhere; `partial` axes hold terms that still have to be summed.
"""

from dataclasses import dataclass, field
from itertools import pairwise

from meshemu.mesh import split_bounds

__all__ = ["REPLICATED", "Layout", "Ranges", "Split", "even_ranges"]

Ranges = tuple[tuple[int, int], ...]


def even_ranges(size: int, parts: int) -> Ranges:
    """Cut [0, size) into `parts` contiguous ranges; the first `size % parts` are one longer, some may be empty."""
    bounds = split_bounds(size, parts)
    return tuple(pairwise(bounds))


@dataclass(frozen=True)
class Split:
    """One dim cut over `axis`: ranges[c] belongs to coordinate c."""

    dim: int
    axis: str
    ranges: Ranges

    def tiles(self, size: int) -> bool:
        """Whether the ranges cover [0, size) once, in order."""
        stops = [0, *(hi for _, hi in self.ranges)]
        return all(lo == stop for (lo, _), stop in zip(self.ranges, stops, strict=False)) and stops[-1] == size

    def moved(self, dim: int) -> "Split":
        """The same cut of another dim."""
        return Split(dim, self.axis, self.ranges)


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
        object.__setattr__(self, "axes", tuple(dict.fromkeys([*(s.axis for s in ordered), *self.partial])))
        if len(self.axes) != len(ordered) + len(self.partial) or len({s.dim for s in ordered}) != len(ordered):
            raise AssertionError(f"an axis or a dim is used twice in {self}")

    def split_of(self, dim: int) -> Split | None:
        """The split of a dim, or None."""
        return next((s for s in self.splits if s.dim == dim), None)

    def local_shape(self, shape: tuple[int, ...], coords: dict[str, int]) -> tuple[int, ...]:
        """Shape of the block at `coords` (axis -> coordinate)."""
        local = list(shape)
        for split in self.splits:
            lo, hi = split.ranges[coords[split.axis]]
            local[split.dim] = hi - lo
        return tuple(local)

    def empty(self, coords: dict[str, int]) -> bool:
        """Whether the cut leaves nothing of the value at `coords`."""
        return any(hi <= lo for lo, hi in (split.ranges[coords[split.axis]] for split in self.splits))


REPLICATED = Layout()
