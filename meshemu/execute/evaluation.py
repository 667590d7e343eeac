"""Held-out accuracy, by the plain module in one process."""

import torch
from torch import nn

from meshemu.workload.dtypes import cast

__all__ = ["accuracy"]

BATCH_SIZE = 256


def accuracy(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype) -> float:
    """Share of targets whose class has the greatest logit.

    Logits (N, C) or (N, C, H, W) with classes in dim 1, or (N, T, C) with classes last; targets without that dim.
    """
    correct = 0
    model.eval()
    with torch.no_grad():
        for x, y in zip(torch.split(inputs, BATCH_SIZE), torch.split(targets, BATCH_SIZE), strict=True):
            outputs = model(cast(x, dtype))
            logits = getattr(outputs, "logits", outputs)
            correct += int((logits.argmax(dim=-1 if logits.dim() == 3 else 1) == y).sum())
    model.train()
    return correct / targets.numel()
