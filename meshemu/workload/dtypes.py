"""Number formats by name, as configurations and Programs write them, and the torch dtypes behind them."""

from typing import Any

import torch
from torch.utils import _pytree as pytree

__all__ = ["DTYPES", "cast", "number_format"]

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def number_format(dtype: torch.dtype) -> str:
    """Name of a dtype's number format; integers and booleans are named as torch names them."""
    names = {value: name for name, value in DTYPES.items()}
    return names.get(dtype, str(dtype).removeprefix("torch."))


def cast(tensors: Any, dtype: torch.dtype) -> Any:
    """A tensor, or a nest of tensors, with what is floating-point in `dtype` and the rest as it is."""
    return pytree.tree_map(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, tensors)
