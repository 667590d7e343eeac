"""What a loss or a metric function returns: one tensor, or several by name."""

from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch

from meshemu.errors import CaptureError

__all__ = ["named_losses", "named_metrics", "summed"]


def named_losses(returned: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss that is trained on, and its terms by name, as `summed` gives them.

    Raises:
        CaptureError: as `summed`, or no gradient can flow.
    """
    total, terms = summed(returned)
    if not total.requires_grad:
        raise CaptureError("the loss does not depend differentiably on any trainable parameter")
    return total, terms


def summed(returned: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(the loss, its terms by name in order; none if it is one tensor).

    The loss is the sum of a mapping's, tuple's or list's items. Of a pair (loss, mapping) it is the first, whatever the
    mapping adds up to: its items are only told.

    Raises:
        CaptureError: something is no tensor of one element.
    """
    if _is_told_apart(returned):
        total = _scalar(returned[0], "the loss")
        return total, _floats(_terms(returned[1]), total)
    if isinstance(returned, Mapping | tuple | list):
        terms = _terms(returned)
        total = reduce(torch.add, (term.reshape(()) for term in terms.values()))
        return total, _floats(terms, total)
    return _scalar(returned, "the loss"), {}


def named_metrics(returned: Any) -> dict[str, torch.Tensor]:
    """Tensors of any shape by name; one without a name is the "metric", as is the first of a pair (tensor, mapping).

    Raises:
        CaptureError: something is no tensor.
    """
    if _is_told_apart(returned):
        returned = {"metric": returned[0], **_named(returned[1], "metric")}
    metrics = _named(returned, "metric")
    for name, metric in metrics.items():
        if not isinstance(metric, torch.Tensor):
            raise CaptureError(f"metric {name!r} must be a tensor, not {type(metric).__name__}")
    return metrics


def _is_told_apart(returned: Any) -> bool:
    """Whether it is a pair of a tensor and a mapping."""
    pair = isinstance(returned, tuple | list) and len(returned) == 2
    return pair and isinstance(returned[0], torch.Tensor) and isinstance(returned[1], Mapping)


def _terms(returned: Any) -> dict[str, torch.Tensor]:
    return {name: _scalar(term, f"loss {name!r}") for name, term in _named(returned, "loss").items()}


def _floats(terms: Mapping[str, torch.Tensor], like: torch.Tensor) -> dict[str, torch.Tensor]:
    """Terms of which a mean can be taken: counts in the format of the loss."""
    return {name: term if term.is_floating_point() else term.to(like.dtype) for name, term in terms.items()}


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
    if isinstance(returned, Mapping) and len(items) < len(returned):
        raise CaptureError(f"two names of a {alone} read the same: {', '.join(map(repr, returned))}")
    return items
