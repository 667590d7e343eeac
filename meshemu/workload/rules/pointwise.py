"""Pointwise operators with broadcasting, and those that are linear and so let partial sums through."""

import string
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from meshemu.workload.layout import Layout
from meshemu.workload.lowering import Lowering, base_name, operator_of
from meshemu.workload.spmd import LocalShape, Value

__all__ = ["COPIES", "FILLS", "RULES", "pointwise", "tensor_values"]


def tensor_values(args: Any, kwargs: Any) -> list[Value]:
    """The Values among the arguments, in order."""
    return [leaf for leaf in pytree.tree_leaves((list(args), dict(kwargs))) if isinstance(leaf, Value)]


def pointwise(low: Lowering, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """out[i] depends on the inputs at i only; inputs broadcast from the right."""
    metas = node.meta["val"] if isinstance(node.meta["val"], tuple | list) else [node.meta["val"]]
    rank = metas[0].dim()
    names = string.ascii_letters[:rank]
    letters = [names[rank - len(v.shape) :] for v in tensor_values(args, kwargs)]
    return low.sharded(node, args, kwargs, letters, [names] * len(metas), free=names)


def linear(low: Lowering, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A pointwise operator that is linear in its only tensor."""
    values = tensor_values(args, kwargs)
    if len(values) == 1 and values[0].layout.partial and node.meta["val"].dtype.is_floating_point:
        names = string.ascii_letters[: len(values[0].shape)]
        return low.sharded(node, args, kwargs, [names], [names], free=names, keep_partial=True)
    return pointwise(low, node, args, kwargs)


def same(low: Lowering, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """clone, detach ...: nothing is updated in place, so a copy is the value itself unless it changes the strides."""
    return linear(low, node, args, kwargs) if kwargs.get("memory_format") is not None else args[0]


def add(low: Lowering, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A sum of two partial sums over the same devices stays one partial sum."""
    values = tensor_values(args, kwargs)
    if len(values) == 2 and values[0].layout.partial and _same_terms(*values):
        output = low.value(values[0].shape, node.meta["val"].dtype, values[0].layout)
        return low.compute(operator_of(node), args, [output], kwargs=kwargs, op_class=base_name(node))[0]
    return pointwise(low, node, args, kwargs)


def scale(low: Lowering, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Mul and div by a tensor: linear in the first factor when the second is a Python number."""
    return linear(low, node, args, kwargs) if len(tensor_values(args, kwargs)) == 1 else pointwise(
        low, node, args, kwargs
    )


def fill(low: Lowering, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """ones_like and its kin: every element is the same, so nothing is read and any cut will do."""
    source, meta = args[0], node.meta["val"]
    layout = Layout(source.layout.splits)
    output = low.value(meta.shape, meta.dtype, layout)
    constant = {"ones_like": 1, "zeros_like": 0, "empty_like": 0}.get(base_name(node))
    number = args[1] if constant is None else constant
    return low.compute(
        torch.full, [LocalShape(output), number], [output], kwargs={"dtype": meta.dtype}, op_class="fill"
    )[0]


def new_filled(low: Lowering, node: fx.Node, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
    """new_zeros and its kin: a replicated constant of a shape of its own."""
    meta = node.meta["val"]
    number = args[2] if base_name(node) == "new_full" else int(base_name(node) == "new_ones")
    output = low.like(meta)
    shape = tuple(meta.shape)
    return low.compute(torch.full, [shape, number], [output], kwargs={"dtype": meta.dtype}, op_class="fill")[0]


COPIES = frozenset({"clone", "detach", "alias", "lift_fresh_copy"})
"""Operators whose result is their input."""

FILLS = frozenset({"ones_like", "zeros_like", "empty_like", "full_like"})
"""Operators that ask a tensor for its shape alone, and so do not wait for it."""

UNTAGGED = (
    "threshold_backward", "hardtanh_backward", "gelu_backward", "leaky_relu_backward", "elu_backward",
    "softplus_backward", "hardswish", "hardswish_backward", "hardsigmoid_backward", "mish_backward",
    "log_sigmoid_forward", "log_sigmoid_backward", "softshrink_backward", "hardshrink_backward", "_prelu_kernel",
    "_prelu_kernel_backward", "copy", "fill", "rrelu_with_noise_backward",
)  # fmt: skip
"""Pointwise operators that PyTorch does not tag as such."""


def _same_terms(a: Value, b: Value) -> bool:
    return a.layout == b.layout and a.shape == b.shape and a.combine == b.combine == "sum"


RULES = {
    "add.Tensor": add,
    "sub.Tensor": add,
    **{name: linear for name in ("_to_copy", "neg", "mul.Scalar", "div.Scalar")},
    **{name: same for name in COPIES},
    **{name: scale for name in ("mul.Tensor", "div.Tensor")},
    **{name: fill for name in FILLS},
    **{name: new_filled for name in ("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided")},
    **{name: pointwise for name in UNTAGGED},
}
