"""Maths of one block of the negative log likelihood, of which other blocks may hold other classes.

Legend: log-probabilities ([N,] C, *S), targets ([N,] *S).
"""

import torch

__all__ = ["MEAN", "NONE", "SUM", "nll_loss", "nll_loss_backward", "total_weight"]

Tensor = torch.Tensor
Range = tuple[int, int]
aten = torch.ops.aten
NONE, MEAN, SUM = 0, 1, 2  # values of `reduction`
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
) -> Tensor:
    """The loss of the targets whose classes this block holds; reduction: none or sum."""
    forward = aten.nll_loss2d_forward if target.dim() > 1 else aten.nll_loss_forward
    loss: Tensor = forward.default(x, _local(target, ignore, inside, n_classes), weight, reduction, ELSEWHERE)[0]
    return loss


def total_weight(
    target: Tensor, weight: Tensor | None, reduction: int, ignore: int, inside: Range, n_classes: int,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """The weights of the targets whose classes this block holds, added up; each weighs 1 without `weight`. The operator
    says 0 where the reduction is none.
    """
    local = _local(target, ignore, inside, n_classes)
    if reduction == NONE:
        return torch.zeros((), dtype=dtype)
    held = local != ELSEWHERE
    each = held.to(dtype) if weight is None else torch.where(held, weight[local.clamp(min=0)], 0)
    return each.sum(dtype=dtype)


def nll_loss_backward(
    grad: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore: int, total: Tensor,
    inside: Range, n_classes: int,
) -> Tensor:  # fmt: skip
    """Gradient of a block of log-probabilities; total: weight of all targets of the whole batch."""
    backward = aten.nll_loss2d_backward if target.dim() > 1 else aten.nll_loss_backward
    local = _local(target, ignore, inside, n_classes)
    result: Tensor = backward.default(grad, x, local, weight, reduction, ELSEWHERE, total)
    return result
