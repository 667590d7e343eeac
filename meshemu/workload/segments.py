"""Values whose dims are cut within segments, such as queries, keys and values that one product makes.

Operators that see such a dim only as a whole letter keep it; taking the segments apart and putting parts together
moves nothing; any other operator gets the dim gathered.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from meshemu.workload.layout import Layout, Split
from meshemu.workload.lowering import Lowering, base_name
from meshemu.workload.spmd import Value

__all__ = ["lower_segments", "without_segments"]

KEEPERS = frozenset({
    "_to_copy", "_unsafe_view", "addmm", "alias", "baddbmm", "bmm", "clone", "detach", "expand", "mm", "permute",
    "reshape", "sum", "t", "transpose", "unbind", "view",
})  # fmt: skip
"""Besides pointwise ones, operators whose rules do not ask where a block lies."""


def lower_segments(low: Lowering, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """The result of splitting a dim between its segments, or of joining parts that are cut alike; None otherwise."""
    match base_name(node):
        case "split" | "split_with_sizes":
            return _split(low, node, args, kwargs)
        case "cat":
            return _cat(low, node, args, kwargs)
    return None


def without_segments(low: Lowering, node: fx.Node, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Arguments as the rule of a node can take them: with no dim cut within segments, unless it does not matter."""
    target = node.target
    pointwise = isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags
    if pointwise or base_name(node) in KEEPERS:
        return args, kwargs

    def gathered(value: Value) -> Value:
        plain = Layout(tuple(s for s in value.layout.splits if s.segments == 1))
        return low.fetch(value, plain) if plain.splits != value.layout.splits else value

    gathered_args, gathered_kwargs = pytree.tree_map_only(Value, gathered, (args, kwargs))
    return gathered_args, gathered_kwargs


def _split(low: Lowering, node: fx.Node, args: Any, kwargs: Any) -> Any:
    source: Value = args[0]
    dim = int(args[2] if len(args) > 2 else kwargs.get("dim", 0)) % len(source.shape)
    held = source.layout.split_of(dim)
    metas = node.meta["val"]
    if held is None or held.segments == 1:
        return None
    segment = source.shape[dim] // held.segments
    counts = [meta.shape[dim] // segment for meta in metas]
    if any(meta.shape[dim] % segment for meta in metas):
        return None
    outputs = [low.like(meta, _recut(source.layout, dim, held, n)) for meta, n in zip(metas, counts, strict=True)]
    return low.compute(_parted, (source, dim, held.segments, counts), outputs, op_class="split")


def _cat(low: Lowering, node: fx.Node, args: Any, kwargs: Any) -> Any:
    values: Sequence[Value] = args[0]
    meta = node.meta["val"]
    dim = int(args[1] if len(args) > 1 else kwargs.get("dim", 0)) % meta.dim()
    cuts = [value.layout.split_of(dim) if len(value.shape) == meta.dim() else None for value in values]
    first = cuts[0]
    if first is None or any(value.layout.partial for value in values):
        return None
    segment = values[0].shape[dim] // first.segments
    for value, cut in zip(values, cuts, strict=True):
        if cut is None or (cut.axes, cut.ranges) != (first.axes, first.ranges):
            return None
        if value.shape[dim] != segment * cut.segments or not cut.tiles(value.shape[dim]):
            return None
    plain = _recut(values[0].layout, dim, first, sum(cut.segments for cut in cuts if cut is not None))
    others = tuple(s for s in values[0].layout.splits if s.dim != dim)
    placed = [low.fetch(v, Layout((*others, *(s for s in v.layout.splits if s.dim == dim)))) for v in values]
    return low.compute(torch.cat, (placed, dim), [low.like(meta, plain)], op_class="cat")[0]


def _recut(layout: Layout, dim: int, held: Split, segments: int) -> Layout:
    """A layout with `dim` cut within another number of segments."""
    others = tuple(s for s in layout.splits if s.dim != dim)
    return Layout((*others, Split(dim, held.axes, held.ranges, segments)), layout.partial)


def _parted(x: torch.Tensor, dim: int, segments: int, counts: list[int]) -> tuple[torch.Tensor, ...]:
    """Parts of so many segments each, of a block."""
    size = x.shape[dim] // segments
    return torch.split(x, [n * size for n in counts], dim)
