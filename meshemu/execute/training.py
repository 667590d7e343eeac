"""Train a module through an executor: gradients from the emulated machine, updates by torch.optim.

Parameters are replicated, so the update is the same on every device and is computed once per rank, on the module's own
parameters.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from meshemu.execute.executor import Executor, StepResult
from meshemu.execute.optimizer import Optimizer
from meshemu.execute.schedule import Scheduler, advance
from meshemu.workload.capture import autocast

__all__ = ["DType", "Module", "StepOutcome", "Tensor", "Trainer", "run_step"]

DType = torch.dtype
Module = nn.Module
Tensor = torch.Tensor


@dataclass(frozen=True)
class StepOutcome:
    """What one step left behind: its loss, and a digest of all parameters and buffers after the update.

    losses: by name, if the loss is a sum of several. gradients: by parameter name, clipped if they are, and
    gradient_norm: over all of them before that, if they are. learning_rates: that of each parameter group in this step.
    """

    loss: float
    parameters_sha256: str
    gradients: Mapping[str, torch.Tensor]
    losses: Mapping[str, float] = field(default_factory=dict)
    gradient_norm: float | None = None
    learning_rates: tuple[float, ...] = ()


class Trainer:
    """A module, its optimizer with the schedule of its learning rate, and the executor that computes its gradients."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        executor: Executor,
        seed: int,
        schedule: Scheduler | None = None,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._executor = executor
        self._seed = seed
        self._schedule = schedule

    def step(self, batch: Any, step: int) -> StepOutcome:
        """Forward, backward and update on a global batch (any nest of tensors, the same on every rank)."""
        result = run_step(self._executor, self._model, batch, self._seed, step)
        if result.loss is None:
            raise AssertionError("a step of evaluation cannot train")
        loss = float(result.loss)
        buffers = dict(self._model.named_buffers())
        with torch.no_grad():
            for name, value in result.buffers.items():
                buffers[name].copy_(value)
        for name, parameter in self._model.named_parameters():
            gradient = result.gradients.get(name)
            parameter.grad = None if gradient is None else gradient.to(parameter.dtype).clone()
        rates = self._update(loss)
        return StepOutcome(
            loss,
            self._digest(),
            result.gradients,
            {name: float(value) for name, value in result.metrics.items()},
            None if result.gradient_norm is None else float(result.gradient_norm),
            rates,
        )

    def _update(self, loss: float) -> tuple[float, ...]:
        """Update the parameters and set the next learning rates; returns those of this step."""
        if self._optimizer is None:
            return ()
        rates = tuple(float(group["lr"]) for group in self._optimizer.param_groups)
        self._optimizer.step()
        if self._schedule is not None:
            advance(self._schedule, loss)
        return rates

    def _digest(self) -> str:
        """SHA-256 over the names and bytes of all parameters and buffers."""
        digest = hashlib.sha256()
        for name, tensor in self._model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def run_step(executor: Executor, model: nn.Module, batch: Any, seed: int, step: int) -> StepResult:
    """Run the captured step of `model` on a global batch; the model is left as it is."""
    leaves = {f"batch.{i}": leaf for i, leaf in enumerate(pytree.tree_leaves(batch))}
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with autocast(None):  # what autocast changes is in the graph already
        return executor.run({**state, **leaves}, seed=seed, step=step)
