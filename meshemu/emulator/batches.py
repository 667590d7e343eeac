"""How a user's batch, model and loss or metric come together, in `emulate` and in `evaluate`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from meshemu.errors import InputError
from meshemu.workload.index_limits import check_indices
from meshemu.workload.spmd import IndexLimit

__all__ = ["apply", "batch_function", "checked_batch", "loss_of"]


def batch_function(batch: Any) -> Callable[[int], Any]:
    """The function step -> batch that `batch` is, or that always gives `batch`."""
    return batch if callable(batch) else lambda _step: batch


def checked_batch(batch: Any, limits: Sequence[IndexLimit], step: int) -> Any:
    """The batch. Raises InputError where a number of it chooses a class or row that there is not."""
    check_indices(limits, batch, f"batch of step {step}")
    return batch


def apply(call: Callable[..., Any], batch: Any) -> tuple[Any, Any]:
    """(outputs of the model, what a loss or a metric compares them with): the targets, or a dict batch itself.

    Raises:
        InputError: the batch is neither (inputs, targets) nor a dict of keyword arguments.
    """
    if isinstance(batch, Mapping):
        return call(**batch), batch
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise InputError("batch must be (inputs, targets) or a dict of keyword arguments of the model")
    inputs, targets = batch
    if isinstance(inputs, Mapping):
        return call(**inputs), targets
    if isinstance(inputs, tuple | list):
        return call(*inputs), targets
    return call(inputs), targets


def loss_of(call: Callable[..., Any], batch: Any, loss_fn: Callable[..., Any] | None) -> Any:
    """loss_fn(outputs, targets); for a dict batch without loss_fn the model's own `loss`.

    Raises:
        InputError: there is no loss.
    """
    outputs, targets = apply(call, batch)
    if loss_fn is not None:
        return loss_fn(outputs, targets)
    if not isinstance(batch, Mapping):
        raise InputError("loss_fn is needed for a batch of (inputs, targets)")
    if not isinstance(outputs, Mapping) or outputs.get("loss") is None:
        raise InputError("loss_fn is needed: the model returns no mapping with a 'loss'")
    return outputs["loss"]
