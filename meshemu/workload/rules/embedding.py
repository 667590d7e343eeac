"""Embedding tables, cut by rows (vocabulary), by features, or read by cut indices. Legend: table (V, D).

A device that holds some rows looks up those and leaves zeros for the others: a partial sum.
"""

from typing import Any

import torch
from torch import fx

from meshemu.workload import index_kernels as kernels
from meshemu.workload.layout import Layout, Split
from meshemu.workload.lowering import Lowering
from meshemu.workload.rules.cuts import Args, Kwargs, argument, axes_of
from meshemu.workload.spmd import LocalRange, Value

__all__ = ["RULES"]


def embedding(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """table, indices of any shape, ..."""
    table, indices = low.resolve(args[0]), low.resolve(args[1])
    cuts = [s for s in table.layout.splits if not set(s.axes) & set(indices.layout.axes)]
    table = low.fetch(table, Layout(tuple(cuts)))
    features = [s.moved(len(indices.shape)) for s in cuts if s.dim == 1]
    layout = Layout((*indices.layout.splits, *features), axes_of(table, [0]))
    output = low.like(node.meta["val"], layout)
    placed = (table, indices, LocalRange(table, 0), table.shape[0])
    return low.compute(kernels.lookup, placed, [output], op_class="embedding")[0]


def embedding_backward(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """Grad (..., D), indices (...), V, padding, scale -> gradient of the table, cut as the table is.

    With `scale` every gradient is divided by how often its index occurs in the whole batch: indices are whole.
    """
    grad, indices = low.resolve(args[0]), low.resolve(args[1])
    rank, scale = len(indices.shape), bool(args[4])
    features = grad.layout.split_of(rank)
    shared = [s for s in grad.layout.splits if s.dim < rank and not scale]
    known = {axis for s in shared for axis in s.axes} | set(features.axes if features is not None else ())
    shared += [
        s for s in indices.layout.splits
        if not scale and not known & set(s.axes) and all(s.dim != other.dim for other in shared)
    ]  # fmt: skip
    grad = low.fetch(grad, Layout((*shared, *([] if features is None else [features]))))
    indices = low.fetch(indices, Layout(tuple(shared)))
    rows = _rows_of_table(low, node, args[2], {axis for s in shared for axis in s.axes} | known)
    cuts = ([] if rows is None else [rows]) + ([] if features is None else [features.moved(1)])
    layout = Layout(tuple(cuts), axes_of(indices, range(rank)))
    output = low.like(node.meta["val"], layout)
    placed = (grad, indices, LocalRange(output, 0), argument(args, kwargs, 3, "padding_idx", -1), scale)
    return low.compute(kernels.scatter_rows, placed, [output], op_class="embedding_dense_backward")[0]


def _rows_of_table(low: Lowering, node: fx.Node, n_rows: int, used: set[str]) -> Split | None:
    """How the table that was read at these indices is cut by rows, if no axis in `used` cuts it."""
    indices = node.args[1]
    if not isinstance(indices, fx.Node):
        return None
    for user in indices.users:
        if user.target is torch.ops.aten.embedding.default and user.args[1] is indices and user in low.environment:
            table = low.environment.get(user.args[0])  # type: ignore[arg-type]
            cut = table.layout.split_of(0) if isinstance(table, Value) and table.shape[0] == n_rows else None
            if cut is not None and not used & set(cut.axes):
                return cut
    return None


RULES = {"embedding": embedding, "embedding_dense_backward": embedding_backward}
