"""Train a module through an executor: gradients from the emulated machine, updates by torch.optim.

Parameters are replicated, so the update is the same on every device and is computed once per rank, on the module's own
parameters.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils import _pytree as pytree

from meshemu.execute.executor import StepResult
from meshemu.execute.feeding import BATCH
from meshemu.execute.number_formats import StateRounding
from meshemu.execute.optimizer import Optimizer
from meshemu.execute.schedule import Scheduler, advance
from meshemu.execute.state import load_state, state_of
from meshemu.hardware.format_roles import NONE, Formats
from meshemu.workload.formats.maxima import Maxima
from meshemu.workload.step_maths import autocast

__all__ = [
    "DType",
    "Module",
    "Samples",
    "StepOutcome",
    "StepRunner",
    "Tensor",
    "Trainer",
    "digest_of",
    "run_step",
    "step_inputs",
]

DType = torch.dtype
Module = nn.Module
Tensor = torch.Tensor
Samples = NDArray[np.int64] | None


@dataclass(frozen=True)
class StepOutcome:
    """What one step left behind: its loss, and a digest of all parameters and buffers after the update.

    losses: its terms by name, if there are several. gradients: by parameter name, clipped if they are, and
    gradient_norm: over all of them before that. learning_rates: that of each parameter group in this step.
    """

    loss: float
    parameters_sha256: str
    gradients: Mapping[str, torch.Tensor]
    losses: Mapping[str, float] = field(default_factory=dict)
    gradient_norm: float = float("nan")
    learning_rates: tuple[float, ...] = ()


class StepRunner(Protocol):
    """Whatever runs a step on the tensors that its graph has for inputs: an executor."""

    @property
    def samples(self) -> Samples:
        """Indices along dim 0 of a batch that this rank reads; None for all of them."""

    @property
    def maxima(self) -> Maxima:
        """The running maxima that biases of number formats follow; what a run that goes on needs of it."""

    def run(self, inputs: Mapping[str, torch.Tensor], *, seed: int, step: int) -> StepResult:
        """One step. inputs: whole tensors by graph input name, the same on every rank."""


class Trainer:
    """A module, its optimizer with the schedule of its learning rate, and the executor that computes its gradients."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        executor: StepRunner,
        seed: int,
        schedule: Scheduler | None = None,
        formats: Formats = NONE,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._executor = executor
        self._seed = seed
        self._schedule = schedule
        rounds = optimizer is not None and (formats.optimizer is not None or formats.second_moments is not None)
        self._state_rounding = StateRounding(optimizer, formats) if rounds and optimizer is not None else None

    @property
    def samples(self) -> Samples:
        """Indices along dim 0 of a batch that this rank reads; None for all of them."""
        return self._executor.samples

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that steps change: as `state_of`, and under "formats" the running maxima of sliding biases.

        Random numbers and batches are counted, by seed and step, and have no state.
        """
        maxima = self._executor.maxima.state_dict()
        return state_of(self._model, self._optimizer, self._schedule) | ({"formats": maxima} if maxima else {})

    def load_state_dict(self, state: Mapping[str, Any], name: str) -> None:
        """Go on from what `state_dict` gave, to the bit; `name` is what errors call it.

        Raises:
            InputError: a part is missing, or does not fit.
        """
        load_state(self._model, self._optimizer, self._schedule, state, name)
        self._executor.maxima.load_state_dict(state.get("formats", {}))

    def step(self, batch: Any, step: int) -> StepOutcome:
        """Forward, backward and update on a global batch: any nest of tensors, the same on every rank that reads them.

        The gradients of the step before are let go of first.
        """
        for parameter in self._model.parameters():
            parameter.grad = None
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
        if self._state_rounding is not None:
            self._state_rounding.round(self._seed, step)
        return StepOutcome(
            loss,
            digest_of(self._model.state_dict()),
            result.gradients,
            {name: float(value) for name, value in result.metrics.items()},
            float(_norm(result.gradients.values()) if result.gradient_norm is None else result.gradient_norm),
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


def digest_of(state: Mapping[str, Any]) -> str:
    """SHA-256 over the names and bytes of all parameters and buffers in the state dict of a model."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _norm(gradients: Iterable[torch.Tensor]) -> torch.Tensor:
    """2-norm over all gradients, in the format that clipping takes, of a step that does not compute it itself.

    It takes nothing from the emulated machine: every rank holds the whole gradients for torch.optim already.
    """
    whole = list(gradients)
    dtype = torch.float64 if any(g.dtype == torch.float64 for g in whole) else torch.float32
    norms: torch.Tensor = torch.stack([torch.linalg.vector_norm(g, dtype=dtype) for g in whole])
    return norms.square().sum().sqrt()


def step_inputs(model: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
    """Parameters, buffers and the tensors of a global batch, by graph input name."""
    leaves = {f"{BATCH}{i}": leaf for i, leaf in enumerate(pytree.tree_leaves(batch))}
    return {**dict(model.named_parameters()), **dict(model.named_buffers()), **leaves}


def run_step(executor: StepRunner, model: nn.Module, batch: Any, seed: int, step: int) -> StepResult:
    """Run the captured step of `model` on a global batch; the model is left as it is."""
    with autocast(None):  # what autocast changes is in the graph already
        return executor.run(step_inputs(model, batch), seed=seed, step=step)
