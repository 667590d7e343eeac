"""torch.optim optimizers: made from a configuration, and known to the cost model."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from meshemu.errors import InputError

__all__ = ["Optimizer", "bind_optimizer", "make_optimizer", "op_class_of"]

Optimizer = torch.optim.Optimizer

_KINDS: Mapping[str, Callable[..., Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def make_optimizer(model: nn.Module, options: Mapping[str, Any]) -> Optimizer:
    """The optimizer options["name"] (sgd, adam, adamw) with the other options as its keyword arguments.

    Raises InputError if the model has nothing to train or torch refuses an option.
    """
    arguments = dict(options)
    kind = _KINDS[arguments.pop("name")]
    return bind_optimizer(model, lambda parameters: kind(parameters, **arguments))


def bind_optimizer(model: nn.Module, optimizer: Optimizer | Callable[..., Optimizer]) -> Optimizer:
    """An optimizer over the model's trainable parameters: as it is, or made by a function of the parameters.

    Raises InputError if it is no torch optimizer, or holds parameters that are not the model's.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise InputError(f"model {type(model).__name__} has no trainable parameter")
    if not isinstance(optimizer, Optimizer):
        try:
            optimizer = optimizer(trainable)
        except (TypeError, ValueError) as error:
            raise InputError(f"optimizer: {error}") from error
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"optimizer: {type(optimizer).__name__} is no torch.optim.Optimizer")
    own = {id(p) for p in model.parameters()}
    if any(id(p) not in own for group in optimizer.param_groups for p in group["params"]):
        raise InputError("optimizer: it holds parameters that are not the model's")
    return optimizer


def op_class_of(optimizer: Optimizer | None) -> str | None:
    """The op class by which the cost model knows an optimizer's update; InputError if it does not know it."""
    if optimizer is None:
        return None
    if isinstance(optimizer, torch.optim.SGD):
        return "sgd_momentum" if any(group["momentum"] for group in optimizer.param_groups) else "sgd"
    if isinstance(optimizer, torch.optim.AdamW):
        return "adamw"
    if isinstance(optimizer, torch.optim.Adam):
        return "adam"
    raise InputError(f"optimizer {type(optimizer).__name__} has no cost model; use torch.optim.SGD, Adam or AdamW")
