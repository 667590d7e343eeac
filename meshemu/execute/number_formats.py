"""Number formats by role around the step itself: what they need of a model, the optimizer's state, and what to say."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import nn

from meshemu.cost import Update
from meshemu.errors import InputError
from meshemu.execute.compute import step_seed
from meshemu.execute.optimizer import Optimizer
from meshemu.hardware.format_roles import Formats, RoleFormat
from meshemu.workload.formats.maxima import DECAY, HEADROOM
from meshemu.workload.formats.random_bits import Stream
from meshemu.workload.formats.storing import rounded
from meshemu.workload.formats.tracking import tracked_keys
from meshemu.workload.spmd import Spmd

__all__ = ["StateRounding", "check_formats", "format_remarks", "stored_updates"]

FP32_BYTES = 4

SECOND_MOMENTS = frozenset({"acc_delta", "exp_avg_sq", "exp_inf", "max_exp_avg_sq", "square_avg", "sum"})
"""Names under which torch.optim keeps what is never negative."""

SALT = 1 << 41
"""Of the first stream of random bits for state tensors."""


def check_formats(model: nn.Module, autocast_dtype: torch.dtype | None) -> None:
    """Raise InputError unless the model computes in fp32 throughout, so that there is something to round."""
    if autocast_dtype is not None:
        raise InputError(f"formats: not together with autocast ({autocast_dtype}), which has formats of its own")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise InputError(f"formats: the model must be in fp32, and {name} is {tensor.dtype}")


def stored_updates(updates: Mapping[str, Update], formats: Formats) -> dict[str, Update]:
    """Updates with the bytes of state tensors in their formats."""
    if formats.optimizer is None and formats.second_moments is None:
        return dict(updates)
    sizes = [
        FP32_BYTES if role is None else role.number_format.size_bytes
        for role in (formats.optimizer, formats.second_moments)
    ]
    return {name: update.stored(sizes[0], sizes[1]) for name, update in updates.items()}


def format_remarks(spmd: Spmd, formats: Formats) -> Iterator[str]:
    """What the formats of a step mean, one sentence each."""
    for role, given in formats.named().items():
        yield f"formats: {role} in {given.describe()}"
    if formats:
        yield (
            "formats: operators compute in fp32 on rounded values and round what they store; parameters of one dim, "
            "statistics, the loss and the optimizer's copy of weights stay in fp32; conversion takes no time of its own"
        )
    keys = tracked_keys(spmd)
    if keys:
        yield (
            f"formats: {len(keys)} biases follow running maxima (of earlier steps, times {DECAY} a step, with headroom "
            f"{HEADROOM:g}; the batch of the first step goes through once before it to learn them); agreeing on them, "
            f"{FP32_BYTES * len(keys)} B a step, is not timed"
        )


class StateRounding:
    """Rounds the state tensors of an optimizer after its updates; the same on every rank, which all hold them whole."""

    def __init__(self, optimizer: Optimizer, formats: Formats) -> None:
        self._optimizer = optimizer
        self._formats = formats

    def round(self, seed: int, step: int) -> None:
        """Round every state tensor that has the shape of its parameter."""
        salt = SALT
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                for name, tensor in self._optimizer.state.get(parameter, {}).items():
                    if isinstance(tensor, torch.Tensor) and tensor.shape == parameter.shape and tensor.dim():
                        salt += 1
                        role = self._formats.second_moments if name in SECOND_MOMENTS else self._formats.optimizer
                        if role is not None:
                            tensor.copy_(_rounded(tensor, role, step_seed(seed, step, salt)))


def _rounded(tensor: torch.Tensor, role: RoleFormat, seed: int) -> torch.Tensor:
    """A whole tensor; a bias that slides fits what it holds now, since no rank has to ask another for its maximum."""
    if role.sliding:
        largest = float(tensor.abs().max()) if tensor.numel() else 0.0
        role = replace(role, bias=role.number_format.fitting_bias(largest))
    return rounded(tensor, role, None, {}, Stream(tuple(tensor.shape)), seed)
