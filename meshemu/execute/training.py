"""Train a module through an executor: gradients from the emulated machine, updates by torch.optim.

Parameters are replicated, so the update is the same on every device and is computed once per rank, on the module's own
parameters.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from meshemu.execute.executor import Executor
from meshemu.execute.optimizer import Optimizer

__all__ = ["Module", "StepOutcome", "Tensor", "Trainer"]

Module = nn.Module
Tensor = torch.Tensor


@dataclass(frozen=True)
class StepOutcome:
    """What one step left behind: its loss, and a digest of all parameters and buffers after the update."""

    loss: float
    parameters_sha256: str
    gradients: Mapping[str, torch.Tensor]


class Trainer:
    """A module, its optimizer and the executor that computes its gradients."""

    def __init__(self, model: nn.Module, optimizer: Optimizer | None, executor: Executor, seed: int) -> None:
        self._model = model
        self._optimizer = optimizer
        self._executor = executor
        self._seed = seed

    def step(self, batch: Any, step: int) -> StepOutcome:
        """Forward, backward and update on a global batch (any nest of tensors, the same on every rank)."""
        parameters = dict(self._model.named_parameters())
        buffers = dict(self._model.named_buffers())
        leaves = {f"batch.{i}": leaf for i, leaf in enumerate(pytree.tree_leaves(batch))}
        result = self._executor.run({**parameters, **buffers, **leaves}, seed=self._seed, step=step)
        with torch.no_grad():
            for name, value in result.buffers.items():
                buffers[name].copy_(value)
        for name, parameter in parameters.items():
            gradient = result.gradients.get(name)
            parameter.grad = None if gradient is None else gradient.to(parameter.dtype).clone()
        if self._optimizer is not None:
            self._optimizer.step()
        return StepOutcome(float(result.loss), self._digest(), result.gradients)

    def _digest(self) -> str:
        """SHA-256 over the names and bytes of all parameters and buffers."""
        digest = hashlib.sha256()
        for name, tensor in self._model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()
