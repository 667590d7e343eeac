"""Which piece of which block goes where: the messages of a Fetch, by index arithmetic alone."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from meshemu.workload.layout import Layout, Split, unfolded
from meshemu.workload.plan import PIPELINE, Plan

__all__ = ["Pieces", "pieces"]


@dataclass(frozen=True, eq=False)
class Pieces:
    """Rows, sorted by (dst, src): position `dst` takes the box lo <= index < hi (global indices) from `src`.

    dst, src: int64[n]; lo, hi: int64[n, ndim]. src == dst is a copy within the device.
    """

    dst: NDArray[np.int64]
    src: NDArray[np.int64]
    lo: NDArray[np.int64]
    hi: NDArray[np.int64]

    @property
    def n_elements(self) -> NDArray[np.int64]:
        """Elements in each row's box."""
        return np.asarray(np.prod(self.hi - self.lo, axis=1, dtype=np.int64))

    @property
    def moves(self) -> NDArray[np.bool_]:
        """Rows that cross from one device to another."""
        return np.asarray(self.src != self.dst)


def pieces(shape: tuple[int, ...], held: Layout, wanted: Layout, plan: Plan) -> Pieces:
    """The boxes that turn blocks of `held` (a partition of `shape`, in any order) into blocks of `wanted` (any ranges).

    Dims that are cut within segments are unfolded, here as in what is returned. What `wanted` asks for outside `shape`
    is left out. A device that already holds a box takes its own; the others are taken from the device that differs from
    it only along the axes that `held` is cut over, and in its stage where its own does not hold the value.
    """
    shape, (held, wanted) = unfolded(shape, held, wanted)
    for split in held.splits:
        if not replace(split, ranges=tuple(sorted(split.ranges))).tiles(shape[split.dim]):
            raise AssertionError(f"dim {split.dim} of size {shape[split.dim]} is not partitioned by {split}")
    dst = np.flatnonzero(plan.on(wanted.stages))
    n = len(dst)
    lo = np.zeros((n, len(shape)), np.int64)
    hi = np.tile(np.asarray(shape, np.int64), (n, 1))
    for split in wanted.splits:
        ranges = np.asarray(split.ranges, np.int64)[plan.index(split.axes)[dst]]
        lo[:, split.dim] = np.clip(ranges[:, 0], 0, shape[split.dim])
        hi[:, split.dim] = np.clip(ranges[:, 1], 0, shape[split.dim])
    src_coords = {axis: c[dst] for axis, c in plan.coords.items()}
    if held.stages:
        own = src_coords[PIPELINE]
        src_coords[PIPELINE] = np.where(np.isin(own, held.stages), own, held.stages[0])
    keep = (hi > lo).all(axis=1)
    dst, lo, hi = dst[keep], lo[keep], hi[keep]
    src_coords = {axis: c[keep] for axis, c in src_coords.items()}
    for split in held.splits:
        row, coord = _overlaps(split, lo[:, split.dim], hi[:, split.dim])
        dst, lo, hi = dst[row], lo[row], hi[row]
        src_coords = {axis: c[row] for axis, c in src_coords.items()}
        src_coords.update(plan.split_index(split.axes, coord))
        ranges = np.asarray(split.ranges, np.int64)[coord]
        lo[:, split.dim] = np.maximum(lo[:, split.dim], ranges[:, 0])
        hi[:, split.dim] = np.minimum(hi[:, split.dim], ranges[:, 1])
    src = plan.position(src_coords)
    order = np.lexsort((src, dst))
    return Pieces(dst[order], src[order], lo[order], hi[order])


def _overlaps(
    split: Split, lo: NDArray[np.int64], hi: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(row, coordinate) for every block of `split` that meets [lo[row], hi[row])."""
    ranges = np.asarray(split.ranges, np.int64)
    order = np.lexsort((ranges[:, 1], ranges[:, 0]))
    starts, stops = ranges[order, 0], ranges[order, 1]
    first = np.searchsorted(stops, lo, side="right")
    last = np.searchsorted(starts, hi, side="left")
    count = np.maximum(last - first, 0)
    row = np.repeat(np.arange(len(lo)), count)
    place = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[row]
    full = stops[place] > starts[place]
    return row[full], order[place[full]]
