"""The maths of one step as a function of tensors: forward, loss and gradients of a module, which stays as it is."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from meshemu.errors import CaptureError
from meshemu.workload.origins import number_backward
from meshemu.workload.outputs import named_losses, named_metrics

__all__ = ["StepFunction", "StepMaths", "autocast", "checked_maths", "maths_of"]

Tensors = Mapping[str, torch.Tensor]

StepFunction = Callable[[Callable[..., Any], Any], Any]
"""(call_model, batch) -> loss, or several by name, where call_model(*args, **kwargs) runs the module."""


def autocast(dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """The context in which a model computes: torch.autocast with `dtype`, or none, whatever the caller's context is."""
    return torch.autocast("cpu", dtype=dtype, enabled=dtype is not None)


def _inlining() -> AbstractContextManager[Any]:
    """Where what torch.compile was applied to runs as what it was made from while this or another thread traces.

    Only that has loaded the compiler; a check of memory before a run does without.
    """
    dynamo = sys.modules.get("torch._dynamo")
    return nullcontext() if dynamo is None else dynamo.config.patch(error_on_nested_fx_trace=False)


@dataclass(frozen=True, eq=False)
class StepMaths:
    """One step of `model` on batches of one structure.

    spec: how a batch is made of its tensors. gradients: False for a step of evaluation, whose metrics are what `step`
    returns. autocast_dtype: forward and loss run under torch.autocast with it.
    """

    model: nn.Module
    step: StepFunction
    spec: pytree.TreeSpec
    gradients: bool = True
    autocast_dtype: torch.dtype | None = None

    @cached_property
    def parameters(self) -> dict[str, torch.Tensor]:
        """Parameters by name."""
        return dict(self.model.named_parameters())

    @cached_property
    def buffers(self) -> dict[str, torch.Tensor]:
        """Buffers by name."""
        return dict(self.model.named_buffers())

    @cached_property
    def trainable(self) -> list[str]:
        """Names of the parameters that get gradients."""
        return [name for name, p in self.parameters.items() if p.requires_grad and self.gradients]

    def __call__(
        self, parameters: Tensors, buffers: Tensors, leaves: Sequence[torch.Tensor], *, backward: bool = True
    ) -> tuple[torch.Tensor | None, dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """(loss, gradients, metrics, buffers after the step), of whole tensors; what is given is left as it is.

        backward: False goes no further than the loss.

        Raises:
            CaptureError: what the step returns is no loss, or no gradient can flow from it.
        """
        p = {name: t.detach().requires_grad_(name in self.trainable) for name, t in parameters.items()}
        b = {name: t.clone() for name, t in buffers.items()}
        tensors = {**p, **b}
        state = {f"model.{place}": tensors[name] for place, name in self._places.items()}
        with _inlining():
            results = functional_call(_Step(self, backward), state, (p, leaves), tie_weights=False)
        return *results, b | self._assigned(state, b)

    def _assigned(self, state: Tensors, buffers: Tensors) -> dict[str, torch.Tensor]:
        """Buffers that the step assigned anew instead of updating them: functional_call leaves them in `state`."""
        found = {}
        for place, name in self._places.items():
            tensor = state[f"model.{place}"]
            if name in buffers and tensor is not buffers[name]:
                found[name] = _kept_kind(name, tensor, buffers[name])
        return found

    @cached_property
    def _places(self) -> dict[str, str]:
        """Dotted name of every attribute that holds a parameter or buffer -> the name under which it is listed.

        Each module counts once, however often it is used: functional_call would not restore it otherwise.
        """
        listed = {id(t): name for name, t in [*self.parameters.items(), *self.buffers.items()]}
        places: dict[str, str] = {}
        for prefix, module in self.model.named_modules():
            own = [*module.named_parameters(recurse=False, remove_duplicate=False)]
            own += [*module.named_buffers(recurse=False, remove_duplicate=False)]
            places |= {f"{prefix}.{name}" if prefix else name: listed[id(t)] for name, t in own}
        return places


def _kept_kind(name: str, tensor: Any, before: torch.Tensor) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor) or tensor.shape != before.shape:
        became = f"of shape {tuple(tensor.shape)}" if isinstance(tensor, torch.Tensor) else str(tensor)
        raise CaptureError(f"the step makes the buffer {name} {became}, it was of shape {tuple(before.shape)}")
    return tensor.detach().to(before.dtype)


class _Step(nn.Module):
    """Loss and gradients in one forward, so that whatever reads the model's parameters sees those that are given."""

    def __init__(self, maths: StepMaths, backward: bool) -> None:
        super().__init__()
        self.model = maths.model
        self._maths = maths
        self._backward = backward

    def forward(self, p: dict[str, torch.Tensor], leaves: Sequence[torch.Tensor]) -> Any:
        """(loss, gradients, metrics)."""
        maths = self._maths
        with autocast(maths.autocast_dtype), torch.set_grad_enabled(maths.gradients):
            returned = maths.step(self.model, pytree.tree_unflatten(list(leaves), maths.spec))
            loss, metrics = named_losses(returned) if maths.gradients else (None, named_metrics(returned))
        if loss is None or not self._backward:
            return loss, {}, metrics
        number_backward(loss)
        found = torch.autograd.grad(loss, [p[name] for name in maths.trainable], allow_unused=True)
        return loss, {name: g for name, g in zip(maths.trainable, found, strict=True) if g is not None}, metrics


def maths_of(
    model: nn.Module,
    batch: Any,
    step: StepFunction,
    *,
    gradients: bool = True,
    autocast_dtype: torch.dtype | None = None,
) -> tuple[StepMaths, list[Any]]:
    """(the maths of a step of `model`, the leaves of `batch`, tensors if all is well)."""
    leaves, spec = pytree.tree_flatten(batch)
    return StepMaths(model, step, spec, gradients, autocast_dtype), leaves


def checked_maths(
    model: nn.Module,
    batch: Any,
    step: StepFunction,
    *,
    gradients: bool = True,
    autocast_dtype: torch.dtype | None = None,
) -> tuple[StepMaths, list[torch.Tensor]]:
    """(the maths of a step of `model`, the tensors of `batch`).

    Raises:
        CaptureError: there is nothing to train, or something is no tensor or not on the CPU.
    """
    maths, leaves = maths_of(model, batch, step, gradients=gradients, autocast_dtype=autocast_dtype)
    if gradients and not maths.trainable:
        raise CaptureError(f"{type(model).__name__} has no trainable parameter")
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf, torch.Tensor):
            raise CaptureError(f"batch leaf {i} is a {type(leaf).__name__}, not a tensor")
    state = [*maths.parameters.items(), *maths.buffers.items()]
    for name, tensor in [*state, *((f"batch leaf {i}", leaf) for i, leaf in enumerate(leaves))]:
        if tensor.device.type != "cpu":
            raise CaptureError(f"{name} is on device {tensor.device}: meshemu runs the maths on the CPU")
    return maths, leaves
