"""What the operators of a forward pass cost, with their shares of the backward pass, and what crosses between them."""

from collections.abc import Callable, Mapping
from operator import getitem

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from meshemu.cost import TensorSpec, Work, op_work
from meshemu.workload.dtypes import number_format
from meshemu.workload.graph import Graph
from meshemu.workload.lowering import attributes_of, base_name

__all__ = ["OpCost", "costs_of", "crossing_bytes", "flops_and_bytes"]

OpCost = Callable[[str, str, Work], int]
"""(op class, number format, work of an operator on whole tensors) -> what it costs a stage."""


def flops_and_bytes(op_class: str, number_format: str, work: Work) -> int:
    """What an operator costs where nothing is known of the device: one for each flop and each byte."""
    return work.flops + work.read_bytes + work.write_bytes


def costs_of(graph: Graph, place: Mapping[fx.Node, int], cost: OpCost) -> list[int]:
    """Costs of the forward operators at each place, and of their shares of the backward pass.

    What is made again counts only where it has a place of its own: it moves no cut, since where a step is cut decides
    which values are rounded to be sent.
    """
    costs = [0] * (max(place.values(), default=-1) + 1)
    for node in graph.nodes:
        at = place.get(node, None if node in graph.copies else place.get(graph.origins.get(node, node)))
        if at is not None:
            costs[at] += _cost(node, cost)
    return costs


def crossing_bytes(place: Mapping[fx.Node, int]) -> list[int]:
    """Bytes that cross a cut just before each place, there and as gradients back."""
    changes = np.zeros(max(place.values(), default=0) + 2, np.int64)
    for node, begin in place.items():
        end = max((place[user] for user in node.users if user in place), default=begin)
        if isinstance(node.meta.get("val"), torch.Tensor):
            size_bytes = 2 * sum(spec.size_bytes for spec in _specs(_tensors(node)))
            changes[begin + 1] += size_bytes
            changes[end + 1] -= size_bytes
    return [int(n) for n in np.cumsum(changes)[:-1]]


def _cost(node: fx.Node, cost: OpCost) -> int:
    if node.op != "call_function" or node.target is getitem:
        return 0
    leaves = pytree.tree_leaves((node.args, node.kwargs))
    inputs = [v for leaf in leaves if isinstance(leaf, fx.Node) for v in _tensors(leaf)]
    outputs = _tensors(node)
    work = op_work(base_name(node), _specs(inputs), _specs(outputs), attributes_of(node))
    floating = [v.dtype for v in (*inputs, *outputs) if v.dtype.is_floating_point]
    return cost(base_name(node), number_format((*floating, torch.float32)[0]), work)


def _tensors(node: fx.Node) -> list[torch.Tensor]:
    return [v for v in pytree.tree_leaves(node.meta.get("val")) if isinstance(v, torch.Tensor)]


def _specs(tensors: list[torch.Tensor]) -> list[TensorSpec]:
    return [TensorSpec(tuple(v.shape), v.dtype.itemsize) for v in tensors]
