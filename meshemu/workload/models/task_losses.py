"""Parts of the losses of models with several heads."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from meshemu.errors import InputError

__all__ = ["check_weights", "class_weights", "masked_smooth_l1", "required_targets"]


def class_weights(what: str, name: str, weight: float, n_others: int) -> Tensor:
    """Weights of classes in a mean: 1 for class 0, `weight` for each of `n_others` more; `name` is the argument.

    Raises:
        InputError: the weight is no number > 0.
    """
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise InputError(f"{what}: {name} = {weight!r} must be a number > 0")
    return torch.tensor([1.0] + [float(weight)] * n_others)


def check_weights(
    what: str, defaults: Mapping[str, float], weights: Mapping[str, float] | None
) -> dict[str, float]:
    """The weight of every loss by name, those of `weights` in place of the defaults, without those that are 0.

    Raises:
        InputError: an unknown name, a weight that is no number >= 0, or nothing left to train on.
    """
    merged = {**defaults, **(weights or {})}
    for name, weight in merged.items():
        if name not in defaults:
            raise InputError(f"{what}: loss_weights has an unknown loss '{name}'; valid: {', '.join(defaults)}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise InputError(f"{what}: loss_weights.{name} = {weight!r} must be a number >= 0")
    kept = {name: float(weight) for name, weight in merged.items() if weight}
    if not kept:
        raise InputError(f"{what}: all loss_weights are 0: there is nothing to train")
    return kept


def required_targets(what: str, targets: Any, names: Iterable[str]) -> Mapping[str, Tensor]:
    """The targets, after a check that each of `names` is among them.

    Raises:
        InputError: one is missing, or the targets are not named at all.
    """
    named: Mapping[str, Tensor] = targets if isinstance(targets, Mapping) else {}
    missing = [name for name in names if name not in named]
    if missing:
        raise InputError(f"{what}: the data have no target '{missing[0]}'; they have: {', '.join(named) or 'no names'}")
    return named


def masked_smooth_l1(outputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Mean smooth L1 difference of outputs and targets (B, C, *S) over the cells of `mask` (B, *S), 0 if there is none.

    Raises:
        InputError: the shapes do not fit.
    """
    if outputs.shape != targets.shape or mask.shape != outputs.shape[:1] + outputs.shape[2:]:
        raise InputError(
            f"outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(targets.shape)} with cells "
            f"{tuple(mask.shape)} do not fit"
        )
    weights = mask.to(outputs.dtype)
    distance = functional.smooth_l1_loss(outputs, targets, reduction="none").mean(dim=1)
    return (distance * weights).sum() / weights.sum().clamp(min=1)
