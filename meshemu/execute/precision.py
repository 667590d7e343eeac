"""The number format that operators compute in under torch.autocast."""

import torch
from torch import nn

from meshemu.errors import InputError

__all__ = ["checked_autocast"]

FORMATS = (torch.bfloat16, torch.float16)


def checked_autocast(model: nn.Module, dtype: torch.dtype | None) -> torch.dtype | None:
    """`dtype`, or without one that of the autocast context in which the caller is, if any.

    Raises:
        InputError: it is no format that autocast takes, or the model has no fp32 parameter that it could change.
    """
    if dtype is None:
        return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    if dtype not in FORMATS:
        raise InputError(f"autocast = {dtype}: must be one of {', '.join(map(str, FORMATS))}")
    if all(p.dtype != torch.float32 for p in model.parameters()):
        raise InputError(f"autocast = {dtype}: {type(model).__name__} has no fp32 parameter that it could change")
    return dtype
