"""Maths of one block of the negative log likelihood, of which other blocks may hold other classes.

Legend: log-probabilities ([N,] C, *S), targets ([N,] *S).
"""

import torch

__all__ = ["nll_loss", "nll_loss_backward"]

Tensor = torch.Tensor
Range = tuple[int, int]
aten = torch.ops.aten
ELSEWHERE = -100
"""The target of a sample that is ignored, or whose class another block holds."""


def _local(target: Tensor, ignore: int, inside: Range, n_classes: int) -> Tensor:
    """Targets as classes of this block.

    Raises IndexError, as the operator does, for a target that is no class.
    """
    counts = target != ignore
    if bool(((target < 0) | (target >= n_classes)).logical_and(counts).any()):
        raise IndexError(f"a target is none of {n_classes} classes")
    held = counts & (target >= inside[0]) & (target < inside[1])
    return torch.where(held, target - inside[0], ELSEWHERE)


def nll_loss(
    x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore: int, inside: Range, n_classes: int
) -> tuple[Tensor, Tensor]:
    """(loss, total weight) of the targets whose classes this block holds; reduction: none or sum."""
    forward = aten.nll_loss2d_forward if target.dim() > 1 else aten.nll_loss_forward
    loss, total = forward.default(x, _local(target, ignore, inside, n_classes), weight, reduction, ELSEWHERE)
    return loss, total


def nll_loss_backward(
    grad: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore: int, total: Tensor,
    inside: Range, n_classes: int,
) -> Tensor:  # fmt: skip
    """Gradient of a block of log-probabilities; total: weight of all targets of the whole batch."""
    backward = aten.nll_loss2d_backward if target.dim() > 1 else aten.nll_loss_backward
    local = _local(target, ignore, inside, n_classes)
    result: Tensor = backward.default(grad, x, local, weight, reduction, ELSEWHERE, total)
    return result
