"""Small functions on layouts that many rules share: cuts that move with their dims, and windows along some of them."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from meshemu.workload.layout import Layout, Split, even_ranges
from meshemu.workload.lowering import Lowering
from meshemu.workload.spmd import Value

__all__ = [
    "Args",
    "Kwargs",
    "Reach",
    "argument",
    "axes_of",
    "even",
    "rows_layout",
    "rows_shape",
    "shared_cuts",
    "windows",
    "with_dim",
]


Args = tuple[Any, ...]
"""An operator's positional arguments, with Values in place of tensors."""
Kwargs = dict[str, Any]
"""Its arguments by name."""


def argument(args: Args, kwargs: Kwargs, position: int, name: str, default: Any) -> Any:
    """An operator's argument, whether it is given by position, by name or not at all."""
    return args[position] if len(args) > position else kwargs.get(name, default)


@dataclass(frozen=True)
class Reach:
    """What an output dim of `size` reads of its input dim: window(lo, hi) -> input range of output range lo..hi."""

    size: int
    window: Callable[[int, int], tuple[int, int]]


def even(low: Lowering, split: Split, size: int) -> Split:
    """The same dim cut over the same axes, but evenly, as befits a dim of another size."""
    return Split(split.dim, split.axes, even_ranges(size, low.plan.size(split.axes)))


def axes_of(value: Value, dims: Collection[int]) -> tuple[str, ...]:
    """The axes over which some of these dims are cut."""
    return tuple(axis for s in value.layout.splits if s.dim in dims for axis in s.axes)


def rows_shape(value: Value, dims: Collection[int], *, keepdim: bool = False) -> tuple[int, ...]:
    """The shape without `dims`, or with ones in their place."""
    return tuple(1 if d in dims else n for d, n in enumerate(value.shape) if keepdim or d not in dims)


def rows_layout(value: Value, dims: Collection[int], *, keepdim: bool = False, partial: bool = True) -> Layout:
    """Cuts of what every row has one of, where rows run along `dims`: terms of sums over the axes that cut rows."""
    kept = [s for s in value.layout.splits if s.dim not in dims]
    splits = tuple(s if keepdim else s.moved(s.dim - sum(d < s.dim for d in dims)) for s in kept)
    return Layout(splits, axes_of(value, dims) if partial else ())


def with_dim(layout: Layout, split: Split | None, dim: int) -> Layout:
    """A layout with another cut of one dim, or none."""
    return Layout((*(s for s in layout.splits if s.dim != dim), *([] if split is None else [split])))


def shared_cuts(values: Collection[Value]) -> Layout:
    """One cut of every dim for tensors of equal rank; where they differ, the larger tensor's counts."""
    chosen: dict[int, Split] = {}
    for value in sorted(values, key=lambda v: -_elements(v)):
        for split in value.layout.splits:
            used = {axis for other in chosen.values() for axis in other.axes}
            if split.dim not in chosen and not used & set(split.axes):
                chosen[split.dim] = split
    return Layout(tuple(chosen.values()))


def windows(
    low: Lowering, source: Value, reaches: Mapping[int, Reach], fill: float = 0.0, dropped: Collection[int] = ()
) -> tuple[Value, Layout]:
    """(`source` with what every device needs for its block of an output, layout of that output).

    reaches: dim -> what the output reads along it. Such a dim, if it is cut, stays cut over the same axes, evenly; an
    output with fewer elements along it than there are blocks is whole everywhere, and so is a dim in `dropped`. Other
    dims stay as they are.
    """
    wanted, made = [], []
    for split in source.layout.splits:
        if split.dim not in reaches:
            wanted.append(split)
            made.append(split)
            continue
        reach = reaches[split.dim]
        if reach.size < low.plan.size(split.axes) or split.dim in dropped:
            wanted.append(Split(split.dim, (), (reach.window(0, reach.size),)))
            continue
        cut = even(low, split, reach.size)
        made.append(cut)
        wanted.append(Split(split.dim, split.axes, tuple(reach.window(lo, hi) for lo, hi in cut.ranges)))
    return low.fetch(source, Layout(tuple(wanted)), fill), Layout(tuple(made))


def _elements(value: Value) -> int:
    count = 1
    for n in value.shape:
        count *= n
    return count
