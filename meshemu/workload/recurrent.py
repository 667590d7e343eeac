"""LSTMs as the operators that they are made of.

torch runs an LSTM on its own, in fp32 and bf16, as one oneDNN operator, which no rule cuts, and whose backward pass
needs a workspace of which fake tensors do not know the size. Without oneDNN it is made of products and sigmoids.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["PlainLstm"]


class PlainLstm(TorchFunctionMode):
    """While it is entered, `torch.lstm` does without oneDNN. That is a setting of the process, so only for the call."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """All other functions as they are."""
        given = dict(kwargs or {})
        if func is not torch.lstm:
            return func(*args, **given)
        enabled = torch._C._get_mkldnn_enabled()
        torch._C._set_mkldnn_enabled(False)
        try:
            return func(*args, **given)
        finally:
            torch._C._set_mkldnn_enabled(enabled)
