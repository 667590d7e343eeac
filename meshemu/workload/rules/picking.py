"""x[indices] and x[indices] = values, with a list of index tensors or masks.

Where an indexed dim is cut, a device reads what it holds and leaves zeros for the rest, a partial sum; or it writes
what belongs to its block. Cut indices leave the result cut; cut values that are added up are terms of sums.
"""

import string
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import fx

from meshemu.workload import index_kernels as kernels
from meshemu.workload.layout import Layout
from meshemu.workload.lowering import Lowering
from meshemu.workload.rules.cuts import Args, Kwargs, axes_of, shared_cuts
from meshemu.workload.spmd import LocalRange, Value

__all__ = ["RULES"]

WHOLE = "Z"
"""Letter of dims that are never cut."""


def index(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """input, indices (one per dim, or None)."""
    source, indices = low.resolve(args[0]), [None if i is None else low.resolve(i) for i in args[1]]
    if _has_mask(indices) or source.dtype == torch.bool:
        whole = [WHOLE * len(i.shape) for i in indices if i is not None]
        out = WHOLE * node.meta["val"].dim()
        return low.sharded(node, (source, indices), kwargs, [WHOLE * len(source.shape), *whole], [out], free="")
    picked = _Picked(source, indices)
    of_index = _index_layout(indices, set(source.layout.axes))
    placed = [None if i is None else low.fetch(i, of_index) for i in indices]
    splits = [s.moved(picked.moved(s.dim)) for s in source.layout.splits if s.dim not in picked.dims]
    splits += [s.moved(picked.first + s.dim) for s in of_index.splits]
    output = low.like(node.meta["val"], Layout(tuple(splits), axes_of(source, picked.dims)))
    inside = [None if i is None else LocalRange(source, d) for d, i in enumerate(indices)]
    given = (source, placed, inside, source.shape, picked.first)
    return low.compute(kernels.index, given, [output], op_class="index")[0]


def index_put(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """input, indices, values (broadcast to what the indices select), accumulate."""
    source, new = low.resolve(args[0]), low.resolve(args[2])
    indices = [None if i is None else low.resolve(i) for i in args[1]]
    accumulate = bool(args[3]) if len(args) > 3 else False
    if _has_mask(indices):
        return _put_by_mask(low, node, source, indices, new, args, kwargs)
    picked = _Picked(source, indices)
    if accumulate and (terms := _terms(picked, source, new, indices)).splits:
        return _sum_of_terms(low, node, picked, source, new, indices, terms)
    layout = Layout(source.layout.splits)
    kept = [s.moved(picked.moved(s.dim)) for s in layout.splits if s.dim not in picked.dims]
    out_rank = len(source.shape) - len(picked.dims) + picked.rank
    missing = out_rank - len(new.shape)
    moved = [s.moved(s.dim - missing) for s in kept if s.dim >= missing]
    of_new = Layout(tuple(s for s in moved if new.shape[s.dim] != 1))
    placed = [None if i is None else low.replicate(i) for i in indices]
    inside = [None if i is None else LocalRange(source, d) for d, i in enumerate(indices)]
    given = (source, placed, low.fetch(new, of_new), accumulate, inside, source.shape)
    output = low.value(source.shape, source.dtype, layout)
    return low.compute(kernels.index_put, given, [output], op_class="index_put")[0]


def _terms(picked: "_Picked", source: Value, new: Value, indices: Sequence[Value | None]) -> Layout:
    """How index tensors of one shape, or the values for them, are cut where the input is not: terms of a sum."""
    present = [i for i in indices if i is not None]
    if len({i.shape for i in present}) > 1 or len(new.shape) != len(source.shape) - len(picked.dims) + picked.rank:
        return Layout()
    used = set(source.layout.axes)
    of_new = [s.moved(s.dim - picked.first) for s in new.layout.splits]
    of_new = [s for s in of_new if 0 <= s.dim < picked.rank and s.tiles(present[0].shape[s.dim])]
    found = of_new or list(shared_cuts(present).splits)
    return Layout(tuple(s for s in found if not used & set(s.axes) and new.shape[picked.first + s.dim] != 1))


def _sum_of_terms(
    low: Lowering, node: fx.Node, picked: "_Picked", source: Value, new: Value, indices: Sequence[Value | None],
    terms: Layout,
) -> Value:  # fmt: skip
    """index_put that accumulates cut values: every device adds its own to zeros; the input comes on top of the sum."""
    of_new = Layout(tuple(s.moved(picked.first + s.dim) for s in terms.splits))
    placed = [None if i is None else low.fetch(i, terms) for i in indices]
    zeros = low.value(source.shape, source.dtype, Layout((), terms.axes))
    given = (source.shape, placed, low.fetch(new, of_new))
    (local,) = low.compute(kernels.index_add_to_zeros, given, [zeros], op_class="index_put")
    output = low.value(source.shape, source.dtype, source.layout)
    added = (source, low.fetch(low.resolve(local), source.layout))
    return low.compute(torch.add, added, [output], op_class="add")[0]


def _put_by_mask(
    low: Lowering, node: fx.Node, source: Value, indices: Sequence[Value | None], new: Value, args: Args, kwargs: Kwargs
) -> Any:
    """A mask of the input's shape and one value is pointwise; any other mask needs whole tensors."""
    given = (source, list(indices), new, *args[3:])
    mask = indices[0]
    pointwise = len(indices) == 1 and mask is not None and mask.shape == source.shape and prod(new.shape) == 1
    names = (string.ascii_lowercase if pointwise else WHOLE * 64)[: len(source.shape)]
    letters = [names, *(names if pointwise else WHOLE * len(i.shape) for i in indices if i is not None)]
    free = names if pointwise else ""
    return low.sharded(node, given, kwargs, [*letters, WHOLE * len(new.shape)], [names], free=free)


def _has_mask(indices: Sequence[Value | None]) -> bool:
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)


class _Picked:
    """Where things lie in what indices select: the dims of the indices stand where the first indexed dim was.

    If indexed dims are not neighbours, they stand in front. rank: number of dims of the indices together.
    """

    def __init__(self, source: Value, indices: Sequence[Value | None]) -> None:
        self.dims = [d for d, i in enumerate(indices) if i is not None]
        self.rank = max(len(i.shape) for i in indices if i is not None)
        neighbours = self.dims[-1] - self.dims[0] + 1 == len(self.dims)
        self.first = self.dims[0] if neighbours else 0

    def moved(self, dim: int) -> int:
        """Where a dim that is not indexed goes."""
        place = dim - sum(d < dim for d in self.dims)
        return place if place < self.first else place + self.rank


def _index_layout(indices: Sequence[Value | None], used: set[str]) -> Layout:
    """The cut of the indices that a result keeps: if all have the same shape, and over axes that are not used."""
    present = [i for i in indices if i is not None]
    if len({i.shape for i in present}) > 1:
        return Layout()
    return Layout(tuple(s for s in shared_cuts(present).splits if not used & set(s.axes)))


RULES = {"index.Tensor": index, "index_put": index_put}
