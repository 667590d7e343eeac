"""Losses by name: functions of (outputs, targets) that give a scalar tensor.

Outputs are what the model returns: a tensor, or an object with `.logits` or `.loss` as models of the transformers
library return. A model with several heads defines its own loss, a method `loss(outputs, targets)`. It and a user's
function may return several terms by name, as `outputs.summed` takes them.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from meshemu.errors import InputError
from meshemu.workload.user_function import is_file_reference, load_function

__all__ = ["LOSSES", "LossFunction", "cross_entropy", "load_loss", "loss_of_model", "mse"]

LossFunction = Callable[[Any, Any], Any]
"""(outputs, targets), nests of tensors -> what `outputs.summed` takes: a scalar tensor, or several by name."""


def cross_entropy(outputs: Any, targets: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Mean cross entropy of logits against class numbers (integers) or class probabilities (floats).

    Logits (N, C), (N, T, C) for sequences, or (N, C, *S) for maps and volumes; class numbers (N), (N, T) or (N, *S);
    probabilities have the shape of the logits. class_weights (C): how much a target of each class counts in the mean.

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
    return functional.cross_entropy(logits, targets, class_weights)


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


def loss_of_model(model: nn.Module | None, outputs: Any, targets: Any) -> Any:
    """The loss that the model returned, as a record's `loss` or as a scalar, else its own `loss(outputs, targets)`.

    A record's `loss`, and what the method returns, may be terms by name.

    Raises:
        InputError: there is neither.
    """
    returned = _field(outputs, "loss")
    method = getattr(model, "loss", None)
    is_scalar = isinstance(returned, Tensor) and returned.dim() == 0
    if callable(method) and returned is outputs and not is_scalar:
        return method(outputs, targets)
    if returned is not outputs and isinstance(returned, Mapping):
        return returned
    loss = _tensor(outputs, "loss", "model")
    if loss.numel() != 1:
        raise InputError(
            f"loss model: the model must return a scalar loss, not a tensor of shape {tuple(loss.shape)}, or have a "
            "method loss(outputs, targets)"
        )
    return loss.reshape(())


LOSSES: Mapping[str, LossFunction] = MappingProxyType({"cross_entropy": cross_entropy, "mse": mse})
"""The losses that look at outputs and targets alone."""


def load_loss(name: str, model: nn.Module | None = None) -> LossFunction:
    """The loss `name`: one of LOSSES, "model" for the own loss of `model`, or a user's "file.py:function".

    Raises:
        InputError: the name is unknown, or the file fails.
    """
    if is_file_reference(name):
        return load_function(name)
    if name == "model":
        return partial(loss_of_model, model)
    if name not in LOSSES:
        raise InputError(f"loss '{name}' is unknown; valid: {', '.join(LOSSES)}, model, or file.py:function")
    return LOSSES[name]


def _field(outputs: Any, field: str) -> Any:
    """`field` of the outputs where they are a record with one, else the outputs themselves."""
    return outputs.get(field, outputs) if isinstance(outputs, Mapping) else getattr(outputs, field, outputs)


def _tensor(outputs: Any, field: str, loss: str) -> Tensor:
    """The outputs themselves, or their `field` where they are a record with one."""
    value = _field(outputs, field)
    if not isinstance(value, Tensor):
        raise InputError(
            f"loss {loss}: the model returned {type(outputs).__name__}, not a tensor or a record with {field}"
        )
    return value
