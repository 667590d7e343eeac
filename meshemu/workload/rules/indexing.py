"""Operators that move elements along some dims by position or by index: those dims are whole, the others stay cut."""

import string
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from meshemu.workload.lowering import Lowering
from meshemu.workload.rules.pointwise import tensor_values
from meshemu.workload.rules.reduction import reduced_dims
from meshemu.workload.spmd import Value

__all__ = ["RULES"]

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
WHOLE = "Z"
"""Letter of dims that are never cut."""
MAX_DIMS = 64
"""Of a tensor of torch."""


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


def select_scatter(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """input, source (without the dim), dim, index."""
    names = string.ascii_lowercase[: len(args[0].shape)]
    without = names.replace(names[args[2] % len(names)], "")
    return low.sharded(node, args, kwargs, [names, without], [names], free=without)


def repeat(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """input, repeats: dims that are repeated are whole."""
    source, repeats = args
    n_new = len(repeats) - len(source.shape)
    names = "".join(
        WHOLE if times != 1 else string.ascii_lowercase[d] for d, times in enumerate(repeats[n_new:])
    )
    return low.sharded(node, args, kwargs, [names], [WHOLE * n_new + names], free=names.replace(WHOLE, ""))


def index(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """input, indices (one per dim, or None): indexed dims are whole."""
    names, out, indices = _index_letters(args[0], args[1])
    out = out[: node.meta["val"].dim()]
    return low.sharded(node, args, kwargs, [names, *indices], [out], free=names.replace(WHOLE, ""))


def index_put(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """input, indices, values (broadcast to what the indices select), accumulate."""
    names, out, indices = _index_letters(args[0], args[1])
    new = out[len(out) - len(args[2].shape) :]
    return low.sharded(node, args, kwargs, [names, *indices, new], [names], free=names.replace(WHOLE, ""))


def _index_letters(source: Value, indices: list[Value | None]) -> tuple[str, str, list[str]]:
    """(letters of the input, of what is selected, of each index tensor).

    The dims of the indices stand where the first indexed dim was, or in front if indexed dims are not neighbours.
    A mask stands for several indices, as many as it has dims: with one, all dims are whole.
    """
    letters = [WHOLE * len(i.shape) for i in indices if i is not None]
    if any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices):
        return WHOLE * len(source.shape), WHOLE * MAX_DIMS, letters
    indexed = [d for d, i in enumerate(indices) if i is not None]
    names = "".join(WHOLE if d in indexed else string.ascii_lowercase[d] for d in range(len(source.shape)))
    selected = max(letters, key=len)
    neighbours = indexed[-1] - indexed[0] + 1 == len(indexed)
    first = indexed[0] if neighbours else 0
    return names, names[:first] + selected + names[first:].replace(WHOLE, ""), letters


RULES = {
    **{name: along(1) for name in ("flip", "glu", "gather", "index_select", "index_add", "index_copy", "index_fill",
                                   "scatter", "scatter_add", "scatter_reduce")},
    **{name: along(2) for name in ("roll", "glu_backward")},
    "channel_shuffle": _independent(lambda _args, _kwargs, _rank: [1]),
    **{name: batchwise for name in ("pixel_shuffle", "pixel_unshuffle", "im2col", "col2im", "grid_sampler_2d",
                                    "grid_sampler_2d_backward", "grid_sampler_3d", "grid_sampler_3d_backward")},
    "slice_scatter": along(2, 0),
    "select_scatter": select_scatter,
    "repeat": repeat,
    "index.Tensor": index,
    "index_put": index_put,
}  # fmt: skip
