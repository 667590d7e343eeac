"""Evaluation: a module in the mode for it, and held-out samples through the plain module in one process."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from meshemu.workload.dtypes import cast
from meshemu.workload.outputs import summed
from meshemu.workload.step_maths import autocast

__all__ = ["HeldOut", "evaluating", "held_out"]


@dataclass(frozen=True)
class HeldOut:
    """What a model scores on samples that it was not trained on.

    loss, losses (its terms by name): means over batches, each weighed by its samples. accuracy: share of targets whose
    class has the greatest logit, None where targets are no class numbers.
    """

    loss: float
    losses: Mapping[str, float] = field(default_factory=dict)
    accuracy: float | None = None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards each of its modules is in the mode that it was in, and buffers that
    change in evaluation too, which only the rank that evaluates would see, are as they were.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for buffer, value in buffers:
            buffer.copy_(value)


def held_out(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    loss: Callable[[Any, Any], Any],
    dtype: torch.dtype,
    *,
    autocast_dtype: torch.dtype | None = None,
    classes: bool = False,
) -> HeldOut:
    """Scores of `model` on batches of (inputs, targets), with the loss that it is trained on.

    dtype, autocast_dtype: those of its training. classes: whether targets are class numbers. Logits are then (N, C) or
    (N, C, *S) with classes in dim 1, or (N, T, C) with classes last; targets lack that dim.

    Raises:
        InputError: the loss cannot be computed on these samples.
    """
    count = n_targets = correct = 0
    totals: dict[str | None, float] = {}
    with evaluating(model), torch.no_grad(), autocast(autocast_dtype):
        for inputs, targets in batches:
            outputs = model(cast(inputs, dtype))
            value, terms = summed(loss(outputs, cast(targets, dtype)))
            size = len(pytree.tree_leaves(inputs)[0])
            count += size
            for name, term in ((None, value), *terms.items()):
                totals[name] = totals.get(name, 0.0) + size * float(term)
            if classes:
                correct += _correct(outputs, targets)
                n_targets += targets.numel()
    means = {name: total / count for name, total in totals.items()}
    losses = {name: mean for name, mean in means.items() if name is not None}
    return HeldOut(means[None], losses, correct / n_targets if n_targets else None)


def _correct(outputs: Any, targets: torch.Tensor) -> int:
    logits = getattr(outputs, "logits", outputs)
    return int((logits.argmax(dim=-1 if logits.dim() == 3 else 1) == targets).sum())
