"""Evaluation: a module in the mode for it, and held-out accuracy by the plain module in one process."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from meshemu.workload.capture import autocast
from meshemu.workload.dtypes import cast

__all__ = ["accuracy", "evaluating"]

BATCH_SIZE = 256


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards each of its modules is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def accuracy(
    model: nn.Module,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    dtype: torch.dtype,
    autocast_dtype: torch.dtype | None = None,
) -> float:
    """Share of targets whose class has the greatest logit.

    Logits (N, C) or (N, C, H, W) with classes in dim 1, or (N, T, C) with classes last; targets without that dim.
    autocast_dtype: that of the model's training.
    """
    correct = 0
    with evaluating(model), torch.no_grad(), autocast(autocast_dtype):
        for x, y in zip(torch.split(inputs, BATCH_SIZE), torch.split(targets, BATCH_SIZE), strict=True):
            outputs = model(cast(x, dtype))
            logits = getattr(outputs, "logits", outputs)
            correct += int((logits.argmax(dim=-1 if logits.dim() == 3 else 1) == y).sum())
    return correct / targets.numel()
