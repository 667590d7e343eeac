"""What the operators of a captured step depend on: parameters as they are, buffers that change, chance, or neither."""

from collections.abc import Collection

import torch
from torch import fx

from meshemu.workload.graph import Graph, Role, updated_by
from meshemu.workload.lowering import base_name

__all__ = ["COPIES", "buffer_copies", "is_random", "rearranged_parameters", "updated_buffers", "without_parameters"]

COPIES = frozenset({"alias", "clone", "detach", "lift_fresh_copy"})
"""Operators whose result is what they are given."""

REARRANGEMENTS = COPIES | {
    "_to_copy", "_unsafe_view", "expand", "permute", "reshape", "select", "slice", "squeeze", "t", "transpose",
    "unsqueeze", "view",
}  # fmt: skip
"""Operators that are repeated on a parameter wherever it is read, instead of keeping their results."""


def rearranged_parameters(graph: Graph) -> frozenset[fx.Node]:
    """Nodes that only rearrange a parameter."""
    known = {item.node for item in graph.inputs if item.role is Role.PARAMETER}
    found: set[fx.Node] = set()
    for node in graph.nodes:
        sources = node.all_input_nodes
        rearranges = node.op == "call_function" and base_name(node) in REARRANGEMENTS
        if rearranges and sources and known.issuperset(sources):
            known.add(node)
            found.add(node)
    return frozenset(found)


def buffer_copies(graph: Graph) -> dict[fx.Node, str]:
    """Every node that is a buffer, or merely copies one -> the buffer's name."""
    found = {item.node: item.name for item in graph.inputs if item.role is Role.BUFFER}
    for node in graph.nodes:
        if node.op == "call_function" and base_name(node) in COPIES and node.all_input_nodes[0] in found:
            found[node] = found[node.all_input_nodes[0]]
    return found


def updated_buffers(graph: Graph) -> frozenset[str]:
    """Names of the buffers that a step changes: in place, or because it gives something else back."""
    copies = buffer_copies(graph)
    in_place = {copies[statistic] for node in graph.nodes for statistic in updated_by(node) if statistic in copies}
    return frozenset(in_place | {name for name, node in graph.buffers.items() if copies.get(node) != name})


def is_random(node: fx.Node) -> bool:
    """Whether an operator draws random numbers."""
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def without_parameters(graph: Graph, updated: Collection[str]) -> frozenset[fx.Node]:
    """Operators whose results depend on batch leaves, constants and buffers at rest alone, and on no chance.

    One without results is none of them: it only looks at its inputs, and has to be run though nobody reads it.
    """
    known = {
        item.node
        for item in graph.inputs
        if item.role is Role.BATCH or (item.role is Role.BUFFER and item.name not in updated)
    }
    inputs = set(known)
    for node in graph.nodes:
        has_results = node.op == "get_attr" or node.meta.get("val") is not None
        if has_results and not is_random(node) and known.issuperset(node.all_input_nodes):
            known.add(node)
    return frozenset(known - inputs)
