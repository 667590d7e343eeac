"""Where the blocks of a value lie: how each tensor dim is cut over which axis of the device grid.

A `Split` gives every coordinate of an axis, or of several axes together, a half-open range of one dim. Ranges that
tile the dim make a partition; ranges that overlap or reach beyond the dim make windows (a block with its halo). Axes
that a layout does not mention hold the same block everywhere; `partial` axes hold terms that still have to be summed.

A dim may also be cut within segments: of queries, keys and values in one tensor, each device then holds its heads of
each of the three. Such a dim is `unfolded` into two, of which the second is cut.
"""

from dataclasses import dataclass, field, replace
from itertools import pairwise

from meshemu.workload.plan import Place

__all__ = ["REPLICATED", "Layout", "Ranges", "Split", "even_ranges", "gathered_axes", "unfolded"]

Ranges = tuple[tuple[int, int], ...]


def even_ranges(size: int, parts: int) -> Ranges:
    """Cut [0, size) into `parts` contiguous ranges whose lengths differ by at most one; some may be empty.

    Bounds are the multiples of size / parts, rounded, so that longer ranges are spread and not all at the beginning:
    cuts of one dim at several resolutions lie at about the same places, and any run of devices has its share.
    """
    bounds = ((2 * part * size + parts) // (2 * parts) for part in range(parts + 1))
    return tuple(pairwise(bounds))


def _covers(ranges: Ranges, start: int, stop: int) -> bool:
    """Whether the ranges follow one another from start to stop."""
    stops = [start, *(hi for _, hi in ranges)]
    return all(lo == end for (lo, _), end in zip(ranges, stops, strict=False)) and stops[-1] == stop


@dataclass(frozen=True)
class Split:
    """One dim cut over `axes`: ranges[c] belongs to joint coordinate c, the first axis being the slowest.

    segments: the dim consists of so many equal parts, and `ranges` are those of each of them.
    """

    dim: int
    axes: tuple[str, ...]
    ranges: Ranges
    segments: int = 1

    def tiles(self, size: int) -> bool:
        """Whether the ranges cover [0, size) once, in order, in each segment."""
        return size % self.segments == 0 and _covers(self.ranges, 0, size // self.segments)

    def length(self, coordinate: int) -> int:
        """How much of the dim a joint coordinate holds."""
        lo, hi = self.ranges[coordinate]
        return (hi - lo) * self.segments

    def at(self, place: Place) -> tuple[int, int]:
        """The range of one position."""
        return self.ranges[place(self.axes)]

    def moved(self, dim: int) -> "Split":
        """The same cut of another dim."""
        return Split(dim, self.axes, self.ranges, self.segments)


@dataclass(frozen=True)
class Layout:
    """splits: at most one per dim and per axis, sorted by dim. partial: axes over which blocks are terms of a sum.

    stages: of the pipeline, that hold the value; () where all do.
    """

    splits: tuple[Split, ...] = ()
    partial: tuple[str, ...] = ()
    stages: tuple[int, ...] = ()
    axes: tuple[str, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        """Sort and derive `axes`, all axes on which blocks differ."""
        ordered = tuple(sorted(self.splits, key=lambda s: s.dim))
        object.__setattr__(self, "splits", ordered)
        used = [*(axis for s in ordered for axis in s.axes), *self.partial]
        object.__setattr__(self, "axes", tuple(dict.fromkeys(used)))
        if len(self.axes) != len(used) or len({s.dim for s in ordered}) != len(ordered):
            raise AssertionError(f"an axis or a dim is used twice in {self}")

    @property
    def uneven_axes(self) -> tuple[str, ...]:
        """Axes along which blocks differ in size, sorted."""
        uneven = (split for split in self.splits if len({hi - lo for lo, hi in split.ranges}) > 1)
        return tuple(sorted(axis for split in uneven for axis in split.axes))

    def on(self, stages: tuple[int, ...]) -> "Layout":
        """The same blocks on these stages."""
        return self if stages == self.stages else replace(self, stages=stages)

    def held_on(self, stages: tuple[int, ...]) -> bool:
        """Whether all of these stages hold the value."""
        return not self.stages or (bool(stages) and set(stages) <= set(self.stages))

    def split_of(self, dim: int) -> Split | None:
        """The split of a dim, or None."""
        return next((s for s in self.splits if s.dim == dim), None)

    def local_shape(self, shape: tuple[int, ...], place: Place) -> tuple[int, ...]:
        """Shape of the block at `place`."""
        local = list(shape)
        for split in self.splits:
            local[split.dim] = split.length(place(split.axes))
        return tuple(local)

    def empty(self, place: Place) -> bool:
        """Whether the cut leaves nothing of the value at `place`."""
        return any(hi <= lo for lo, hi in (split.at(place) for split in self.splits))


REPLICATED = Layout()


def gathered_axes(shape: tuple[int, ...], blocks: Layout, whole: Layout) -> tuple[str, ...]:
    """Axes over which devices must pool their `blocks` to hold those of `whole`; () where pooling does not do it.

    It does where a block of `whole` is made up of the blocks that differ from one another along these axes only.
    """
    axes: list[str] = []
    for dim, size in enumerate(shape):
        fine, coarse = blocks.split_of(dim), whole.split_of(dim)
        if fine == coarse:
            continue
        if fine is None or (coarse is not None and coarse.segments != fine.segments):
            return ()
        kept = coarse.axes if coarse is not None else ()
        ranges = coarse.ranges if coarse is not None else ((0, size // fine.segments),)
        share = len(fine.ranges) // len(ranges)
        if fine.axes[: len(kept)] != kept or len(fine.axes) == len(kept):
            return ()
        parts = (fine.ranges[i * share : (i + 1) * share] for i in range(len(ranges)))
        if not all(_covers(part, lo, hi) for part, (lo, hi) in zip(parts, ranges, strict=True)):
            return ()
        axes += fine.axes[len(kept) :]
    return tuple(axes)


def unfolded(shape: tuple[int, ...], *layouts: Layout) -> tuple[tuple[int, ...], tuple[Layout, ...]]:
    """(shape, layouts) with every dim that is cut within segments as two dims: (segments, what is cut).

    All layouts that cut such a dim must do so within the same segments.
    """
    segments = [1] * len(shape)
    for split in (s for layout in layouts for s in layout.splits):
        segments[split.dim] = max(segments[split.dim], split.segments)
    if all(n == 1 for n in segments):
        return shape, layouts
    longer: list[int] = []
    place = []
    for size, n in zip(shape, segments, strict=True):
        longer += [size] if n == 1 else [n, size // n]
        place.append(len(longer) - 1)
    moved = []
    for layout in layouts:
        if any(split.segments != segments[split.dim] for split in layout.splits):
            raise AssertionError(f"{layouts} cut one dim within different segments")
        splits = tuple(Split(place[s.dim], s.axes, s.ranges) for s in layout.splits)
        moved.append(replace(layout, splits=splits))
    return tuple(longer), tuple(moved)
