"""A context in which new tensors have shapes and no values: a model is built and gone through without memory."""

from typing import Any

import torch
from torch.nn import functional, init
from torch.overrides import TorchFunctionMode

__all__ = ["NotFollowedError", "WithoutValues"]

Tensor = torch.Tensor

FACTORIES = frozenset({
    torch.arange, torch.empty, torch.eye, torch.full, torch.linspace, torch.ones, torch.tensor, torch.zeros
})  # fmt: skip
"""Functions that make a tensor of none."""

RANDOM = frozenset({torch.rand, torch.randint, torch.randn, torch.randperm})
"""Those that draw values, which torch does on "meta" as on other devices, generator and all."""

FILLING = frozenset({
    Tensor.bernoulli_, Tensor.exponential_, Tensor.fill_, Tensor.normal_, Tensor.uniform_, Tensor.zero_
})  # fmt: skip
"""Methods that give a tensor other values."""


class NotFollowedError(Exception):
    """What a call would keep for the backward pass is not known without values."""


class WithoutValues(TorchFunctionMode):
    """Makes tensors on the device "meta" where no device is asked for, and attention by the operator of the CPU.

    torch.device("meta") does the former too, and loads what takes a second. Raises NotFollowedError for attention
    that the CPU computes another way.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is functional.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func in FILLING and args[0].is_meta:
            return args[0]
        if getattr(func, "__module__", None) == init.__name__:
            return kwargs["tensor"]
        if func is Tensor.__getitem__ and args[0].is_meta and _is_selection(args[1]):
            return torch.empty((len(args[1]), *args[0].shape[1:]), dtype=args[0].dtype, device="meta")
        if func in RANDOM and kwargs.get("device") is None:
            return _drawn(func, *args, **kwargs)
        if func in FACTORIES and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _is_selection(index: Any) -> bool:
    """Whether an index takes rows by their numbers."""
    return isinstance(index, Tensor) and index.dim() == 1 and index.dtype == torch.int64


def _drawn(func: Any, *args: Any, **kwargs: Any) -> Tensor:
    """A tensor of the shape and dtype that a function in RANDOM makes."""
    size = kwargs.get("size", args[-1] if args else ())
    if func is not torch.randint and not isinstance(size, list | tuple):
        size = args
    whole = func in (torch.randint, torch.randperm)
    return torch.empty(tuple(size), dtype=kwargs.get("dtype", torch.int64 if whole else None), device="meta")


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    if dropout_p or enable_gqa or query.dim() != 4 or query.shape[-1] != value.shape[-1]:
        raise NotFollowedError("attention by single products")
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    made: Tensor = attend(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return made
