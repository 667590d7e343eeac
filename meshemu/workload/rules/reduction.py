"""Sums and means, which leave partial sums over devices, and operators that need whole rows: these are gathered."""

import string
from math import prod
from typing import Any

import torch
from torch import fx

from meshemu.workload.lowering import Lowering
from meshemu.workload.rules.cuts import Args, Kwargs, argument
from meshemu.workload.spmd import Value

__all__ = ["RULES", "along", "gathered", "reduced_dims"]

def reduced_dims(rank: int, dim: Any) -> list[int]:
    """The dims that a `dim` argument (None, int or list) means."""
    if dim is None or dim == [] or rank == 0:
        return list(range(rank))
    return sorted({d % rank for d in ([dim] if isinstance(dim, int) else dim)})


def _letters(source: Value, dims: list[int], keepdim: bool) -> tuple[str, str, str]:
    """(letters of the input, of the output, of the reduced dims)."""
    names = string.ascii_lowercase[: len(source.shape)]
    kept = "".join(
        (string.ascii_uppercase[d] if keepdim else "") if d in dims else c for d, c in enumerate(names)
    )
    return names, kept, "".join(names[d] for d in dims)


def _read(node: fx.Node, args: Args, kwargs: Kwargs) -> tuple[list[int], bool, str, str, str]:
    """(reduced dims, keepdim, letters of the input, of the output, of the reduced dims) of a sum or mean."""
    has_dims = "dim" in str(node.target)
    rank = len(args[0].shape)
    dims = reduced_dims(rank, argument(args, kwargs, 1, "dim", None) if has_dims else None)
    keepdim = bool(argument(args, kwargs, 2, "keepdim", False)) if has_dims else False
    return dims, keepdim, *_letters(args[0], dims, keepdim)


def sum_(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """Sum over some dims; over cut dims it leaves a partial sum."""
    _dims, _keepdim, names, out, reduced = _read(node, args, kwargs)
    free = "".join(c for c in names if c not in reduced)
    return low.sharded(node, args, kwargs, [names], [out], free=free, summed=reduced)


def mean(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """Mean = sum / count, where a reduced dim is cut."""
    source = low.resolve(args[0])
    args = (source, *args[1:])
    dims, keepdim, names, out, reduced = _read(node, args, kwargs)
    free = "".join(c for c in names if c not in reduced)
    if not any(source.layout.split_of(d) for d in dims):
        return low.sharded(node, args, kwargs, [names], [out], free=free)
    total = low.sharded(
        node, [source, dims, keepdim], kwargs, [names], [out], free=free, summed=reduced,
        target=torch.ops.aten.sum.dim_IntList, op_class="sum",
    )  # fmt: skip
    output = low.value(total.shape, total.dtype, total.layout)
    count = prod(source.shape[d] for d in dims)
    return low.compute(torch.ops.aten.div.Scalar, [total, count], [output], op_class="div")[0]


def gathered(position: int) -> Any:
    """A rule for argmax, median ...: the dims at args[position] are gathered, the others stay cut."""

    def rule(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
        source: Value = args[0]
        dims = reduced_dims(len(source.shape), argument(args, kwargs, position, "dim", None))
        metas = node.meta["val"] if isinstance(node.meta["val"], tuple | list) else [node.meta["val"]]
        names, out, reduced = _letters(source, dims, keepdim=metas[0].dim() == len(source.shape))
        free = "".join(c for c in names if c not in reduced)
        return low.sharded(node, args, kwargs, [names], [out] * len(metas), free=free)

    return rule


def along(position: int) -> Any:
    """A rule for operators that work along one dim and keep the shape: sort, cummax ..."""

    def rule(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
        values = [a for a in args if isinstance(a, Value)]
        rank = len(values[0].shape)
        names = string.ascii_lowercase[:rank]
        dim = argument(args, kwargs, position, "dim", -1) % max(rank, 1)
        n_outputs = len(node.meta["val"]) if isinstance(node.meta["val"], tuple | list) else 1
        free = "".join(c for d, c in enumerate(names) if d != dim)
        return low.sharded(node, args, kwargs, [names] * len(values), [names] * n_outputs, free=free)

    return rule


RULES = {
    "sum": sum_,
    "mean": mean,
    **{name: gathered(1) for name in ("argmax", "argmin", "median", "nanmedian", "mode")},
    **{name: gathered(2) for name in ("norm.ScalarOpt_dim", "kthvalue")},
    **{name: along(1) for name in ("logcumsumexp", "cummax", "cummin", "sort", "argsort")},
    "topk": along(2),
}  # fmt: skip
