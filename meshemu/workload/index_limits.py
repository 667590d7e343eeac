"""What the batch may hold where its numbers choose among classes or rows: read from the captured step, checked before.

A target that is no class, or a token that has no row in its embedding, is only met when the step runs, on whichever
rank has the sample. Where such numbers come straight out of the batch, they are looked at before.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from meshemu.errors import InputError
from meshemu.workload.graph import Graph, GraphInput, Role
from meshemu.workload.lowering import base_name
from meshemu.workload.spmd import IndexLimit

__all__ = ["check_indices", "index_limits"]

LOSSES = frozenset({"nll_loss_forward", "nll_loss2d_forward"})
EMBEDDINGS = frozenset({"embedding", "_embedding_bag", "_embedding_bag_forward_only"})
SAME_NUMBERS = frozenset(
    {"view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "t", "transpose", "permute", "expand", "clone",
     "detach", "alias", "lift_fresh"}
)  # fmt: skip


def index_limits(graph: Graph) -> tuple[IndexLimit, ...]:
    """Those of the targets of losses and of the indices of embeddings that are numbers of the batch as they stand."""
    leaves = {item.node: int(item.name.removeprefix("batch.")) for item in graph.inputs if item.role is Role.BATCH}
    names = {item.node: item for item in graph.inputs}
    found = (_limit(node, leaves, names) for node in graph.nodes if node.op == "call_function")
    return tuple(dict.fromkeys(limit for limit in found if limit is not None))


def _limit(node: fx.Node, leaves: dict[fx.Node, int], inputs: dict[fx.Node, GraphInput]) -> IndexLimit | None:
    name = base_name(node)
    if name not in LOSSES and name not in EMBEDDINGS:
        return None
    table, index = _origin(node.args[0]), _origin(node.args[1])
    if index not in leaves:
        return None
    shape = node.args[0].meta["val"].shape  # type: ignore[union-attr]
    if name in LOSSES:
        ignored = node.args[4] if len(node.args) > 4 else node.kwargs.get("ignore_index", -100)
        return IndexLimit(leaves[index], shape[min(1, len(shape) - 1)], ignored, "classes of the loss")  # type: ignore[arg-type]
    of = f"rows of {inputs[table].name}" if table in inputs else "rows of an embedding"
    return IndexLimit(leaves[index], shape[0], None, of)


def _origin(value: Any) -> Any:
    """What a node is another shape of, or a wider integer type; fractions and narrower types change numbers."""
    while isinstance(value, fx.Node) and value.op == "call_function" and _keeps_numbers(value):
        value = value.args[0]
    return value


def _keeps_numbers(node: fx.Node) -> bool:
    if base_name(node) != "_to_copy":
        return base_name(node) in SAME_NUMBERS
    before, after = node.args[0].meta["val"].dtype, node.meta["val"].dtype  # type: ignore[union-attr]
    return after == torch.int64 and not before.is_floating_point


def check_indices(limits: Sequence[IndexLimit], batch: Any, where: str) -> None:
    """Raise InputError, naming the sample, for a number of a batch, or of all samples, that chooses nothing."""
    leaves = pytree.tree_leaves(batch)
    for rule in limits:
        numbers = leaves[rule.leaf]
        wrong = (numbers < 0) | (numbers >= rule.limit)
        if rule.ignored is not None:
            wrong &= numbers != rule.ignored
        if not bool(wrong.any()):
            continue
        place = torch.nonzero(wrong)[0]
        sample = f"sample {int(place[0])}" if len(place) else "the batch"
        raise InputError(
            f"{where}: {int(numbers[tuple(place)])} in {sample} is none of the {rule.limit} {rule.what}, "
            f"0 to {rule.limit - 1}" + ("" if rule.ignored is None else f" ({rule.ignored} is ignored)")
        )
