"""What operators make of meta tensors: shapes and dtypes of results without values.

Torch knows them all, but its functions for meta tensors load symbolic algebra and a compiler at their first use, which
takes longer than going through a whole model. So the operators that most models are made of are said here again.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

__all__ = ["made_by"]

Tensor = torch.Tensor


def made_by(operator: Any, args: Any, kwargs: Any) -> Any:
    """The result of an ATen operator on meta tensors."""
    if operator in RESULTS:
        return RESULTS[operator](*args, **kwargs)
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    name = operator._schema.name.removeprefix("aten::")
    if name in IN_PLACE:
        return args[0]
    alike = all(t.dtype == tensors[0].dtype for t in tensors)
    if name not in POINTWISE or not alike or not tensors[0].is_floating_point():
        return operator(*args, **kwargs)
    return _empty(np.broadcast_shapes(*(t.shape for t in tensors)), tensors[0])


def _empty(shape: Sequence[int], like: Tensor) -> Tensor:
    return torch.empty(tuple(shape), dtype=like.dtype, device="meta")


def _convolution(
    x: Tensor, weight: Tensor, _bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    rank = weight.dim() - 2
    steps, pads, spread, more = (list(v) * (rank // len(v)) for v in (stride, padding, dilation, output_padding))
    sizes = []
    for n, k, s, p, d, extra in zip(x.shape[-rank:], weight.shape[2:], steps, pads, spread, more, strict=True):
        reach = d * (k - 1) + 1
        sizes.append((n - 1) * s - 2 * p + reach + extra if transposed else (n + 2 * p - reach) // s + 1)
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    return _empty((*x.shape[: -rank - 1], channels, *sizes), x)


def _max_pool(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,), ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if ceil_mode:
        made: tuple[Tensor, Tensor] = torch.ops.aten.max_pool2d_with_indices(x, kernel, stride, padding, dilation, True)
        return made
    kernels, steps, pads, spread = (list(v) * (2 // len(v)) for v in (kernel, stride or kernel, padding, dilation))
    sizes = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[-2:], kernels, steps, pads, spread, strict=True)
    ]
    shape = (*x.shape[:-2], *sizes)
    return _empty(shape, x), torch.empty(shape, dtype=torch.int64, device="meta")


def _batch_norm(x: Tensor, *_rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(x.shape, x), _empty(x.shape[1:2], x), _empty(x.shape[1:2], x)


def _layer_norm(x: Tensor, normalised: Sequence[int], *_rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    outer = x.dim() - len(normalised)
    shape = (*x.shape[:outer], *(1 for _ in normalised))
    return _empty(x.shape, x), _empty(shape, x), _empty(shape, x)


def _mm(a: Tensor, b: Tensor) -> Tensor:
    return _empty((*a.shape[:-1], b.shape[-1]), a)


def _addmm(_bias: Tensor, a: Tensor, b: Tensor, **_factors: Any) -> Tensor:
    return _mm(a, b)


def _embedding(weight: Tensor, indices: Tensor, *_rest: Any) -> Tensor:
    return _empty((*indices.shape, weight.shape[1]), weight)


def _reduced(x: Tensor, dims: Sequence[int] | None, keepdim: bool = False, **options: Any) -> Tensor:
    over = {d % x.dim() for d in dims or range(x.dim())} if x.dim() else set()
    sizes = [1 if d in over else n for d, n in enumerate(x.shape) if keepdim or d not in over]
    return torch.empty(sizes, dtype=options.get("dtype") or x.dtype, device="meta")


def _nll_loss(
    x: Tensor, target: Tensor, _weight: Tensor | None, reduction: int, _ignored: int
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _empty(() if reduction else target.shape, x), _empty((), x)


def _flash(query: Tensor, _key: Tensor, value: Tensor, *_rest: Any, **_options: Any) -> tuple[Tensor, Tensor]:
    shape = (*query.shape[:-1], value.shape[-1])
    return _empty(shape, query), torch.empty(query.shape[:-1], device="meta")


def _same(x: Tensor, *_rest: Any) -> Tensor:
    return _empty(x.shape, x)


aten = torch.ops.aten

RESULTS: Mapping[Any, Callable[..., Any]] = MappingProxyType({
    aten.convolution.default: _convolution, aten.max_pool2d_with_indices.default: _max_pool,
    aten.native_batch_norm.default: _batch_norm, aten.native_layer_norm.default: _layer_norm, aten.mm.default: _mm,
    aten.bmm.default: _mm, aten.addmm.default: _addmm, aten.embedding.default: _embedding, aten.mean.dim: _reduced,
    aten.relu.default: _same, aten.gelu.default: _same, aten._softmax.default: _same, aten._log_softmax.default: _same,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _flash,
    aten.nll_loss_forward.default: _nll_loss, aten.nll_loss2d_forward.default: _nll_loss,
})  # fmt: skip
"""Operator -> what it makes."""

POINTWISE = frozenset({"add", "div", "mul", "sub", "sigmoid", "silu", "tanh"})
"""Operators whose result has the common shape of tensors of one dtype."""

IN_PLACE = frozenset({"add_", "div_", "gelu_", "hardtanh_", "mul_", "relu_", "silu_", "sub_", "zero_"})
"""Operators that give what they are given."""
