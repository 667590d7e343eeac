"""torch.optim optimizers: made from a configuration, and known to the cost model.

Those that update each element of a parameter by itself, whatever the others are: a device can step its block alone.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from meshemu.config import OPTIMIZER_NAMES
from meshemu.cost import Update
from meshemu.errors import InputError
from meshemu.execute.options import checked, construct, keywords
from meshemu.execute.parameter_groups import grouped

__all__ = ["ELEMENTWISE", "Optimizer", "bind_optimizer", "least_update", "make_optimizer", "updates_of"]

Optimizer = torch.optim.Optimizer

_BY_LOWER_NAME = {name.lower(): kind for name, kind in vars(torch.optim).items() if isinstance(kind, type)}
ELEMENTWISE: Mapping[str, type[Optimizer]] = {name: _BY_LOWER_NAME[name] for name in OPTIMIZER_NAMES}
"""Name in a configuration -> class."""

SECTION = "training.optimizer"
HOW_NOT_WHAT = ("foreach", "fused", "capturable", "differentiable")
"""Options of how torch computes, which change nothing but speed or the order of roundings."""


def make_optimizer(model: nn.Module, options: Mapping[str, Any]) -> Optimizer:
    """The optimizer that a [training.optimizer] table describes, over the trainable parameters of `model`.

    options: name (one of ELEMENTWISE); groups, a list of tables with `match`, a glob, and options of their own; all
    other keys are keyword arguments of the class.

    Raises:
        InputError: an option is unknown or torch refuses it, a group matches nothing, or there is nothing to train.
    """
    common = dict(options)
    kind = ELEMENTWISE[common.pop("name")]
    tables = [dict(table) for table in common.pop("groups", ())]
    globs = [table.pop("match") for table in tables]
    valid = keywords(kind, HOW_NOT_WHAT)
    common = _accepted(SECTION, kind, checked(SECTION, valid, common))
    own = [
        _accepted(f"{SECTION}.groups[{i}]", kind, checked(f"{SECTION}.groups[{i}]", valid, table), common)
        for i, table in enumerate(tables)
    ]
    members = grouped(model, globs, f"{SECTION}.groups")
    groups = [{"params": p, **o} for p, o in zip(members, [*own, {}], strict=True) if p]
    return bind_optimizer(model, lambda _parameters: kind(groups, **common))


def bind_optimizer(model: nn.Module, optimizer: Optimizer | Callable[..., Optimizer]) -> Optimizer:
    """An optimizer over the model's trainable parameters: as it is, or made by a function of the parameters.

    Raises:
        InputError: it is no torch optimizer that works element by element, or it holds parameters that are not the
            model's, or the model has none to train.
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
    _name_of(optimizer)
    return optimizer


def updates_of(model: nn.Module, optimizer: Optimizer | None) -> dict[str, Update]:
    """Parameter name -> what its update costs; parameters that the optimizer does not hold are left out."""
    if optimizer is None:
        return {}
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: Update(_op_class(_name_of(optimizer), group), bool(group.get("weight_decay", 0)))
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def least_update(options: Mapping[str, Any]) -> Update:
    """What the update of a parameter costs by a [training.optimizer] table alone, in the group with the fewest states.

    An optimizer of torch says it parameter by parameter, and loads what takes a second.
    """
    common = {name: value for name, value in options.items() if name != "groups"}
    kind = ELEMENTWISE[common["name"]]
    defaults = {name: one.default for name, one in inspect.signature(kind).parameters.items()}
    groups = [{**defaults, **common, **own} for own in (*options.get("groups", ()), {})]
    updates = [Update(_op_class(common["name"], group), bool(group.get("weight_decay"))) for group in groups]
    return min(updates, key=lambda update: update.n_states)


def _accepted(
    section: str, kind: type[Optimizer], options: dict[str, Any], common: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """`options`, once torch has taken them for one parameter, with the `common` ones that they add to."""
    probe = nn.Parameter(torch.zeros(1))
    construct(section, lambda **own: kind([probe], **{**(common or {}), **own}), options)
    return options


def _name_of(optimizer: Optimizer) -> str:
    """The name in ELEMENTWISE of the class whose `step` this optimizer runs."""
    step = inspect.unwrap(type(optimizer).step)
    for kind in type(optimizer).__mro__:
        for name, known in ELEMENTWISE.items():
            if kind is known and inspect.unwrap(known.step) is step:
                return name
    raise InputError(
        f"optimizer {type(optimizer).__name__} is none of those of torch.optim that update each element by itself: "
        f"{', '.join(kind.__name__ for kind in ELEMENTWISE.values())}"
    )


def _op_class(name: str, group: Mapping[str, Any]) -> str:
    """The op class of the update of a parameter group: the name, with what its options add."""
    if name in ("adam", "nadam", "radam") and group.get("decoupled_weight_decay"):
        name += "w"
    if name in ("adam", "adamw") and group["amsgrad"]:
        return f"{name}_amsgrad"
    if name == "sgd" and group["momentum"]:
        return "sgd_nesterov" if group["nesterov"] else "sgd_momentum"
    if name == "rmsprop":
        return name + "_centered" * bool(group["centered"]) + "_momentum" * bool(group["momentum"])
    return name
