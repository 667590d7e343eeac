"""Where a training step stores what operators make, and whether that is an activation or a gradient.

Every operator of a captured step stores its result: that is what the cost model counts, which fuses nothing. Left as
computed, in the accumulator's format, are statistics (reductions, and what is made of nothing else), scalars, the loss
with what leads to it from the last product, normalisation or pooling, and the terms of parameters' gradients, which
are rounded once they are summed. What only selects or moves numbers (views, copies, maxima, rectifiers) has nothing to
round.
"""

from collections.abc import Iterable
from operator import getitem

import torch
from torch import fx

from meshemu.cost.op_classes import ATTENTION, MATRIX, MOVEMENTS, POOLINGS, VIEWS
from meshemu.workload.graph import Graph, Role
from meshemu.workload.lowering import base_name
from meshemu.workload.stages import passes_of

__all__ = ["ACTIVATIONS", "GRADIENTS", "SELECTING", "stored_nodes"]

ACTIVATIONS, GRADIENTS = "activations", "gradients"

SELECTING = VIEWS | MOVEMENTS | {
    "abs", "getitem", "maximum", "minimum", "neg", "relu", "threshold_backward", "max_pool2d_with_indices",
    "max_pool3d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool3d", "zeros", "sign",
}  # fmt: skip
"""Operators that give numbers that they are given, or their negatives, or zeros."""

REDUCING = frozenset({
    "sum", "mean", "prod", "amax", "amin", "max", "min", "aminmax", "var", "std", "var_mean", "std_mean", "norm",
    "linalg_vector_norm", "logsumexp", "argmax", "argmin", "any", "all", "median", "mode", "nanmedian", "kthvalue",
})  # fmt: skip
"""Operators that make statistics."""

NORMALISING = (
    "native_batch_norm", "_native_batch_norm_legit", "native_layer_norm", "native_group_norm", "_fused_rms_norm"
)  # fmt: skip

LEADING = MATRIX | POOLINGS | frozenset(NORMALISING) | {
    "embedding", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d",
    "adaptive_max_pool3d",
}  # fmt: skip
"""Operators after the last of which the way to the loss begins."""


def stored_nodes(graph: Graph) -> dict[fx.Node, str]:
    """Node -> ACTIVATIONS or GRADIENTS, for those whose result is stored in the format of that role.

    What repeats another operator is stored as that one is.
    """
    forward, backward = passes_of(graph)
    to_loss = _towards_loss(graph, forward)
    kept = _terms_of_gradients(graph, backward)
    large = _large(graph, [*forward, *backward])
    stored = {node: ACTIVATIONS for node in forward if node in large and node not in to_loss and _rounds(node)}
    inside = {node for node in backward if graph.origins.get(node) in to_loss}
    for node in [node for node in backward if node not in graph.copies]:
        within = node in inside and all(user in inside for user in node.users)
        if node in large and node not in kept and not within and _rounds(node):
            stored[node] = GRADIENTS
    return stored | {copy: stored[node] for copy, node in graph.copies.items() if node in stored}


def _rounds(node: fx.Node) -> bool:
    """Whether a node calculates one tensor of floating-point numbers that are not statistics."""
    meta = node.meta.get("val")
    if node.op != "call_function" or not isinstance(meta, torch.Tensor) or not meta.dim():
        return False
    if not meta.dtype.is_floating_point:
        return False
    if node.target is not getitem:
        return base_name(node) not in SELECTING | REDUCING
    source, index = node.args
    if not isinstance(source, fx.Node) or source.op != "call_function":
        return False
    name = base_name(source)
    stored = (0, 1, 2) if name in ATTENTION and name.endswith("_backward") else (0,)
    return name not in SELECTING | REDUCING and index in stored


def _large(graph: Graph, nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Nodes made of samples: neither statistics nor made of statistics and parameters alone."""
    large = {item.node for item in graph.inputs if item.role is Role.BATCH}
    for node in nodes:
        if node.op != "call_function":
            continue
        name = base_name(node)
        reduced = name in REDUCING or (node.target is getitem and _maker(node) in REDUCING)
        if not reduced and (name in MATRIX or any(source in large for source in node.all_input_nodes)):
            large.add(node)
    return large


def _maker(node: fx.Node) -> str:
    """Name of the operator that made the tuple a getitem takes from."""
    source = node.args[0]
    return base_name(source) if isinstance(source, fx.Node) and source.op == "call_function" else ""


def _towards_loss(graph: Graph, forward: tuple[fx.Node, ...]) -> set[fx.Node]:
    """Forward nodes after which no leading operator follows on any way; none in a step without a loss."""
    if graph.loss is None:
        return set()
    ahead: set[fx.Node] = set()  # nodes from which a leading operator is reached
    known = set(forward)
    for node in reversed(forward):
        if any(user in ahead or _leads(user) for user in node.users if user in known):
            ahead.add(node)
    return {node for node in forward if node not in ahead and not _leads(node) and not _result_of_leading(node)}


def _leads(node: fx.Node) -> bool:
    return node.op == "call_function" and base_name(node) in LEADING


def _result_of_leading(node: fx.Node) -> bool:
    return node.target is getitem and _maker(node) in LEADING


def _terms_of_gradients(graph: Graph, backward: tuple[fx.Node, ...]) -> set[fx.Node]:
    """Backward nodes that are parameters' gradients, or only lead to them by views, additions and casts."""
    kept = set(graph.gradients.values())
    passing = VIEWS | MOVEMENTS | {"add", "getitem"}
    for node in reversed(backward):
        users = [user for user in node.users if user.op != "output"]
        if users and all(user in kept and base_name(user) in passing for user in users):
            kept.add(node)
    return kept
