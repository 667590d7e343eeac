"""Losses with a `reduction` argument: local sums, one scalar all-reduce, one division by the global count."""

import string
from math import prod
from typing import Any

import numpy as np
import torch
from torch import fx

from meshemu.workload.lowering import Lowering, operator_of
from meshemu.workload.rules.pointwise import pointwise, tensor_values
from meshemu.workload.spmd import Value

__all__ = ["RULES"]

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
NONE, MEAN, SUM = 0, 1, 2


def nll_loss(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """log-probabilities (N, C, *S), targets (N, *S), weight, reduction, ignore_index -> (loss, total weight)."""
    source, target, weight, reduction, ignore = args
    rank = len(source.shape)
    if rank == 1:
        return low.sharded(node, args, kwargs, ["c", ""] + ["c"] * (weight is not None), ["", ""], free="")
    space = string.ascii_lowercase[3 : 3 + rank - 2].replace("n", "z")
    letters = ["nC" + space, "n" + space] + ["C"] * isinstance(weight, Value)
    if reduction == NONE:
        return low.sharded(node, args, kwargs, letters, ["n" + space, ""], free="n" + space, summed="n" + space)
    total, count = low.sharded(
        node, (source, target, weight, SUM, ignore), kwargs, letters, ["", ""], free="", summed="n" + space
    )
    if total.layout.partial:
        total, count = low.all_reduce([total, count], "loss")
    if reduction == SUM:
        return total, count
    return low.compute(torch.ops.aten.div.Tensor, (total, count), [low.like(node.meta["val"][0])], op_class="div")[
        0
    ], count


def nll_loss_backward(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """grad, log-probabilities, targets, weight, reduction, ignore_index, total weight (of the whole batch)."""
    _grad, source, _target, weight, reduction, _ignore, _total = args
    rank = len(source.shape)
    space = string.ascii_lowercase[3 : 3 + rank - 2].replace("n", "z")
    free = "n" + space
    letters = [free if reduction == NONE else "", "nC" + space, free] + ["C"] * isinstance(weight, Value) + [""]
    if rank == 1:
        letters, free = ["", "C", ""] + ["C"] * isinstance(weight, Value) + [""], ""
        return low.sharded(node, args, kwargs, letters, ["C"], free=free)
    return low.sharded(node, args, kwargs, letters, ["nC" + space], free=free)


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
