"""What the backward pass of a step reads of its forward pass, before the step is captured: the least that it can be.

The forward pass runs once on meta tensors, which have shapes and no values, and the tensors that autograd keeps are
counted. Only those count of which it is certain that every arrangement holds them when the backward pass begins: what
depends on samples and is kept by operators (READ) whose backward pass reads values and not just shapes. Fake tensors,
which capture uses, would choose operators as the CPU does, but loading what they need takes a second.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from meshemu.workload.meta_results import made_by
from meshemu.workload.step_maths import StepMaths
from meshemu.workload.without_values import WithoutValues

__all__ = ["saved_bytes"]

Tensor = torch.Tensor

READ: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "ConvolutionBackward0": ("input",),
    "AddmmBackward0": ("mat1",),
    "MmBackward0": ("self", "mat2"),
    "BmmBackward0": ("self", "mat2"),
    "BaddbmmBackward0": ("batch1", "batch2"),
    "MulBackward0": ("self", "other"),
    "ReluBackward0": ("result",),
    "GeluBackward0": ("self",),
    "SiluBackward0": ("self",),
    "SigmoidBackward0": ("result",),
    "TanhBackward0": ("result",),
    "SoftmaxBackward0": ("result",),
    "NativeBatchNormBackward0": ("input",),
    "NativeLayerNormBackward0": ("input",),
    "NativeGroupNormBackward0": ("input",),
    "ScaledDotProductFlashAttentionForCpuBackward0": ("query", "key", "value"),
})  # fmt: skip
"""Node of autograd -> names of what it keeps and reads."""


def saved_bytes(maths: StepMaths, leaves: Sequence[Tensor], itemsize: int | None = None) -> int | None:
    """Bytes, on whole tensors, that are read after the forward pass on a batch with tensors like `leaves`.

    itemsize: at most so many bytes an element of floating-point tensors, for a step that stores them in other formats.
    None where the step has no backward pass or cannot go through without values; capture says why.
    """
    if any(isinstance(module, nn.RNNBase) for module in maths.model.modules()):
        return None  # on the CPU it is one operator
    parameters, buffers = ({n: _meta(t) for n, t in given.items()} for given in (maths.parameters, maths.buffers))
    batch = [_meta(leaf) for leaf in leaves]
    depends, kept = _Depends(), _Kept()
    depends.add(batch)
    try:
        with WithoutValues(), kept, depends:
            loss = maths(parameters, buffers, batch, backward=False)[0]
        if loss is None or loss.grad_fn is None:
            return None
        return _unique_bytes((t for t in _read(loss.grad_fn, kept) if depends.has(t)), itemsize)
    except Exception:  # a model may do anything: capture meets it too, and names it
        return None


def _meta(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


class _Kept(saved_tensors_hooks):
    """Notes what autograd keeps. What other hooks keep within it (recomputation by the model itself) is not seen."""

    def __init__(self) -> None:
        super().__init__(_Box, self._take_out)
        self._taken: Tensor | None = None

    def _take_out(self, box: "_Box") -> Tensor:
        self._taken = box.tensor
        return box.tensor

    def by(self, node: Any, name: str) -> Tensor | None:
        """What a node of autograd keeps under a name, if it was kept here."""
        self._taken = None
        getattr(node, f"_saved_{name}", None)
        return self._taken


@dataclass(frozen=True, eq=False)
class _Box:
    tensor: Tensor


class _Depends(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows what is made of samples."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages: set[int] = set()
        self._alive: list[Any] = []  # so that no storage takes the place of another

    def add(self, made: Any) -> None:
        """Tensors made of samples, in any nest."""
        self._alive.append(made)
        self._storages.update(map(_storage, _tensors(made)))

    def has(self, tensor: Tensor) -> bool:
        """Whether a tensor is made of samples."""
        return _storage(tensor) in self._storages

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch loads its compiler to keep it away from what a mode does; nothing is compiled here."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = made_by(func, args, kwargs or {})
        if any(self.has(tensor) for tensor in _tensors((args, kwargs))):
            self.add(made)
        return made


def _tensors(nest: Any) -> Iterator[Tensor]:
    return (leaf for leaf in pytree.tree_leaves(nest) if isinstance(leaf, Tensor))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _read(root: Any, kept: _Kept) -> Iterator[Tensor]:
    """What the nodes of autograd behind `root` keep and read."""
    seen, waiting = {root}, [root]
    while waiting:
        node = waiting.pop()
        following = {after for after, _ in node.next_functions if after is not None} - seen
        seen |= following
        waiting += following
        for name in _names_read(node):
            tensor = kept.by(node, name)
            if tensor is not None:
                yield tensor


def _names_read(node: Any) -> tuple[str, ...]:
    """Of a convolution, only where its weight gets a gradient and its windows leave out no row."""
    name = node.name()
    if name == "ConvolutionBackward0" and (node.next_functions[1][0] is None or max(node._saved_stride) > 1):
        return ()
    return READ.get(name, ())


def _unique_bytes(tensors: Iterable[Tensor], itemsize: int | None) -> int:
    """Every element counts once, however many tensors show it."""
    shown: dict[int, dict[Any, Tensor]] = {}
    for t in tensors:
        shown.setdefault(_storage(t), {})[t.storage_offset(), t.shape, t.stride()] = t
    total = 0
    for views in shown.values():
        first = next(iter(views.values()))
        elements = min(sum(t.numel() for t in views.values()), first.untyped_storage().nbytes() // first.itemsize)
        size = first.itemsize if itemsize is None or not first.is_floating_point() else min(first.itemsize, itemsize)
        total += elements * size
    return total
