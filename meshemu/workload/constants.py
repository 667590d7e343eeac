"""Tensors that a step makes from nothing that varies, such as masks: their values are known while it is captured."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ["Constants"]


@dataclass(eq=False)
class _Call:
    """An operator, its arguments and, while it is held so that no other tensor takes its place, what it gave."""

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any = None
    values: list[Any] = field(default_factory=list)
    """What it gives in truth, once that was asked for."""

    def tensors(self) -> Iterator[torch.Tensor]:
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs)))
        return (leaf for leaf in leaves if isinstance(leaf, torch.Tensor))


class Constants:
    """How the tensors without values that a step makes came about, where the program alone decides what they are."""

    def __init__(self) -> None:
        self._made: dict[Any, _Call] = {}
        self._written: set[int] = set()
        self._held: dict[int, torch.Tensor] = {}

    def note(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        """Remember that `func` gave `result`; what it writes into is not known any more."""
        call = _Call(func, args, kwargs, result)
        self.look(call.tensors())
        if func._schema.is_mutable:
            self._written |= {_storage(tensor) for tensor in call.tensors()}
            return
        varies = torch.Tag.nondeterministic_seeded in func.tags or not all(map(self._known, call.tensors()))
        if isinstance(result, FakeTensor) and not varies:
            # A view of all elements is them: it must not become its own source.
            self._made.setdefault(_identity(result), call)

    def look(self, tensors: Iterable[torch.Tensor]) -> None:
        """Remember that the step read `tensors`."""
        self._held |= {id(tensor): tensor for tensor in tensors if not isinstance(tensor, FakeTensor)}

    def held(self, tensor: torch.Tensor) -> bool:
        """Whether an operator read `tensor`, which has values and was there before the step."""
        return id(tensor) in self._held

    def value(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What `func` gives for the values of its arguments.

        Raises:
            KeyError: one of them is not known.
        """
        asked = _Call(func, args, kwargs)
        pending = [asked]
        with _disable_current_modes():
            while pending:
                call = pending[-1]
                sources = [self._source(tensor) for tensor in call.tensors()]
                missing = [source for source in sources if source is not None and not source.values]
                pending += missing
                if not missing:
                    given = pytree.tree_map_only(torch.Tensor, self._value, (call.args, dict(call.kwargs)))
                    call.values = [call.func(*given[0], **given[1])]
                    pending.pop()
        return asked.values[0]

    def _source(self, tensor: torch.Tensor) -> _Call | None:
        """What made a tensor; None for one that has its values."""
        if not self._known(tensor):
            raise KeyError(tuple(tensor.shape))
        return self._made[_identity(tensor)] if isinstance(tensor, FakeTensor) else None

    def _value(self, tensor: torch.Tensor) -> Any:
        source = self._source(tensor)
        return tensor if source is None else source.values[0]

    def _known(self, tensor: torch.Tensor) -> bool:
        if _storage(tensor) in self._written:
            return False
        return not isinstance(tensor, FakeTensor) or _identity(tensor) in self._made


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same elements of the same memory, while that is held."""
    return _storage(tensor), tensor.dtype, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
