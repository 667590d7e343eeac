"""Softmax and its kin. Along a cut dim each row has one small all-reduce: (maximum, sum of exp), backward one sum."""

from typing import Any

from torch import fx

from meshemu.workload import row_kernels
from meshemu.workload.kernels import accumulator
from meshemu.workload.lowering import Lowering, base_name
from meshemu.workload.rules.cuts import Args, Kwargs, argument, rows_layout, rows_shape
from meshemu.workload.rules.reduction import along, gathered, reduced_dims
from meshemu.workload.spmd import Value

__all__ = ["RULES", "log_sums"]


def log_sums(low: Lowering, source: Value, dims: list[int]) -> Value:
    """(maximum, scaled sum of exp) of every row along `dims`, of shape (*rows, 2), summed over devices."""
    layout = rows_layout(source, dims)
    output = low.value((*rows_shape(source, dims), 2), accumulator(source.dtype), layout, "log_sums")
    (local,) = low.compute(
        row_kernels.log_sums, (source, dims), [output], op_class="logsumexp", takes_empty=True
    )  # fmt: skip
    return low.resolve(local)


def softmax(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """input, dim, ..."""
    source = low.resolve(args[0])
    dim = argument(args, kwargs, 1, "dim", -1) % max(len(source.shape), 1)
    if source.layout.split_of(dim) is None:
        return along(1)(low, node, (source, *args[1:]), kwargs)
    name, meta = base_name(node), node.meta["val"]
    output = low.like(meta, source.layout)
    placed = (source, log_sums(low, source, [dim]), dim, name, meta.dtype)
    return low.compute(row_kernels.softmax, placed, [output], op_class=name)[0]


def softmax_backward(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """grad, output, dim, dtype of the input."""
    result = low.resolve(args[1])
    dim = args[2] % max(len(result.shape), 1)
    cut = result.layout.split_of(dim) or low.resolve(args[0]).layout.split_of(dim)
    if cut is None:
        return along(2)(low, node, (args[0], result, *args[2:]), kwargs)
    source = result if result.layout.split_of(dim) is not None else low.fetch(result, low.resolve(args[0]).layout)
    grad = low.fetch(args[0], source.layout)
    name, meta = base_name(node), node.meta["val"]
    logarithmic = name == "_log_softmax_backward_data"
    sums = low.value(rows_shape(source, [dim]), accumulator(source.dtype), rows_layout(source, [dim]))
    (local,) = low.compute(
        row_kernels.softmax_backward_sums, (grad, source, dim, logarithmic), [sums], op_class="softmax_backward_sums"
    )
    placed = (grad, source, low.resolve(local), dim, logarithmic, meta.dtype)
    return low.compute(row_kernels.softmax_backward, placed, [low.like(meta, source.layout)], op_class=name)[0]


def logsumexp(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """input, dims, keepdim."""
    source = low.resolve(args[0])
    dims = reduced_dims(len(source.shape), args[1])
    if not any(source.layout.split_of(d) for d in dims):
        return gathered(1)(low, node, (source, *args[1:]), kwargs)
    keepdim = bool(argument(args, kwargs, 2, "keepdim", False))
    meta = node.meta["val"]
    output = low.like(meta, rows_layout(source, dims, keepdim=keepdim, partial=False))
    placed = (log_sums(low, source, dims), dims if keepdim else [], meta.dtype)
    return low.compute(row_kernels.log_of_sums, placed, [output], op_class="log")[0]


RULES = {
    **{name: softmax for name in ("_softmax", "_log_softmax", "_safe_softmax")},
    **{name: softmax_backward for name in ("_softmax_backward_data", "_log_softmax_backward_data")},
    "logsumexp": logsumexp,
}
