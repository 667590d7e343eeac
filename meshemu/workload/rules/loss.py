"""Losses with a `reduction` argument: local sums, one scalar all-reduce, one division by the global count."""

import string
from math import prod
from typing import Any

import numpy as np
import torch
from torch import fx

from meshemu.workload import loss_kernels
from meshemu.workload.layout import Layout
from meshemu.workload.loss_kernels import MEAN, NONE, SUM
from meshemu.workload.lowering import Lowering, base_name, operator_of
from meshemu.workload.rules.cuts import Args, Kwargs, axes_of, rows_layout
from meshemu.workload.rules.pointwise import pointwise, tensor_values
from meshemu.workload.spmd import LocalRange, Value

__all__ = ["RULES"]


def nll_loss(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """log-probabilities ([N,] C, *S), targets ([N,] *S), weight, reduction, ignore_index -> (loss, total weight).

    A device that holds some classes adds up the targets among them. The total weight of a mean, which the backward pass
    divides by, is computed from targets alone and reduced by itself: that need not wait for the forward pass.
    """
    source, target, weight = _placed_classes(low, args[0], args[1], args[2])
    reduction, ignore = args[3], args[4]
    classes = axes_of(source, [_class_dim(source)])
    metas = node.meta["val"]
    none = reduction == NONE and len(source.shape) > 1
    shared = () if none else tuple(target.layout.axes)
    each = Layout(target.layout.splits if none else (), classes + shared)
    everywhere = (*target.layout.axes, *classes) if none else classes + shared
    inside = (LocalRange(source, _class_dim(source)), source.shape[_class_dim(source)])
    how = (NONE if none else SUM, ignore, *inside)
    weights = low.like(metas[1], Layout((), everywhere))
    given: Args = (target, weight, *how, metas[1].dtype)
    (count,) = low.compute(loss_kernels.total_weight, given, [weights], op_class="sum")
    if reduction == MEAN and count.layout.partial:
        (count,) = low.all_reduce([count], "weight of the loss")
    given = (source, target, weight, *how)
    (total,) = low.compute(loss_kernels.nll_loss, given, [low.like(metas[0], each)], op_class=base_name(node))
    if reduction != MEAN:
        return total, count
    if total.layout.partial:
        (total,) = low.all_reduce([total], "loss")
    return low.compute(torch.ops.aten.div.Tensor, (total, count), [low.like(metas[0])], op_class="div")[0], count


def nll_loss_backward(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """grad, log-probabilities, targets, weight, reduction, ignore_index, total weight (of the whole batch)."""
    source, target, weight = _placed_classes(low, args[1], args[2], args[3])
    grad = low.fetch(args[0], Layout(target.layout.splits if args[0].shape else ()))
    inside = (LocalRange(source, _class_dim(source)), source.shape[_class_dim(source)])
    given = (grad, source, target, weight, args[4], args[5], low.resolve(args[6]), *inside)
    output = low.like(node.meta["val"], source.layout)
    return low.compute(loss_kernels.nll_loss_backward, given, [output], op_class=base_name(node))[0]


def _class_dim(source: Value) -> int:
    return min(1, len(source.shape) - 1)


def _placed_classes(
    low: Lowering, source: Value, target: Value, weight: Value | None
) -> tuple[Value, Value, Value | None]:
    """Targets cut as the log-probabilities are, and weights as the classes."""
    source = low.resolve(source)
    dim = _class_dim(source)
    held = low.resolve(target)
    if not source.layout.axes and held.layout.axes and dim:
        source = low.fetch(source, Layout(tuple(s.moved(s.dim + (s.dim >= dim)) for s in held.layout.splits)))
    rows = rows_layout(source, [dim], partial=False)
    if weight is not None:
        cut = source.layout.split_of(dim)
        weight = low.fetch(weight, Layout(() if cut is None else (cut.moved(0),)))
    return source, low.fetch(target, rows), weight


def elementwise(position: int) -> Any:
    """A rule for a loss that is a pointwise function followed by `reduction` at args[position]."""

    def rule(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
        args, kwargs = _positional(node, args, kwargs)
        reduction = args[position]
        if reduction == NONE:
            return pointwise(low, node, args, kwargs)
        values = tensor_values(args, kwargs)
        letters, names, count = _broadcast(values)
        summed = _replaced(args, position, SUM)
        total = low.sharded(node, summed, kwargs, letters, [""], free="", summed=names)
        if reduction == SUM:
            return total
        output = low.value((), total.dtype, total.layout)
        return low.compute(torch.ops.aten.div.Scalar, (total, count), [output], op_class="div")[0]

    return rule


def elementwise_backward(position: int) -> Any:
    """Its backward: a mean is a sum divided by the global count."""

    def rule(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
        args, kwargs = _positional(node, args, kwargs)
        reduction = args[position]
        grad, *others = tensor_values(args, kwargs)
        letters, names, count = _broadcast(others)
        first = names if reduction == NONE else "" if not grad.shape else names[-len(grad.shape) :]
        args = _replaced(args, position, SUM) if reduction == MEAN else args
        meta = node.meta["val"]
        out = names[len(names) - meta.dim() :]
        result = low.sharded(node, args, kwargs, [first, *letters], [out], free=out)
        if reduction != MEAN:
            return result
        output = low.value(result.shape, result.dtype, result.layout)
        return low.compute(torch.ops.aten.div.Scalar, (result, count), [output], op_class="div")[0]

    return rule


def _broadcast(values: list[Value]) -> tuple[list[str], str, int]:
    shape = np.broadcast_shapes(*(v.shape for v in values))
    names = string.ascii_letters[: len(shape)]
    return [names[len(shape) - len(v.shape) :] for v in values], names, prod(shape)


def _positional(node: fx.Node, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
    """All arguments that may be given by position so given, defaults included, and the others by name."""
    schema = operator_of(node)._schema.arguments  # type: ignore[attr-defined]
    rest = [kwargs.get(a.name, a.default_value) for a in schema[len(args) :] if not a.kwarg_only]
    return (*args, *rest), {a.name: kwargs[a.name] for a in schema if a.kwarg_only and a.name in kwargs}


def _replaced(args: Args, position: int, value: Any) -> Args:
    return (*args[:position], value, *args[position + 1 :])


_POSITIONS = {
    "mse_loss": 2, "smooth_l1_loss": 2, "huber_loss": 2, "binary_cross_entropy": 3, "soft_margin_loss": 2,
    "binary_cross_entropy_with_logits": 4,
}  # fmt: skip
_BACKWARD_POSITIONS = {
    "mse_loss_backward": 3, "smooth_l1_loss_backward": 3, "huber_loss_backward": 3,
    "binary_cross_entropy_backward": 4, "soft_margin_loss_backward": 3,
}  # fmt: skip
RULES = {
    **{name: nll_loss for name in ("nll_loss_forward", "nll_loss2d_forward")},
    **{name: nll_loss_backward for name in ("nll_loss_backward", "nll_loss2d_backward")},
    **{name: elementwise(position) for name, position in _POSITIONS.items()},
    **{name: elementwise_backward(position) for name, position in _BACKWARD_POSITIONS.items()},
}
