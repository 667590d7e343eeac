"""A plan: named axes over the device grid, and where each position of the grid lies on the mesh.

    pipeline  the model is cut into stages; micro-batches pass through them
    data      the batch is cut; parameters are replicated
    shard     the batch is cut, and so are parameters, gradients and optimizer state (ZeRO)
    tensor    matrix products are cut by their features; the batch is replicated
    spatial   the height of images is cut over mesh rows (axis "h"), their width over mesh columns (axis "w")

Several axes make a product. Each fills a small rectangle, and the rectangles nest: an axis further out repeats the
blocks of those further in, so that {data = 6, spatial = [5, 5]} on 2 x 3 tiles of 5 x 5 dies puts one replica on each
tile and cuts its images over the dies of that tile.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

__all__ = ["BATCH_AXES", "IMAGE_AXES", "PIPELINE", "Axis", "Place", "Plan"]

Place = Callable[[Sequence[str]], int]
"""Joint coordinate of one position along axes, the first of them the slowest."""

BATCH_AXES = ("data", "shard")
"""Axes over which samples are cut."""

PIPELINE = "pipeline"
"""Axis whose coordinates are stages."""

IMAGE_AXES = ("h", "w")
"""Axes over which rows and columns of images are cut."""


@dataclass(frozen=True)
class Axis:
    """`size` coordinates, row by row over a rectangle of rows x cols blocks of whatever lies further in.

    Those of the pipeline go to and fro, every other row backwards, so that successive stages are neighbours.
    """

    name: str
    size: int
    rows: int
    cols: int


@dataclass(frozen=True)
class Plan:
    """axes, outermost first; devices: id of each position (row-major over the axes). absent: places of the rectangle
    that hold no position, since their device is dead (with a single axis only). zero: what "shard" cuts besides the
    batch: 1 optimizer state, 2 also gradients, 3 also parameters while they are not in use (Rajbhandari et al. 2020).
    modules: (glob over module names, "column", "row" or "replicate"): how "tensor" cuts their weights. stages: names of
    the modules at which all stages of the "pipeline" but the first begin, () where they are cut by cost. order: of its
    passes. micro_batches: how many pass through it in a step, None where that is left open.
    """

    axes: tuple[Axis, ...]
    devices: tuple[int, ...]
    absent: tuple[int, ...] = ()
    zero: int = 3
    modules: tuple[tuple[str, str], ...] = ()
    stages: tuple[str, ...] = ()
    order: str = "1f1b"
    micro_batches: int | None = None

    @property
    def n_stages(self) -> int:
        """Number of stages of the pipeline; 1 without one."""
        return self.size((PIPELINE,))

    @property
    def n_positions(self) -> int:
        """Number of devices that take part."""
        return len(self.devices)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the axes."""
        return tuple(axis.name for axis in self.axes)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, cols) of the rectangle of devices that all axes together fill."""
        return prod(axis.rows for axis in self.axes), prod(axis.cols for axis in self.axes)

    @cached_property
    def coords(self) -> dict[str, NDArray[np.int64]]:
        """Axis -> coordinate of every position."""
        unravelled = np.unravel_index(np.arange(self.n_positions), [axis.size for axis in self.axes])
        return {axis.name: np.asarray(c) for axis, c in zip(self.axes, unravelled, strict=True)}

    @property
    def batch_axes(self) -> tuple[str, ...]:
        """The plan's axes that cut samples."""
        return tuple(name for name in self.names if name in BATCH_AXES)

    def on(self, stages: tuple[int, ...]) -> NDArray[np.bool_]:
        """Whether each position belongs to one of the stages; () stands for all."""
        if not stages:
            return np.ones(self.n_positions, np.bool_)
        return np.isin(self.coords[PIPELINE], stages)

    def has(self, name: str) -> bool:
        """Whether the plan has an axis of this name."""
        return name in self.names

    def size(self, axes: Sequence[str]) -> int:
        """Number of coordinates of several axes together."""
        return prod(axis.size for axis in self.axes if axis.name in axes)

    def index(self, axes: Sequence[str]) -> NDArray[np.int64]:
        """Joint coordinate of every position along several axes, the first of them the slowest."""
        joint = np.zeros(self.n_positions, np.int64)
        for name in axes:
            joint = joint * self.size((name,)) + self.coords[name]
        return joint

    def split_index(self, axes: Sequence[str], joint: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Axis -> coordinate, from joint coordinates."""
        parts = np.unravel_index(joint, [self.size((name,)) for name in axes])
        return {name: np.asarray(part) for name, part in zip(axes, parts, strict=True)}

    def at(self, position: int) -> Place:
        """The joint coordinate of one position along any axes."""
        coords = {name: int(c[position]) for name, c in self.coords.items()}
        sizes = {axis.name: axis.size for axis in self.axes}

        def joint(axes: Sequence[str]) -> int:
            index = 0
            for name in axes:
                index = index * sizes[name] + coords[name]
            return index

        return joint

    def position(self, coords: Mapping[str, NDArray[np.int64]]) -> NDArray[np.int64]:
        """Position of each set of coordinates (all axes given)."""
        return np.ravel_multi_index([coords[a.name] for a in self.axes], [a.size for a in self.axes])

    def groups(
        self, axes: Sequence[str], stages: tuple[int, ...] = ()
    ) -> tuple[NDArray[np.int64], tuple[int, int], tuple[int, ...]]:
        """Positions on `stages` that reduce together over `axes`: (n_groups, members), the group's grid, absent places.

        Members are in the order of the grid, row by row; on the mesh its rows and columns may lie apart.
        """
        if self.absent:
            return np.arange(self.n_positions)[None, :], self.grid, self.absent
        row = np.zeros(self.n_positions, np.int64)
        col, group = row.copy(), row.copy()
        rows = cols = 1
        for axis in self.axes:
            coordinate = self.coords[axis.name]
            if axis.name in axes:
                row, col = row * axis.rows + coordinate // axis.cols, col * axis.cols + coordinate % axis.cols
                rows, cols = rows * axis.rows, cols * axis.cols
            else:
                group = group * axis.size + coordinate
        members = np.lexsort((col, row, group)).reshape(-1, rows * cols)
        return members[self.on(stages)[members[:, 0]]], (rows, cols), ()

    def describe(self) -> str:
        """The plan in words, e.g. "data 6 on 2 x 3 blocks, spatial 5 x 5 (h over mesh rows, w over mesh columns)"."""
        words = []
        for i, axis in enumerate(self.axes):
            unit = "devices" if i == len(self.axes) - 1 else "blocks"
            if axis.name == "h":
                words.append(f"spatial {axis.size} x {self.size('w')} (h over mesh rows, w over mesh columns)")
            elif axis.name != "w":
                level = f" (ZeRO {self.zero})" if axis.name == "shard" else ""
                level = f" ({self._flow()})" if axis.name == PIPELINE else level
                words.append(f"{axis.name} {axis.size}{level} on {axis.rows} x {axis.cols} {unit}")
        return ", ".join(words)

    def _flow(self) -> str:
        """How micro-batches pass through the pipeline."""
        at = f", stages at {', '.join(self.stages)}" if self.stages else ""
        count = "" if self.micro_batches is None else f", {self.micro_batches} micro-batches"
        return self.order + count + at
