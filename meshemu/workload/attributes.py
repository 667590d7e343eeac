"""What a forward pass leaves in tensors that are neither parameters nor buffers: no step hands it to the next."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from meshemu.errors import CaptureError

__all__ = ["attributes_kept", "forgotten", "refuse_write"]


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Modules get back the attributes that they had; fills in those tensors, by name, that were replaced by others.

    What a step leaves while it is captured has no values: it must not stay in a model that its owner uses again.
    """
    before = [(name, module, dict(vars(module))) for name, module in model.named_modules()]
    replaced: dict[str, torch.Tensor] = {}
    try:
        yield replaced
    finally:
        for name, module, attributes in before:
            now = vars(module)
            for key, value in attributes.items():
                if isinstance(value, torch.Tensor) and now.get(key) is not value:
                    replaced[f"{name}.{key}" if name else key] = value
            now.clear()
            now.update(attributes)


def refuse_write(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raises CaptureError if `func` writes into a tensor that the step holds beside parameters, buffers and batch."""
    if not func._schema.is_mutable:
        return
    for i, argument in enumerate(func._schema.arguments):
        given = args[i] if i < len(args) else kwargs.get(argument.name)
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        if is_written and isinstance(given, torch.Tensor) and not isinstance(given, FakeTensor):
            raise forgotten(f"a tensor of shape {tuple(given.shape)}, in {func}")


def forgotten(what: str) -> CaptureError:
    """What is said of state that a step would forget."""
    return CaptureError(
        f"the step changes {what}, that is neither parameter nor buffer, and would find it unchanged in the next: "
        "register_buffer makes it one"
    )
