"""What a step asks of the values of its tensors: numbers that Python branches on, and sizes that depend on data.

A step that asks is run once with values, which makes a list of decisions, and captured by shapes, where the same
questions are answered from the list; one that asks nothing is captured with none. Both run under an `Asking` mode, so
that they ask alike: rows that a mask selects are rows at the places where the mask holds, so that `nonzero` is the only
question a mask leads to, once for each mask.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from meshemu.errors import CaptureError
from meshemu.workload.attributes import refuse_write
from meshemu.workload.constants import Constants

__all__ = ["Asking", "Decided", "Decision", "Replay", "UnansweredError", "asked_tensors", "asking"]

Operator = torch._ops.OpOverload
aten = torch.ops.aten

NUMBERS = frozenset({
    aten._local_scalar_dense.default, aten.allclose.default, aten.equal.default, aten.is_nonzero.default,
    aten.item.default,
})  # fmt: skip
"""Operators that give Python a number."""

SIZES = frozenset({
    aten._unique.default, aten._unique2.default, aten.bincount.default, aten.nonzero.default,
    aten.repeat_interleave.Tensor, aten.unique_consecutive.default, aten.unique_dim.default,
    aten.unique_dim_consecutive.default,
})  # fmt: skip
"""Operators that give tensors whose shapes depend on data; no gradient passes through them."""

WRITES = frozenset({aten.index_put.default, aten.index_put_.default, aten._unsafe_index_put.default})
"""Operators that write to places given by indices or masks."""

MASKS = (torch.bool, torch.uint8)


@dataclass(frozen=True, eq=False)
class Decision:
    """What `operator`, as torch writes it, gave; a number is a tensor without dims."""

    operator: str
    results: tuple[torch.Tensor, ...]
    is_number: bool

    @property
    def number(self) -> Any:
        """The number that Python gets."""
        return self.results[0].item()

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal where a capture is answered alike: the number itself, or the shapes of the tensors."""
        if self.is_number:
            return self.operator, self.results[0].dtype, self.content
        return self.operator, *((result.dtype, tuple(result.shape)) for result in self.results)

    @property
    def content(self) -> bytes:
        """The results bit by bit."""
        return b"".join(r.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for r in self.results)


@dataclass(frozen=True)
class Decided:
    """The operator of a captured step that stands for one that was asked: it gives what was decided.

    Devices compute what is asked about, wait for it and do the work of `operator`; then they all take the same answer.
    """

    operator: str
    name: str

    @property
    def __name__(self) -> str:
        """ATen name without namespace and overload."""
        return self.name

    def __str__(self) -> str:
        """The operator as torch writes it."""
        return self.operator

    def __call__(self, *asked_and_taken: torch.Tensor) -> torch.Tensor:
        """The last argument."""
        return asked_and_taken[-1]


class Asking(TorchDispatchMode, ABC):  # type: ignore[no-untyped-call]
    """Sees every operator below autograd; `decide` answers those that ask for values."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._selected: dict[Any, tuple[torch.Tensor, tuple[torch.Tensor, ...]]] = {}

    @abstractmethod
    def decide(self, func: Operator, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The result of one of NUMBERS or SIZES."""

    def other(self, func: Operator, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The result of any other operator."""
        return func(*args, **kwargs)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Answer a question, take masks out of indices, and let all else pass."""
        given = kwargs or {}
        if func in NUMBERS or func in SIZES:
            return self.decide(func, args, given)
        if func is aten.masked_select.default:
            shape = torch.broadcast_shapes(args[0].shape, args[1].shape)  # type: ignore[no-untyped-call]
            return aten.index.Tensor(args[0].expand(shape), list(self._where(args[1].expand(shape))))
        if func is aten.masked_scatter.default:
            mask = args[1].expand_as(args[0])
            if self._known(mask):
                places = self._where(mask)
                return aten.index_put.default(args[0], list(places), args[2].reshape(-1)[: len(places[0])])
        if func is aten.index.Tensor and _masks(args[1]):
            return func(args[0], self._without_masks(args[1]))
        if func in WRITES and self._writes_rows(*args[:3]):
            return func(args[0], self._without_masks(args[1]), *args[2:], **given)
        return self.other(func, args, given)

    def _without_masks(self, indices: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Indices with the places of every mask, one tensor for each of its dims, in place of the mask."""
        plain: list[torch.Tensor | None] = []
        for index in indices:
            plain += self._where(index) if index is not None and index.dtype in MASKS else (index,)
        return plain

    def _writes_rows(
        self, source: torch.Tensor, indices: Sequence[torch.Tensor | None], values: torch.Tensor
    ) -> bool:
        """Whether values are written to the places of masks one by one, so that there must be as many as places."""
        masks = _masks(indices)
        if not masks or any(self._known(mask) for mask in masks):
            return bool(masks)
        if len(masks) < sum(index is not None for index in indices):
            return True
        where = [d for d, index in enumerate(indices) if index is not None]
        first = where[0] if where[-1] - where[0] + 1 == len(where) else 0
        rank = source.dim() - sum(mask.dim() for mask in masks) + 1
        return values.dim() + first >= rank and values.shape[values.dim() - rank + first] != 1

    def _where(self, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Indices of the places where a mask holds, one tensor a dim; asked once for a mask."""
        key = _identity(mask)
        if key not in self._selected:
            places = self.decide(aten.nonzero.default, (mask,), {})
            self._selected[key] = mask, tuple(aten.select.int(places, 1, dim) for dim in range(mask.dim()))
        return self._selected[key][1]

    def _known(self, mask: torch.Tensor) -> bool:
        return _identity(mask) in self._selected


class Replay(Asking):  # type: ignore[no-untyped-call]
    """Answers from a list of decisions while a step is captured; `taken` are their results as inputs of the capture.

    markers: (operator, the tensors asked about, the tensors taken) of every question so far, as copies whose place in
    the captured graph is that of the question.
    """

    def __init__(self, decisions: Sequence[Decision], taken: Sequence[Sequence[torch.Tensor]]) -> None:
        super().__init__()
        self._decisions = decisions
        self._taken = taken
        self._constants = Constants()
        self.markers: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []

    def decide(self, func: Operator, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What was decided, or the number itself where it does not depend on the inputs of the capture.

        Raises:
            UnansweredError: the list ends before.
            CaptureError: it goes on with another question.
        """
        self._constants.look(asked_tensors(args, kwargs))
        k = len(self.markers)
        if k == len(self._decisions):
            return self._constant(func, args, kwargs)
        decision = self._decisions[k]
        if decision.operator != str(func):
            raise CaptureError(
                f"the step asks {func} for a value when it is captured, and {decision.operator} when it is run"
            )
        asked = [tensor.clone() for tensor in asked_tensors(args, kwargs)]
        taken = [tensor.clone() for tensor in self._taken[k]]
        self.markers.append((asked, taken))
        if decision.is_number:
            return decision.number
        return taken[0] if len(taken) == 1 else tuple(taken)

    def other(self, func: Operator, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The result of any other operator, whose value may be known. Raises CaptureError: as `refuse_write`."""
        refuse_write(func, args, kwargs)
        result = func(*args, **kwargs)
        self._constants.note(func, args, kwargs, result)
        return result

    def read(self, tensor: torch.Tensor) -> bool:
        """Whether the step read `tensor`, which was there before it."""
        return self._constants.held(tensor)

    def _constant(self, func: Operator, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The number that an operator gives if it is the same whatever the inputs are.

        Raises:
            UnansweredError: it depends on them, or is none.
        """
        if func in NUMBERS:
            with suppress(KeyError):
                return self._constants.value(func, args, kwargs)
            # What a fake tensor raises when it is asked for a value; NotImplementedError where it has no such operator.
            with suppress(DataDependentOutputException, NotImplementedError):
                number = func(*args, **kwargs)
                if type(number) in (bool, int, float, complex):
                    return number
        raise UnansweredError(str(func))


class UnansweredError(Exception):
    """A capture asks for more than was decided. str() is the operator."""


def asked_tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensors among the arguments of an operator."""
    return [leaf for leaf in pytree.tree_leaves((args, dict(kwargs))) if isinstance(leaf, torch.Tensor)]


@contextmanager
def asking(mode: Asking) -> Iterator[None]:
    """Run under `mode`, with whatever reads tensors behind the dispatcher's back made to ask."""
    with mode, _InTheOpen():
        yield


class _InTheOpen(TorchFunctionMode):
    """Functions of torch that read values out of sight of a dispatch mode, or only where there are values."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """`tolist` and `one_hot` by operators that ask; all else as it is."""
        given = dict(kwargs or {})
        if func is torch.Tensor.tolist:
            return _listed(args[0])
        if func in (torch.nn.functional.one_hot, torch._C._nn.one_hot):
            return _one_hot(*args, **given)
        return func(*args, **given)


def _listed(tensor: torch.Tensor) -> Any:
    return tensor.item() if not tensor.dim() else [_listed(part) for part in tensor.unbind()]


def _one_hot(tensor: torch.Tensor, num_classes: int = -1) -> torch.Tensor:
    """As torch's, which checks the range of classes only where there are values."""
    n = int(tensor.max().item()) + 1 if num_classes == -1 else num_classes
    return (tensor.unsqueeze(-1) == torch.arange(n)).to(torch.int64)


def _masks(indices: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
    return [index for index in indices if index is not None and index.dtype in MASKS]


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same memory in the same state."""
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor._version
