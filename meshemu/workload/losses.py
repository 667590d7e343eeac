"""Losses by name: functions of (outputs, targets) that give a scalar tensor.

Outputs are what the model returns: a tensor, or an object with `.logits` or `.loss` as models of the transformers
library return.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.nn import functional

from meshemu.errors import InputError
from meshemu.workload.user_function import is_file_reference, load_function

__all__ = ["LOSSES", "cross_entropy", "load_loss", "loss_of_model", "mse"]


def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    """Mean cross entropy of logits against class numbers (integers) or class probabilities (floats).

    Logits (N, C), (N, T, C) for sequences, or (N, C, H, W) for maps; class numbers (N), (N, T) or (N, H, W);
    probabilities have the shape of the logits.

    Raises:
        InputError: the shapes do not fit.
    """
    logits = _tensor(outputs, "logits", "cross_entropy")
    class_dim = logits.dim() - 1 if logits.dim() == 3 else 1
    expected = logits.shape
    if not targets.is_floating_point():
        expected = logits.shape[:class_dim] + logits.shape[class_dim + 1 :]
    if logits.dim() < 2 or targets.shape != expected:
        raise InputError(
            f"loss cross_entropy: targets of shape {tuple(targets.shape)} do not fit logits of shape "
            f"{tuple(logits.shape)}, which need {tuple(expected)}"
        )
    if logits.dim() == 3:
        logits, targets = logits.flatten(0, 1), targets.flatten(0, 1)
    return functional.cross_entropy(logits, targets)


def mse(outputs: Any, targets: Tensor) -> Tensor:
    """Mean squared difference of outputs and targets of one shape.

    Raises:
        InputError: the shapes differ.
    """
    values = _tensor(outputs, "logits", "mse")
    if values.shape != targets.shape:
        raise InputError(
            f"loss mse: outputs of shape {tuple(values.shape)} and targets of shape {tuple(targets.shape)} differ"
        )
    return functional.mse_loss(values, targets)


def loss_of_model(outputs: Any, targets: Tensor) -> Tensor:
    """The loss that the model itself returned; the targets are not looked at.

    Raises:
        InputError: the outputs hold no scalar loss.
    """
    loss = _tensor(outputs, "loss", "model")
    if loss.numel() != 1:
        raise InputError(f"loss model: the model must return a scalar loss, not a tensor of shape {tuple(loss.shape)}")
    return loss.reshape(())


LOSSES: Mapping[str, Callable[[Any, Tensor], Tensor]] = MappingProxyType(
    {"cross_entropy": cross_entropy, "mse": mse, "model": loss_of_model}
)


def load_loss(name: str) -> Callable[[Any, Tensor], Tensor]:
    """The loss `name`: one of LOSSES, or a user's "file.py:function".

    Raises:
        InputError: the name is unknown, or the file fails.
    """
    if is_file_reference(name):
        return load_function(name)
    if name not in LOSSES:
        raise InputError(f"loss '{name}' is unknown; valid: {', '.join(LOSSES)}, or file.py:function")
    return LOSSES[name]


def _tensor(outputs: Any, field: str, loss: str) -> Tensor:
    """The outputs themselves, or their `field` where they are a record with one."""
    value = outputs.get(field) if isinstance(outputs, Mapping) else getattr(outputs, field, outputs)
    if not isinstance(value, Tensor):
        raise InputError(
            f"loss {loss}: the model returned {type(outputs).__name__}, not a tensor or a record with {field}"
        )
    return value
