"""What a view does to a cut dim, by arithmetic on shapes."""

from collections.abc import Callable, Sequence
from math import prod

from meshemu.workload.layout import Layout, Split
from meshemu.workload.plan import IMAGE_AXES

__all__ = ["viewable_cuts", "viewed_split"]


def viewed_split(split: Split, before: tuple[int, ...], after: tuple[int, ...]) -> Split | None:
    """The same cut after a view, or None if it is no cut of one dim.

    Dims that are viewed together count like the digits of a number. The cut digit repeats in each of `outer` runs; the
    dim of `after` that holds the next digits is cut, within segments where it holds some of the outer digits too.
    """
    if 0 in before:
        return None
    for dims_in, dims_out in _groups(before, after):
        if split.dim not in dims_in:
            continue
        total = prod(before[d] for d in dims_in)
        outer = prod(before[d] for d in dims_in if d < split.dim) * split.segments
        inner = prod(before[d] for d in dims_in if d > split.dim)
        prefix = 1
        for dim in dims_out:
            held = prefix * after[dim]
            if held > outer or total == 1:
                return _cut(split, dim, after[dim], (outer, prefix), (inner, total // held))
            prefix = held
    return None


def viewable_cuts(
    layout: Layout, before: tuple[int, ...], after: tuple[int, ...], size_of: Callable[[Sequence[str]], int]
) -> Layout:
    """The cuts of a layout that a view keeps; size_of: number of coordinates of several axes together.

    Where a cut over several axes is torn, it is kept over the first of them; of several cuts that would fall on one
    dim, the first is kept. Rows and columns of images are not kept within segments: what follows is a product that sums
    over all of them, and a weight that is cut for it would cost more than the image.
    """
    kept: list[Split] = []
    taken: set[int] = set()
    for split in layout.splits:
        for n_axes in range(len(split.axes), 0, -1):
            coarse = _over_first(split, n_axes, size_of)
            moved = viewed_split(coarse, before, after)
            if moved is None or moved.dim in taken or (moved.segments > 1 and set(split.axes) & set(IMAGE_AXES)):
                continue
            kept.append(coarse)
            taken.add(moved.dim)
            break
    return Layout(tuple(kept))


def _over_first(split: Split, n_axes: int, size_of: Callable[[Sequence[str]], int]) -> Split:
    """A cut over the first of its axes only: blocks of the others joined."""
    share = size_of(split.axes[n_axes:])
    starts, stops = split.ranges[::share], split.ranges[share - 1 :: share]
    ranges = tuple((lo, hi) for (lo, _), (_, hi) in zip(starts, stops, strict=True))
    return Split(split.dim, split.axes[:n_axes], ranges, split.segments)


def _cut(split: Split, dim: int, size: int, runs: tuple[int, int], inner: tuple[int, int]) -> Split | None:
    """`split` moved to a dim; runs: how often its digit and this dim repeat; inner: elements of one step along each."""
    segments, torn = divmod(runs[0], runs[1])
    offsets = [offset * inner[0] for bounds in split.ranges for offset in bounds]
    if torn or size % segments or any(offset % inner[1] for offset in offsets):
        return None
    cuts = [offset // inner[1] for offset in offsets]
    return Split(dim, split.axes, tuple(zip(cuts[::2], cuts[1::2], strict=True)), segments)


def _groups(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of dims with equal products on both sides, in order."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = [i] if i < len(before) else [], [j] if j < len(after) else []
        p, q = (before[i] if left else 1), (after[j] if right else 1)
        i, j = i + len(left), j + len(right)
        while p != q:
            if (p < q and i < len(before)) or j >= len(after):
                p *= before[i]
                left.append(i)
                i += 1
            else:
                q *= after[j]
                right.append(j)
                j += 1
        groups.append((left, right))
    return groups
