"""What a loss or a metric function returns: one tensor, or several by name."""

from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch

from meshemu.errors import CaptureError

__all__ = ["named_losses", "named_metrics"]


def named_losses(returned: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(the loss, the losses by name that it is the sum of, in order; none if it is one tensor).

    Raises:
        CaptureError: something is no tensor of one element, or no gradient can flow.
    """
    if isinstance(returned, Mapping | tuple | list):
        terms = {name: _scalar(term, f"loss {name!r}") for name, term in _named(returned, "loss").items()}
        total = reduce(torch.add, (term.reshape(()) for term in terms.values()))
    else:
        terms, total = {}, _scalar(returned, "the loss")
    if not total.requires_grad:
        raise CaptureError("the loss does not depend differentiably on any trainable parameter")
    return total, terms


def named_metrics(returned: Any) -> dict[str, torch.Tensor]:
    """Tensors of any shape by name; one without a name is the "metric".

    Raises:
        CaptureError: something is no tensor.
    """
    metrics = _named(returned, "metric")
    for name, metric in metrics.items():
        if not isinstance(metric, torch.Tensor):
            raise CaptureError(f"metric {name!r} must be a tensor, not {type(metric).__name__}")
    return metrics


def _scalar(value: Any, what: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise CaptureError(f"{what} must be a tensor of one element, not {kind}")
    return value


def _named(returned: Any, alone: str) -> dict[str, Any]:
    """The items of a mapping, of a named tuple by its fields, of a tuple or list by their index; else one, `alone`."""
    if isinstance(returned, Mapping):
        items = {str(name): item for name, item in returned.items()}
    elif hasattr(returned, "_asdict"):
        items = returned._asdict()
    elif isinstance(returned, tuple | list):
        items = {str(i): item for i, item in enumerate(returned)}
    else:
        items = {alone: returned}
    if not items:
        raise CaptureError(f"an empty {type(returned).__name__} holds no {alone}")
    return items
