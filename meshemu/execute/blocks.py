"""Which blocks of a value a rank holds, and where a global box lies in one of them."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from meshemu.workload.layout import Layout, unfolded
from meshemu.workload.plan import Place, Plan
from meshemu.workload.spmd import Value

__all__ = ["Blocks", "Host", "Key", "assembled", "block_box", "cut", "unfolded_values"]

Key = tuple[int, ...]
"""Coordinates of a block along the axes of its value's layout; () is the block of a replicated value."""

Blocks = dict[Key, torch.Tensor]
"""Blocks of one value that a rank holds."""


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

    def representatives(self, layout: Layout, rank: int | None = None) -> dict[Key, int]:
        """Key -> first position of a rank (this one by default) that holds it, for all its blocks in `layout`."""
        hosted = self.positions if rank is None else np.flatnonzero(self.rank_of_position == rank).tolist()
        return self._first(layout, hosted)

    def holders(self, layout: Layout) -> dict[Key, int]:
        """Key -> first position of the plan that holds it, for all blocks in `layout`."""
        return self._first(layout, range(self.plan.n_positions))

    def _first(self, layout: Layout, positions: Iterable[int]) -> dict[Key, int]:
        found: dict[Key, int] = {}
        axes, holds = layout.axes, self.plan.on(layout.stages)
        for position in positions:
            if not holds[position]:
                continue
            found.setdefault(self.key(axes, position), position)
        return found

    def local_shape(self, value: Value, position: int) -> tuple[int, ...]:
        """Shape of the block of `value` at `position`."""
        return value.layout.local_shape(value.shape, self.plan.at(position))

    def origin(self, layout: Layout, rank: int, position: int) -> list[int]:
        """Global index of the first element of the block at `position` (`rank` = number of dims)."""
        return _origin(layout, rank, self.plan.at(position))


def block_box(block: Value, whole: Layout, place: Place) -> tuple[slice, ...]:
    """Where the block of a value at `place` lies in the block that the same place has of it in layout `whole`."""
    shape = block.layout.local_shape(block.shape, place)
    own, outer = (_origin(layout, len(shape), place) for layout in (block.layout, whole))
    return tuple(slice(a - b, a - b + n) for a, b, n in zip(own, outer, shape, strict=True))


def unfolded_values(*values: Value) -> tuple[Value, ...]:
    """Values of one shape with dims that are cut within segments unfolded: their blocks are boxes of more dims."""
    shape, layouts = unfolded(values[0].shape, *(value.layout for value in values))
    return tuple(replace(value, shape=shape, layout=layout) for value, layout in zip(values, layouts, strict=True))


def cut(tensor: torch.Tensor, value: Value, host: Host) -> Blocks:
    """The blocks of a whole tensor that a rank's devices hold: none where a rank has no device of the plan."""
    if value.replicated and not value.layout.stages:
        return {(): tensor} if host.positions else {}
    (boxed,) = unfolded_values(value)
    tensor = tensor.reshape(boxed.shape)
    return {
        key: tensor[block_box(boxed, Layout(), host.plan.at(position))].reshape(host.local_shape(value, position))
        for key, position in host.representatives(value.layout).items()
    }


def assembled(blocks: Blocks, value: Value, host: Host) -> torch.Tensor:
    """The whole tensor from all blocks of a value."""
    if value.replicated:
        return blocks[()]
    (boxed,) = unfolded_values(value)
    whole = torch.empty(boxed.shape, dtype=value.dtype)
    for key, position in host.holders(value.layout).items():
        box = block_box(boxed, Layout(), host.plan.at(position))
        whole[box] = blocks[key].reshape(host.local_shape(boxed, position))
    return whole.view(value.shape)


def _origin(layout: Layout, rank: int, place: Place) -> list[int]:
    start = [0] * rank
    for split in layout.splits:
        start[split.dim] = split.at(place)[0]
    return start
