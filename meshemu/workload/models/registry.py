"""The built-in models by name, and models from a file of the user's."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import RLock
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from meshemu.errors import InputError
from meshemu.workload.arguments import check_arguments
from meshemu.workload.models.gpt import GPT
from meshemu.workload.models.hydranet import HydraNet
from meshemu.workload.models.occupancy import OccupancyNet
from meshemu.workload.models.regnet import RegNet
from meshemu.workload.models.resnet import ResNet
from meshemu.workload.user_function import call_user_function, is_file_reference

__all__ = ["MODELS", "build_model", "load_from_file"]

MODELS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {"gpt": GPT, "hydranet": HydraNet, "occupancy": OccupancyNet, "regnet": RegNet, "resnet50": ResNet}
)

_SEEDING = RLock()
"""The generator belongs to the whole process, and ranks may be threads of it. A function of a user's that is called
under it may build a built-in model."""


def build_model(name: str, args: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """Build the model `name`, one of MODELS or "file.py:function", with keyword arguments `args`.

    The initial values depend on the seed alone: the caller's random state is neither used nor moved.

    Raises:
        InputError: an unknown name or argument, sizes that do not fit, or a user's file that fails.
    """
    if is_file_reference(name):
        return load_from_file(name, args, seed)
    if name not in MODELS:
        raise InputError(f"model '{name}' is unknown; valid: {', '.join(MODELS)}, or file.py:function")
    check_arguments(f"model {name}", MODELS[name], args)
    with _seeded(seed):
        try:
            return MODELS[name](**args)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"model {name}: {' '.join(str(error).split())}") from error


def load_from_file(reference: str, args: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """Build the module that the user's function, "file.py:function", returns for the keyword arguments `args`.

    Raises:
        InputError: the file, the function or the call fails, or what it returns is no torch.nn.Module.
    """
    with _seeded(seed):
        model = call_user_function(reference, args)
    if not isinstance(model, nn.Module):
        raise InputError(f"'{reference}': returned {type(model).__name__}, not a torch.nn.Module")
    return model


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Run with torch's CPU generator at `seed`, and put its state back afterwards."""
    with _SEEDING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
