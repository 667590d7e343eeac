"""The state of a training run as plain PyTorch writes and reads it: parameters, buffers, optimizer, schedule."""

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from meshemu.errors import InputError
from meshemu.execute.optimizer import Optimizer
from meshemu.execute.schedule import Scheduler

__all__ = ["check_writable", "load_model", "save_state", "state_of"]

SHOWN = 3


def state_of(model: nn.Module, optimizer: Optimizer | None, schedule: Scheduler | None) -> dict[str, Any]:
    """A copy of the state dicts of what there is, under "model", "optimizer" and "schedule"."""
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    return copy.deepcopy({name: dict(part.state_dict()) for name, part in parts.items() if part is not None})


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
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        torch.save(dict(state), unfinished)
        unfinished.replace(path)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be written: {' '.join(str(error).split())}") from error


def load_model(model: nn.Module, path: Path) -> None:
    """Set parameters and buffers of `model` from a file: a state dict, or what `state_of` makes.

    Raises:
        InputError: the file cannot be read, or names or shapes are not those of the model.
    """
    state = _read(path)
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
