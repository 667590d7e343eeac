"""The state of a training run as plain PyTorch writes and reads it: parameters, buffers, optimizer, schedule."""

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from torch import nn

from meshemu.errors import InputError
from meshemu.execute.optimizer import Optimizer
from meshemu.execute.schedule import Scheduler
from meshemu.record.atomic import write_atomically

__all__ = ["check_writable", "load_model", "load_state", "read_state", "save_state", "state_of", "write_state"]

SHOWN = 3


def state_of(model: nn.Module, optimizer: Optimizer | None, schedule: Scheduler | None) -> dict[str, Any]:
    """A copy of the state dicts of what there is, under "model", "optimizer" and "schedule", and under "buffers" of the
    buffers that the model's state dict leaves out (persistent=False), if there are any.
    """
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    state = {name: dict(part.state_dict()) for name, part in parts.items() if part is not None}
    if left_out := _left_out(model):
        state["buffers"] = left_out
    return copy.deepcopy(state)


def check_writable(path: Path, overwrite: bool) -> None:
    """Find out before the run whether `path` can be written after it.

    Raises:
        InputError: its folder does not exist, it is a folder, or it exists and is not to be replaced.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    if path.is_dir():
        raise InputError(f"{path}: is a folder")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists (--overwrite replaces it)")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: cannot be written: the folder is read-only")


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` so that torch.load(path, weights_only=True) reads it; a file that is there is replaced at once.

    Raises:
        InputError: the file cannot be written.
    """
    write_atomically(path, lambda file: write_state(file, state))


def write_state(file: BinaryIO, state: Mapping[str, Any]) -> None:
    """Write `state` as torch.save does."""
    torch.save(dict(state), file)


def read_state(file: BinaryIO, name: str) -> dict[str, Any]:
    """What `write_state` wrote.

    Raises:
        InputError: it is no such file, or a damaged one.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise InputError(f"{name}: is no file of tensors as torch.save writes them") from error
    if not isinstance(content, dict):
        raise InputError(f"{name}: holds a {type(content).__name__}, not a state")
    return content


def load_state(
    model: nn.Module, optimizer: Optimizer | None, schedule: Scheduler | None, state: Mapping[str, Any], name: str
) -> None:
    """Set model, optimizer and schedule from what `state_of` gave; `name` is what errors call it.

    Raises:
        InputError: a part is missing, or does not fit.
    """
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    missing = [key for key, part in parts.items() if part is not None and not isinstance(state.get(key), Mapping)]
    if missing:
        raise InputError(f"{name}: there is no state of the {' nor of the '.join(missing)} in it")
    _set_model(model, state["model"], name)
    for key, part in (("optimizer", optimizer), ("schedule", schedule)):
        if part is None:
            continue
        try:
            part.load_state_dict(copy.deepcopy(dict(state[key])))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{name}: its {key} does not fit: {' '.join(str(error).split())}") from error
    if optimizer is not None:
        _restore_types(optimizer, state["optimizer"])
    for key, buffer in _left_out(model).items():
        if key in state.get("buffers", {}):
            buffer.copy_(state["buffers"][key])


def _left_out(model: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers that are not in the state dict of the model."""
    kept = model.state_dict().keys()
    return {name: buffer.detach() for name, buffer in model.named_buffers() if name not in kept}


def _restore_types(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Give tensors of the state the types that they had: torch makes them those of the parameter, and numbers such as a
    product of momenta, which are kept in fp32 whatever the parameter is, would lose bits or gain some.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    for parameter, number in zip(parameters, numbers, strict=True):
        for key, value in state["state"].get(number, {}).items():
            if isinstance(value, torch.Tensor) and optimizer.state[parameter][key].dtype != value.dtype:
                optimizer.state[parameter][key] = value.clone()


def load_model(model: nn.Module, path: Path) -> None:
    """Set parameters and buffers of `model` from a file: a state dict, or what `state_of` makes.

    Raises:
        InputError: the file cannot be read, or names or shapes are not those of the model.
    """
    _set_model(model, _read(path), str(path))


def _set_model(model: nn.Module, state: Mapping[str, Any], path: str) -> None:
    """Set parameters and buffers from a state dict; `path` is what errors call it."""
    own = model.state_dict()
    for fault, names in (
        ("lacks", [name for name in own if name not in state]),
        ("has, and the model has not,", [name for name in state if name not in own]),
    ):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            raise InputError(f"{path} {fault} {', '.join(names[:SHOWN])}{more}")
    for name, tensor in own.items():
        found = getattr(state[name], "shape", None)
        if isinstance(tensor, torch.Tensor) and tensor.shape != found:
            what = type(state[name]).__name__ if found is None else f"of shape {tuple(found)}"
            raise InputError(f"{path}: {name} is {what}, that of the model of shape {tuple(tensor.shape)}")
    model.load_state_dict(state)


def _read(path: Path) -> dict[str, Any]:
    """The state dict of a model in a file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"{path}: is no file of tensors as torch.save writes them") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: holds a {type(content).__name__}, not the state dict of a model")
    nested = content.get("model")
    return dict(nested if isinstance(nested, Mapping) else content)
