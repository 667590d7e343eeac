"""Parts of tensors: slices, single elements of a dim, and their adjoints that put a part back in its place.

Along a cut dim a part is cut evenly over the same axes, and every device fetches what its block reads. Parts smaller
than the number of blocks are whole everywhere.
"""

import operator
from typing import Any

import torch
from torch import fx

from meshemu.workload import part_kernels
from meshemu.workload.layout import Layout
from meshemu.workload.lowering import Lowering
from meshemu.workload.rules.cuts import Reach, argument, even, shared_cuts, windows, with_dim
from meshemu.workload.spmd import LocalRange, LocalShape, Value

__all__ = ["RULES", "sliced"]

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
aten = torch.ops.aten


def slice_(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """input, dim, start, end, step."""
    source: Value = args[0]
    if tuple(node.meta["val"].shape) == source.shape and argument(args, kwargs, 4, "step", 1) == 1:
        return source
    dim = argument(args, kwargs, 1, "dim", 0) % len(source.shape)
    start = _bound(argument(args, kwargs, 2, "start", None), source.shape[dim], 0)
    return sliced(low, source, dim, start, node.meta["val"].shape[dim], argument(args, kwargs, 4, "step", 1))


def _bound(index: int | None, size: int, default: int) -> int:
    """A slice's bound as a position in [0, size]."""
    if index is None:
        return default
    return min(max(index + size if index < 0 else index, 0), size)


def sliced(low: Lowering, source: Value, dim: int, start: int, size: int, step: int = 1) -> Value:
    """Elements start, start + step ... of a dim, `size` of them. A partial sum stays one if nothing must move."""

    def reach(lo: int, hi: int) -> tuple[int, int]:
        return start + lo * step, start + max((hi - 1) * step + 1, lo * step)

    shape = (*source.shape[:dim], size, *source.shape[dim + 1 :])
    if source.layout.split_of(dim) is None:
        output = low.value(shape, source.dtype, source.layout, source.combine)
        bounds = [dim, start, start + size * step, step]
        return low.compute(aten.slice.Tensor, [source, *bounds], [output], op_class="slice")[0]
    window, layout = windows(low, low.resolve(source), {dim: Reach(size, reach)})
    output = low.value(shape, source.dtype, layout)
    return low.compute(aten.slice.Tensor, [window, dim, 0, None, step], [output], op_class="slice")[0]


def select(low: Lowering, node: fx.Node, args: Args, _kwargs: Kwargs) -> Any:
    """input, dim, index: one element of a dim, which goes."""
    source: Value = args[0]
    dim = args[1] % len(source.shape)
    return _selected(low, source, dim, args[2] % source.shape[dim])


def _selected(low: Lowering, source: Value, dim: int, index: int) -> Value:
    partial: tuple[str, ...] = ()
    if source.layout.split_of(dim) is None:
        window, layout, place, partial = source, source.layout, index, source.layout.partial
    else:
        window, layout = windows(
            low, low.resolve(source), {dim: Reach(1, lambda lo, hi: (index + lo, index + hi))}, dropped=[dim]
        )
        place = 0
    splits = tuple(s.moved(s.dim - (s.dim > dim)) for s in layout.splits)
    shape = source.shape[:dim] + source.shape[dim + 1 :]
    output = low.value(shape, source.dtype, Layout(splits, partial), window.combine)
    return low.compute(aten.select.int, [window, dim, place], [output], op_class="select")[0]


def unbind(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """All indices of a dim, which goes."""
    source: Value = args[0]
    dim = argument(args, kwargs, 1, "dim", 0) % len(source.shape)
    return tuple(_selected(low, source, dim, i) if used else None for i, used in enumerate(_uses(node)))


def split(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """input, size or sizes, dim: consecutive parts of a dim."""
    source: Value = args[0]
    dim = argument(args, kwargs, 2, "dim", 0) % len(source.shape)
    parts, start = [], 0
    for meta, used in zip(node.meta["val"], _uses(node), strict=True):
        size = meta.shape[dim]
        parts.append(sliced(low, source, dim, start, size) if used else None)
        start += size
    return tuple(parts)


def _uses(node: fx.Node) -> list[bool]:
    """Which outputs of a node are read (all, if that cannot be told)."""
    n = len(node.meta["val"])
    if not node.users or any(user.target is not operator.getitem for user in node.users):
        return [True] * n
    indices = {user.args[1] for user in node.users}
    return [i in indices for i in range(n)]


def slice_backward(low: Lowering, node: fx.Node, args: Args, _kwargs: Kwargs) -> Any:
    """grad, input_sizes, dim, start, end, step: zeros with a slice of them filled.

    A partial sum stays one if nothing must move: it may be the gradient of a parameter, which joins others in a bucket.
    """
    shape = tuple(args[1])
    dim = args[2] % len(shape)
    spread = part_kernels.Spread(dim, _bound(args[3], shape[dim], 0), args[5], args[0].shape[dim])
    cut = args[0].layout.split_of(dim)
    if cut is None:
        layout, window = args[0].layout, args[0]
    else:
        layout = with_dim(args[0].layout, even(low, cut, shape[dim]), dim)
        window = low.fetch(args[0], with_dim(layout, spread.window(layout.split_of(dim)), dim))
    output = low.value(shape, window.dtype, layout, window.combine)
    placed = (window, LocalShape(output), spread, LocalRange(output, dim))
    return low.compute(part_kernels.spread_over_zeros, placed, [output], op_class="slice_backward", takes_empty=True)[0]


def slice_scatter(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """input, source, dim, start, end, step: the input with a slice of it replaced."""
    dim = argument(args, kwargs, 2, "dim", 0) % len(args[0].shape)
    start = _bound(argument(args, kwargs, 3, "start", None), args[0].shape[dim], 0)
    return _scattered(low, args[0], args[1], dim, start, argument(args, kwargs, 5, "step", 1))


def select_scatter(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """input, source (without the dim), dim, index."""
    dim = args[2] % len(args[0].shape)
    part = low.resolve(args[1])
    layout = Layout(tuple(s.moved(s.dim + (s.dim >= dim)) for s in part.layout.splits))
    output = low.value((*part.shape[:dim], 1, *part.shape[dim:]), part.dtype, layout)
    (part,) = low.compute(aten.unsqueeze.default, [part, dim], [output], op_class="unsqueeze")
    return _scattered(low, args[0], part, dim, args[3] % args[0].shape[dim], 1)


def _scattered(low: Lowering, base: Value, part: Value, dim: int, start: int, step: int) -> Value:
    base, part = low.resolve(base), low.resolve(part)
    layout = shared_cuts([base, part])
    cut = layout.split_of(dim)
    if cut is not None and base.layout.split_of(dim) != cut:
        layout = with_dim(layout, even(low, cut, base.shape[dim]), dim)
    output = low.value(base.shape, base.dtype, layout)
    spread = part_kernels.Spread(dim, start, step, part.shape[dim])
    window = low.fetch(part, with_dim(layout, spread.window(layout.split_of(dim)), dim))
    placed = (low.fetch(base, layout), window, spread, LocalRange(output, dim))
    return low.compute(part_kernels.spread_over, placed, [output], op_class="slice_scatter", takes_empty=True)[0]


RULES = {
    "slice.Tensor": slice_,
    "slice_backward": slice_backward,
    "slice_scatter": slice_scatter,
    "select.int": select,
    "select_scatter": select_scatter,
    "unbind": unbind,
    **{name: split for name in ("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes")},
}
