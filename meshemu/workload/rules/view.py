"""Operators that rearrange dims: views, permutations, slices, joins.

Cut dims stay cut as long as whole blocks map to whole blocks; otherwise they are gathered first.
"""

import string
from math import prod
from typing import Any

import torch
from torch import fx

from meshemu.workload import kernels
from meshemu.workload.layout import Layout, Split, even_ranges
from meshemu.workload.lowering import Lowering, split_letters
from meshemu.workload.spmd import LocalShape, Value
from meshemu.workload.viewing import viewable_cuts, viewed_split

__all__ = ["RULED", "RULES"]

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def view(low: Lowering, node: fx.Node, args: Args, _kwargs: Kwargs) -> Any:
    """View and reshape: a cut survives on the leading dim of the dims that are merged or split together."""
    return _reshaped(low, args[0], tuple(node.meta["val"].shape))


def _reshaped(low: Lowering, source: Value, shape: tuple[int, ...]) -> Value:
    kept = viewable_cuts(source.layout, source.shape, shape, low.plan.size)
    if kept.splits != source.layout.splits:
        source = low.fetch(low.resolve(source), kept)
    moved = [viewed_split(s, source.shape, shape) for s in source.layout.splits]
    layout = Layout(tuple(s for s in moved if s is not None), source.layout.partial)
    output = low.value(shape, source.dtype, layout, source.combine)
    return low.compute(torch.ops.aten.reshape.default, [source, LocalShape(output)], [output], op_class="view")[0]


def _named(source: Value) -> str:
    return string.ascii_letters[: len(source.shape)]


def permuted(low: Lowering, node: fx.Node, args: Args, order: list[int]) -> Any:
    """Dims in another order."""
    source: Value = args[0]
    names = _named(source)
    return low.sharded(
        node,
        args,
        {},
        [names],
        ["".join(names[d] for d in order)],
        free=names,
        op_class="view",
        keep_partial=bool(source.layout.partial),
    )


def permute(low: Lowering, node: fx.Node, args: Args, _kwargs: Kwargs) -> Any:
    """Permute."""
    rank = len(args[0].shape)
    return permuted(low, node, args, [d % rank for d in args[1]])


def transpose(low: Lowering, node: fx.Node, args: Args, _kwargs: Kwargs) -> Any:
    """Exchange of two dims."""
    rank = len(args[0].shape)
    order = list(range(rank))
    a, b = args[1] % rank, args[2] % rank
    order[a], order[b] = order[b], order[a]
    return permuted(low, node, args, order)


def t(low: Lowering, node: fx.Node, args: Args, _kwargs: Kwargs) -> Any:
    """Matrix transpose."""
    return permuted(low, node, args, list(reversed(range(len(args[0].shape)))))


def expand(low: Lowering, node: fx.Node, args: Args, _kwargs: Kwargs) -> Any:
    """Broadcast to a larger shape. Under a spatial plan, an image that grows out of one pixel is made in blocks."""
    source: Value = args[0]
    out = tuple(node.meta["val"].shape)
    if low.plan.has("h") and source.replicated and len(out) == 4 and source.shape[-2:] == (1, 1) != out[2:]:
        cut = [Split(d, (axis,), even_ranges(out[d], low.plan.size((axis,)))) for d, axis in ((2, "h"), (3, "w"))]
        output = low.value(out, source.dtype, Layout(tuple(cut)))
        return low.compute(torch.ops.aten.expand.default, (source, LocalShape(output)), [output], op_class="view")[0]
    names = string.ascii_letters[: len(out)]
    new = len(out) - len(source.shape)
    grown = {d for d, n in enumerate(source.shape) if n != out[d + new]}
    if any(s.dim in grown for s in source.layout.splits):
        source = low.fetch(source, Layout(tuple(s for s in source.layout.splits if s.dim not in grown)))
    return low.sharded(
        node, (source, *args[1:]), {}, [names[len(out) - len(source.shape) :]], [names], free=names, op_class="view",
        local_shape_args=[1],
    )  # fmt: skip


def unsqueeze(low: Lowering, node: fx.Node, args: Args, _kwargs: Kwargs) -> Any:
    """A new dim of size 1."""
    source: Value = args[0]
    names = _named(source)
    dim = args[1] % (len(source.shape) + 1)
    out = names[:dim] + "Z" + names[dim:]
    return low.sharded(
        node, args, {}, [names], [out], free=names, op_class="view", keep_partial=bool(source.layout.partial)
    )


def squeeze(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """Dims of size 1 away: a view."""
    return view(low, node, args, kwargs)


def select_backward(low: Lowering, node: fx.Node, args: Args, _kwargs: Kwargs) -> Any:
    """Zeros with one index of a dim filled: grad, input_sizes, dim, index."""
    names = _named(args[0])
    dim = args[2] % (len(names) + 1)
    out = names[:dim] + "Z" + names[dim:]
    return low.sharded(
        node, args, {}, [names], [out], free=names, op_class="copy", local_shape_args=[1],
        keep_partial=bool(args[0].layout.partial),
    )  # fmt: skip


def stack(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """Join along a new dim."""
    rank = node.meta["val"].dim()
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % rank
    names = string.ascii_lowercase[: rank - 1]
    out = names[:dim] + "Z" + names[dim:]
    return low.sharded(node, args, kwargs, [names] * len(args[0]), [out], free=names, op_class="cat")


def as_strided(low: Lowering, node: fx.Node, args: Args, _kwargs: Kwargs) -> Any:
    """input, size, stride, offset: a strided window within each row, as functionalisation leaves behind."""
    source, size, stride = low.resolve(args[0]), args[1], args[2]
    offset = args[3] if len(args) > 3 and args[3] is not None else 0
    rows = _rows(low, node, source, size, stride, offset)
    out = "n" + string.ascii_uppercase[: len(size) - 1]
    return low.sharded(
        node, (rows, size, stride, offset), {}, ["nr"], [out], free="n", target=kernels.strided_window,
        op_class="view", local_shape_args=[1],
    )  # fmt: skip


def as_strided_scatter(low: Lowering, node: fx.Node, args: Args, _kwargs: Kwargs) -> Any:
    """input, window, size, stride, offset: the input with such a window replaced."""
    source, window, size, stride = low.resolve(args[0]), low.resolve(args[1]), args[2], args[3]
    offset = args[4] if len(args) > 4 and args[4] is not None else 0
    rows = _rows(low, node, source, size, stride, offset)
    inside = "n" + string.ascii_uppercase[: len(size) - 1]
    splits = split_letters([window, rows], [inside, "nr"], ["nr"], "n", "", [node.meta["val"]])
    layout = Layout(tuple(split.moved(0) for split in splits.values()))
    output = low.value(rows.shape, rows.dtype, layout)
    low.compute(
        kernels.scatter_strided_window,
        (low.fetch(rows, layout), low.fetch(window, layout), stride, offset),
        [output],
        op_class="copy",
    )
    return _reshaped(low, output, source.shape)


def _rows(low: Lowering, node: fx.Node, source: Value, size: list[int], stride: list[int], offset: int) -> Value:
    """A contiguous input as (size[0], stride[0]), if the window's element [i, ...] lies in row i for every i.

    Strides count in memory, so the input must fill its memory in order when captured.
    """
    meta = node.all_input_nodes[0].meta["val"]
    in_order = meta.is_contiguous() and meta.untyped_storage().nbytes() == meta.numel() * meta.itemsize
    last = offset + sum((n - 1) * s for n, s in zip(size[1:], stride[1:], strict=True))
    if not in_order or not size or size[0] * stride[0] != prod(source.shape) or last >= stride[0]:
        raise low.refuse(node, [source])
    return _reshaped(low, source, (size[0], stride[0]))


RULES = {
    **{name: view for name in ("view", "_unsafe_view", "reshape", "flatten")},
    "squeeze": squeeze,
    "permute": permute,
    "transpose": transpose,
    "t": t,
    "expand": expand,
    "unsqueeze": unsqueeze,
    "select_backward": select_backward,
    "stack": stack,
    "as_strided": as_strided,
    "as_strided_scatter": as_strided_scatter,
}

RULED = frozenset({"expand", "view", "_unsafe_view", "as_strided", "as_strided_scatter"})
"""Operators whose rule is asked even if nothing is cut: expand may cut its output; the others see strides when
captured, which blocks do not keep."""
