"""A digest of a captured step: equal for graphs that compute the same from inputs of the same names and shapes."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from meshemu.workload.graph import Graph, module_of

__all__ = ["graph_digest"]


def graph_digest(graph: Graph) -> str:
    """SHA-256 over inputs, operators with their arguments and modules, constants bit by bit, and outputs."""
    digest = hashlib.sha256()
    for part in _parts(graph):
        digest.update(part)
        digest.update(b"\0")
    return digest.hexdigest()


def _parts(graph: Graph) -> Iterator[bytes]:
    numbers: dict[fx.Node, int] = {}

    def number(node: fx.Node) -> str:
        return f"%{numbers[node]}"

    for item in graph.inputs:
        numbers[item.node] = len(numbers)
        yield repr((item.role.value, item.name, _shapes(item.node))).encode()
    for node in graph.nodes:
        args, kwargs = pytree.tree_map_only(fx.Node, number, (tuple(node.args), dict(node.kwargs)))
        numbers[node] = len(numbers)
        yield repr((str(node.target), args, kwargs, _shapes(node), module_of(node))).encode()
    for name, tensor in graph.constants.items():
        yield name.encode()
        yield tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    results = ({"loss": graph.loss} if graph.loss is not None else {}, graph.gradients, graph.buffers, graph.metrics)
    yield repr([{name: numbers[node] for name, node in found.items()} for found in results]).encode()
    yield repr([(numbers[node], numbers[origin]) for node, origin in graph.origins.items()]).encode()


def _shapes(node: fx.Node) -> list[Any]:
    values = pytree.tree_leaves(node.meta.get("val"))
    return [(tuple(v.shape), v.dtype) if isinstance(v, torch.Tensor) else v for v in values]
