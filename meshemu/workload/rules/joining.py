"""What is put together from parts: concatenation, rolls, repetitions, flips and constant padding.

Along a cut dim the output is cut evenly over the same axes, and every device fetches the parts that its block is made
of; where it is made of nothing else than a window of the input, the window is the block.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from meshemu.workload.layout import Layout, Split
from meshemu.workload.lowering import Lowering
from meshemu.workload.rules.cuts import Reach, argument, even, shared_cuts, windows, with_dim
from meshemu.workload.rules.parts import sliced
from meshemu.workload.spmd import Value

__all__ = ["RULES"]

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
aten = torch.ops.aten


@dataclass(frozen=True)
class _Segment:
    """Elements first ... first + size of `value` along the dim that is joined."""

    value: Value
    first: int
    size: int


def _joined(low: Lowering, segments: Sequence[_Segment], dim: int, dtype: torch.dtype) -> Value:
    """Segments one after the other along `dim`."""
    values = [low.resolve(segment.value) for segment in segments]
    cuts = shared_cuts(values)
    size = sum(segment.size for segment in segments)
    cut = cuts.split_of(dim)
    cuts = with_dim(cuts, None if cut is None else even(low, cut, size), dim)
    shape = (*values[0].shape[:dim], size, *values[0].shape[dim + 1 :])
    output = low.value(shape, dtype, cuts)
    pieces, offset = [], 0
    for segment, value in zip(segments, values, strict=True):
        pieces.append(low.fetch(value, with_dim(cuts, _part(cuts.split_of(dim), dim, segment, offset), dim)))
        offset += segment.size
    return low.compute(torch.cat, [pieces, dim], [output], op_class="cat", takes_empty=True)[0]


def _part(cut: Split | None, dim: int, segment: _Segment, offset: int) -> Split | None:
    """What each block of the joined dim takes from a segment that begins at `offset` of it."""
    if cut is None:
        whole = segment.first == 0 and segment.size == segment.value.shape[dim]
        return None if whole else Split(dim, (), ((segment.first, segment.first + segment.size),))
    inside = [(min(max(lo - offset, 0), segment.size), min(max(hi - offset, 0), segment.size)) for lo, hi in cut.ranges]
    return Split(dim, cut.axes, tuple((segment.first + lo, segment.first + hi) for lo, hi in inside))


def cat(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """tensors, dim."""
    meta = node.meta["val"]
    rank = meta.dim()
    dim = argument(args, kwargs, 1, "dim", 0) % rank
    values = [v for v in args[0] if v.shape != (0,) or rank == 1]  # an empty 1-D tensor joins anything
    return _joined(low, [_Segment(v, 0, v.shape[dim]) for v in values], dim, meta.dtype)


def roll(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """input, shifts, dims (none: of the flattened tensor)."""
    source: Value = low.resolve(args[0])
    dims = argument(args, kwargs, 2, "dims", [])
    shifts = [args[1]] if isinstance(args[1], int) else args[1]
    if not dims:
        flat = low.fetch(source, Layout())
        return low.compute(aten.roll.default, [flat, shifts], [low.value(flat.shape, flat.dtype)], op_class="roll")[0]
    for shift, dim in zip(shifts, [dims] if isinstance(dims, int) else dims, strict=True):
        dim, size = dim % len(source.shape), source.shape[dim]
        if source.layout.split_of(dim) is not None and size:
            shift %= size
            segments = [_Segment(source, size - shift, shift), _Segment(source, 0, size - shift)]
            source = _joined(low, [s for s in segments if s.size], dim, source.dtype)
        else:
            output = low.value(source.shape, source.dtype, source.layout)
            (source,) = low.compute(aten.roll.default, [source, [shift], [dim]], [output], op_class="roll")
    return source


def repeat(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """input, repeats: cut dims that are repeated are joined from copies, the others repeat within each device."""
    source, repeats = low.resolve(args[0]), list(args[1])
    n_new = len(repeats) - len(source.shape)
    for dim, times in enumerate(repeats[n_new:]):
        if source.layout.split_of(dim) is not None and times != 1:
            source = _repeated(low, source, dim, times)
            repeats[n_new + dim] = 1
    layout = Layout(tuple(s.moved(s.dim + n_new) for s in source.layout.splits))
    output = low.like(node.meta["val"], layout)
    return low.compute(aten.repeat.default, [source, repeats], [output], op_class="repeat")[0]


def _repeated(low: Lowering, source: Value, dim: int, times: int) -> Value:
    if times == 0:
        return sliced(low, source, dim, 0, 0)
    return _joined(low, [_Segment(source, 0, source.shape[dim])] * times, dim, source.dtype)


def flip(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """input, dims."""
    source = low.resolve(args[0])
    dims = [d % len(source.shape) for d in argument(args, kwargs, 1, "dims", [])]

    def backwards(size: int) -> Callable[[int, int], tuple[int, int]]:
        return lambda lo, hi: (size - hi, size - lo)

    window, layout = windows(low, source, {d: Reach(source.shape[d], backwards(source.shape[d])) for d in dims})
    return low.compute(aten.flip.default, [window, dims], [low.like(node.meta["val"], layout)], op_class="flip")[0]


def pad(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """constant_pad_nd: input, amounts (before and after, last dim first), value."""
    source, amounts, fill = low.resolve(args[0]), list(args[1]), argument(args, kwargs, 2, "value", 0)
    shape = tuple(node.meta["val"].shape)
    reaches = {}
    for i in range(0, len(amounts), 2):
        dim = len(shape) - 1 - i // 2
        if source.layout.split_of(dim) is not None and (amounts[i] or amounts[i + 1]):
            reaches[dim] = Reach(shape[dim], _shifted(amounts[i]))
            amounts[i : i + 2] = [0, 0]
    window, layout = windows(low, source, reaches, float(fill))
    output = low.like(node.meta["val"], layout)
    op_class = "constant_pad_nd" if any(amounts) else "view"
    return low.compute(
        aten.constant_pad_nd.default, [window, amounts, fill], [output], op_class=op_class, takes_empty=True
    )[0]


def _shifted(before: int) -> Callable[[int, int], tuple[int, int]]:
    return lambda lo, hi: (lo - before, hi - before)


RULES = {
    "cat": cat,
    "roll": roll,
    "repeat": repeat,
    "flip": flip,
    "constant_pad_nd": pad,
}
