"""Operators that read or write elements by index: gather, scatter, index_select, index, index_put and their kin.

Where the indexed dim is cut, a device reads what it holds and leaves zeros for the rest, a partial sum; or it writes
what belongs to its block. Indices along other dims stay cut as the tensor is.
"""

import string
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from meshemu.workload import index_kernels as kernels
from meshemu.workload.layout import Layout
from meshemu.workload.lowering import Lowering, base_name, operator_of
from meshemu.workload.rules.cuts import Args, Kwargs, axes_of, with_dim
from meshemu.workload.rules.pointwise import tensor_values
from meshemu.workload.rules.reduction import reduced_dims
from meshemu.workload.spmd import LocalRange, Value

__all__ = ["RULES"]

WHOLE = "Z"
"""Letter of dims that are never cut."""


def along(position: int, default: Any = None) -> Any:
    """A rule for operators whose dims at args[position] are whole and along whose other dims blocks are independent."""

    def dims_of(args: Args, kwargs: Kwargs, rank: int) -> list[int]:
        given = args[position] if len(args) > position else kwargs.get("dim", kwargs.get("dims", default))
        return reduced_dims(rank, given)

    return _independent(dims_of)


def _independent(dims_of: Callable[[Args, Kwargs, int], list[int]]) -> Any:
    """A rule: dims_of(args, kwargs, rank of the first tensor) are whole, and so are tensors of another rank.

    Where tensors differ in size along a dim (gather and scatter allow it), that dim is whole too.
    """

    def rule(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
        values = tensor_values(args, kwargs)
        metas = node.meta["val"] if isinstance(node.meta["val"], tuple | list) else [node.meta["val"]]
        rank = len(values[0].shape)
        dims = dims_of(args, kwargs, rank)
        shapes = [v.shape for v in values] + [tuple(m.shape) for m in metas]
        sizes = [{shape[d] for shape in shapes if len(shape) == rank} for d in range(rank)]
        names = "".join(
            WHOLE if d in dims or len(sizes[d]) > 1 else string.ascii_lowercase[d] for d in range(rank)
        )
        letters = [names if len(shape) == rank else WHOLE * len(shape) for shape in shapes]
        free = names.replace(WHOLE, "")
        return low.sharded(node, args, kwargs, letters[: len(values)], letters[len(values) :], free=free)

    return rule


def batchwise(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """A rule for operators on tensors (N, ...) whose samples are independent; the other dims are whole."""
    values = tensor_values(args, kwargs)
    metas = node.meta["val"] if isinstance(node.meta["val"], tuple | list) else [node.meta["val"]]
    letters = ["n" + WHOLE * (len(v.shape) - 1) for v in values]
    outputs = ["" if m is None else "n" + WHOLE * (m.dim() - 1) for m in metas]
    return low.sharded(node, args, kwargs, letters, outputs, free="n")


def gather(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """input, dim, index (of the input's rank, no larger along other dims), or index_select's vector of indices."""
    source, index = low.resolve(args[0]), low.resolve(args[2])
    dim = args[1] % max(len(source.shape), 1)
    cut = source.layout.split_of(dim) if source.shape else None
    vector = base_name(node) == "index_select"
    if source.dtype == torch.bool or not source.shape or len(index.shape) != (1 if vector else len(source.shape)):
        return along(1)(low, node, (source, *args[1:]), kwargs)
    shape = (*source.shape[:dim], index.shape[0], *source.shape[dim + 1 :]) if vector else index.shape
    kept = [s for s in source.layout.splits if s.dim != dim and shape[s.dim] == source.shape[s.dim]]
    used = {axis for s in [*kept, *([cut] if cut is not None else [])] for axis in s.axes}
    more = [s.moved(dim) if vector else s for s in index.layout.splits]
    more = [
        s for s in more
        if not used & set(s.axes) and all(s.dim != k.dim for k in kept)
        and (s.dim == dim or shape[s.dim] == source.shape[s.dim])
    ]  # fmt: skip
    layout = Layout((*kept, *more))
    of_index = Layout(tuple(s.moved(0) for s in layout.splits if s.dim == dim)) if vector else layout
    source = low.fetch(source, with_dim(layout, cut, dim))
    output = low.value(shape, source.dtype, Layout(layout.splits, axes_of(source, [dim])))
    kernel = kernels.index_select if vector else kernels.gather
    placed = (source, dim, low.fetch(index, of_index), LocalRange(source, dim))
    return low.compute(kernel, placed, [output], op_class=base_name(node))[0]


def scatter(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """input, dim, index, source or number ...: written into a block of the input, even if `dim` is cut."""
    source = low.resolve(args[0])
    dim = args[1] % max(len(source.shape), 1)
    if not source.shape or source.layout.split_of(dim) is None:
        return along(1)(low, node, (source, *args[1:]), kwargs)
    others = [low.resolve(v) for v in tensor_values(args[2:], kwargs)]
    alike = {
        d for d in range(len(source.shape))
        if d != dim and all(len(v.shape) != len(source.shape) or v.shape[d] == source.shape[d] for v in others)
    }  # fmt: skip
    layout = Layout(tuple(s for s in source.layout.splits if s.dim == dim or s.dim in alike))
    source = low.fetch(source, layout)
    whole = with_dim(layout, None, dim)
    given = [
        low.fetch(v, whole if len(v.shape) == len(source.shape) else Layout()) if isinstance(v, Value) else v
        for v in args[2:]
    ]
    output = low.value(source.shape, source.dtype, layout)
    placed = (operator_of(node), source, dim, LocalRange(source, dim), given, dict(kwargs))
    return low.compute(kernels.scatter, placed, [output], op_class=base_name(node))[0]


def grid_sample(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """Input (N, C, *S), grid (N, *T, dims): every output position reads the whole map of its channel."""
    space, out = ("ZZ", "hw") if len(args[0].shape) == 4 else ("ZZZ", "dhw")
    return low.sharded(node, args, kwargs, ["nc" + space, "n" + out + "Y"], ["nc" + out], free="nc" + out)


def grid_sample_backward(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """grad, input, grid ...: sums over positions for the input, over channels for the grid."""
    space, out = ("ZZ", "hw") if len(args[0].shape) == 4 else ("ZZZ", "dhw")
    letters, outputs = ["nc" + out, "nc" + space, "n" + out + "Y"], ["nc" + space, "n" + out + "Y"]
    return low.sharded(node, args, kwargs, letters, outputs, free="n", summed="c" + out)


RULES = {
    **{name: gather for name in ("gather", "index_select")},
    **{name: scatter for name in ("index_add", "index_copy", "index_fill", "scatter", "scatter_add", "scatter_reduce")},
    "glu": along(1),
    "glu_backward": along(2),
    "channel_shuffle": _independent(lambda _args, _kwargs, _rank: [1]),
    **{name: batchwise for name in ("im2col", "col2im")},
    **{f"grid_sampler_{n}d": grid_sample for n in (2, 3)},
    **{f"grid_sampler_{n}d_backward": grid_sample_backward for n in (2, 3)},
}  # fmt: skip
