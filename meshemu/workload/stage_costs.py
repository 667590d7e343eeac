"""What the operators of a forward pass cost, with their shares of the backward pass, and what crosses between them."""

from collections.abc import Mapping
from operator import getitem

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from meshemu.cost import TensorSpec, op_work
from meshemu.workload.graph import Graph
from meshemu.workload.lowering import attributes_of, base_name

__all__ = ["costs_of", "crossing_bytes"]


def costs_of(graph: Graph, place: Mapping[fx.Node, int]) -> list[int]:
    """Flops plus bytes of the forward operators at each place, and of their shares of the backward pass."""
    costs = [0] * (max(place.values(), default=-1) + 1)
    for node in graph.nodes:
        at = place.get(node, place.get(graph.origins.get(node, node)))
        if at is not None:
            costs[at] += _cost(node)
    return costs


def crossing_bytes(place: Mapping[fx.Node, int]) -> list[int]:
    """Bytes that cross a cut just before each place, there and as gradients back."""
    changes = np.zeros(max(place.values(), default=0) + 2, np.int64)
    for node, begin in place.items():
        end = max((place[user] for user in node.users if user in place), default=begin)
        if isinstance(node.meta.get("val"), torch.Tensor):
            size_bytes = 2 * sum(spec.size_bytes for spec in _specs(node))
            changes[begin + 1] += size_bytes
            changes[end + 1] -= size_bytes
    return [int(n) for n in np.cumsum(changes)[:-1]]


def _cost(node: fx.Node) -> int:
    if node.op != "call_function" or node.target is getitem:
        return 0
    leaves = pytree.tree_leaves((node.args, node.kwargs))
    inputs = [s for leaf in leaves if isinstance(leaf, fx.Node) for s in _specs(leaf)]
    work = op_work(base_name(node), inputs, _specs(node), attributes_of(node))
    return work.flops + work.read_bytes + work.write_bytes


def _specs(node: fx.Node) -> list[TensorSpec]:
    values = pytree.tree_leaves(node.meta.get("val"))
    return [TensorSpec(tuple(v.shape), v.dtype.itemsize) for v in values if isinstance(v, torch.Tensor)]
