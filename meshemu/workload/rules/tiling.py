"""Windows of a dim as a new dim, blocks of channels as pixels, diagonals and triangles: what depends on positions."""

from typing import Any

import torch
from torch import fx

from meshemu.workload import part_kernels
from meshemu.workload.layout import Layout, Split, even_ranges
from meshemu.workload.lowering import Lowering
from meshemu.workload.rules.cuts import Reach, argument, even, windows, with_dim
from meshemu.workload.spmd import LocalRange, LocalShape

__all__ = ["RULES"]

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
aten = torch.ops.aten


def unfold(low: Lowering, node: fx.Node, args: Args, _kwargs: Kwargs) -> Any:
    """input, dim, size, step: windows of a dim, their elements in a new last dim."""
    source, size, step = low.resolve(args[0]), args[2], args[3]
    meta = node.meta["val"]
    if not source.shape:
        return low.compute(aten.unfold.default, [source, *args[1:]], [low.like(meta)], op_class="unfold")[0]
    dim = args[1] % len(source.shape)

    def reach(lo: int, hi: int) -> tuple[int, int]:
        return lo * step, (hi - 1) * step + size if hi > lo else lo * step

    window, layout = windows(low, source, {dim: Reach(meta.shape[dim], reach)})
    if layout.split_of(dim) is None or meta.shape[dim] == 0:
        window = low.fetch(source, layout)
    output = low.like(meta, layout)
    return low.compute(aten.unfold.default, [window, dim, size, step], [output], op_class="unfold")[0]


def unfold_backward(low: Lowering, node: fx.Node, args: Args, _kwargs: Kwargs) -> Any:
    """grad, input_sizes, dim, size, step: windows are added back to where they were taken from."""
    grad, shape, size, step = low.resolve(args[0]), tuple(args[1]), args[3], args[4]
    if not shape:
        whole = low.replicate(grad)
        return low.compute(aten.unfold_backward.default, [whole, *args[1:]], [low.value((), grad.dtype)],
                           op_class="unfold_backward")[0]  # fmt: skip
    dim = args[2] % len(shape)
    layout = Layout(tuple(s for s in grad.layout.splits if s.dim < len(shape)))
    placed = low.fetch(grad, layout)
    cut = layout.split_of(dim)
    reached = None if cut is None else Split(
        dim, cut.axes, tuple((lo * step, (hi - 1) * step + size if hi > lo else lo * step) for lo, hi in cut.ranges)
    )  # fmt: skip
    output = low.value(shape, grad.dtype, with_dim(layout, reached, dim))
    (added,) = low.compute(
        aten.unfold_backward.default, [placed, LocalShape(output), dim, size, step], [output],
        op_class="unfold_backward",
    )  # fmt: skip
    return added if cut is None else low.push_add(added, with_dim(layout, even(low, cut, shape[dim]), dim))


def diagonal(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """input, offset, dim1, dim2: these two dims are whole and become the last one."""
    source = low.resolve(args[0])
    rank = len(source.shape)
    offset, *dims = (argument(args, kwargs, i + 1, n, d) for i, (n, d) in enumerate(_DIAGONAL))
    pair = [d % rank for d in dims]
    placed = low.fetch(source, Layout(tuple(s for s in source.layout.splits if s.dim not in pair)))
    splits = tuple(s.moved(s.dim - sum(d < s.dim for d in pair)) for s in placed.layout.splits)
    output = low.like(node.meta["val"], Layout(splits))
    return low.compute(aten.diagonal.default, [placed, offset, *pair], [output], op_class="diagonal")[0]


def diagonal_backward(low: Lowering, node: fx.Node, args: Args, _kwargs: Kwargs) -> Any:
    """grad, input_sizes, offset, dim1, dim2: zeros with a diagonal filled; the two dims are whole."""
    shape = tuple(args[1])
    pair = sorted(d % len(shape) for d in args[3:5])
    grad = low.resolve(args[0])
    last = len(shape) - 2
    placed = low.fetch(grad, with_dim(grad.layout, None, last))
    splits = placed.layout.splits
    for dim in pair:
        splits = tuple(s.moved(s.dim + (s.dim >= dim)) for s in splits)
    output = low.value(shape, grad.dtype, Layout(splits))
    given = (placed, LocalShape(output), *args[2:])
    return low.compute(aten.diagonal_backward.default, given, [output], op_class="slice_backward")[0]


_DIAGONAL = (("offset", 0), ("dim1", 0), ("dim2", 1))


def triangle(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """Tril and triu: input, diagonal. A block's diagonal is shifted by where the block begins."""
    source = low.resolve(args[0])
    rank = len(source.shape)
    kernel = part_kernels.lower_triangle if "tril" in str(node.target) else part_kernels.upper_triangle
    placed = (source, argument(args, kwargs, 1, "diagonal", 0), LocalRange(source, rank - 2),
              LocalRange(source, rank - 1))  # fmt: skip
    output = low.value(source.shape, source.dtype, source.layout)
    return low.compute(kernel, placed, [output], op_class="tril")[0]


def pixel_shuffle(low: Lowering, node: fx.Node, args: Args, _kwargs: Kwargs) -> Any:
    """Input (..., C * r * r, H, W), r: rows and columns stay cut, each r times as long; channels are whole."""
    source, r = low.resolve(args[0]), args[1]
    rank = len(source.shape)
    placed = low.fetch(source, with_dim(source.layout, None, rank - 3))
    splits = tuple(
        Split(s.dim, s.axes, tuple((lo * r, hi * r) for lo, hi in s.ranges)) if s.dim >= rank - 2 else s
        for s in placed.layout.splits
    )
    output = low.like(node.meta["val"], Layout(splits))
    return low.compute(aten.pixel_shuffle.default, [placed, r], [output], op_class="pixel_shuffle")[0]


def pixel_unshuffle(low: Lowering, node: fx.Node, args: Args, _kwargs: Kwargs) -> Any:
    """Input (..., C, H * r, W * r), r: rows and columns are cut at multiples of r; channels are whole."""
    source, r = low.resolve(args[0]), args[1]
    rank, meta = len(source.shape), node.meta["val"]
    splits = [
        s if s.dim < rank - 3 else Split(s.dim, s.axes, even_ranges(meta.shape[s.dim], low.plan.size(s.axes)))
        for s in source.layout.splits
        if s.dim != rank - 3
    ]
    wanted = tuple(
        Split(s.dim, s.axes, tuple((lo * r, hi * r) for lo, hi in s.ranges)) if s.dim >= rank - 2 else s
        for s in splits
    )
    output = low.like(meta, Layout(tuple(splits)))
    placed = low.fetch(source, Layout(wanted))
    return low.compute(aten.pixel_unshuffle.default, [placed, r], [output], op_class="pixel_unshuffle")[0]


RULES = {
    "unfold": unfold,
    "unfold_backward": unfold_backward,
    "diagonal": diagonal,
    "diagonal_backward": diagonal_backward,
    "tril": triangle,
    "triu": triangle,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
}
