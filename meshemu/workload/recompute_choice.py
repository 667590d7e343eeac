"""Which activations to make again so that a step fits into memory, at the least cost.

The forward pass is cut into segments between which little crosses (`stage_cuts`). Of the first segments, whose
activations wait longest for the backward pass, only what later segments read is kept. How much that saves is estimated
on the graph; whoever asks then tries the candidates on the devices, cheapest first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import getitem

import torch
from torch import fx

from meshemu.cost.op_classes import VIEWS
from meshemu.workload.graph import Graph
from meshemu.workload.lowering import base_name
from meshemu.workload.recompute import droppable, recomputed
from meshemu.workload.stage_costs import OpCost, costs_of, crossing_bytes
from meshemu.workload.stage_cuts import balanced_starts
from meshemu.workload.stages import passes_of

__all__ = ["Recomputation", "candidates", "held_bytes"]

SEGMENTS = (2, 4, 6, 9, 13, 18)
"""How many segments are tried; sqrt(layers) of them need the least memory where all layers are alike."""


@dataclass(frozen=True, eq=False)
class Recomputation:
    """graph: with operators that make activations again. cost: of these operators, in that of the whole step.
    estimate_bytes: as `held_bytes`. The first n_dropped of n_segments segments are not kept.
    """

    graph: Graph
    estimate_bytes: int
    n_segments: int
    n_dropped: int
    cost: float = 0.0

    def describe(self) -> str:
        """What is made again, in words."""
        return (
            f"{len(self.graph.copies)} operators are carried out again in the backward pass (+{100 * self.cost:.1f} % "
            f"of the step's work): activations of the first {self.n_dropped} of {self.n_segments} segments are not kept"
        )


def candidates(graph: Graph, most_bytes: int, cost: OpCost) -> list[Recomputation]:
    """Ways to hold at most about `most_bytes`, cheapest first, and last the one that holds least. cost: of operators.

    Empty where the step has no backward pass, or nothing to make again.
    """
    nodes = droppable(graph)
    if graph.loss is None or len(nodes) < SEGMENTS[0]:
        return []
    place = {node: i for i, node in enumerate(nodes)}
    sizes, crossing = [_size_bytes(node) for node in nodes], crossing_bytes(place)
    legal = [node.target is not getitem for node in nodes]
    found = []
    for n_segments in SEGMENTS:
        starts = balanced_starts(sizes, crossing, legal, n_segments)
        if starts is None:
            break
        found.append(_fewest(graph, nodes, (*starts[1:], len(nodes)), most_bytes))
    whole = max(sum(costs_of(graph, {node: i for i, node in enumerate(graph.nodes)}, cost)), 1)
    priced = [replace(one, cost=_cost_again(one.graph, cost) / whole) for one in found if one.graph.copies]
    least = min(priced, key=lambda one: one.estimate_bytes, default=None)
    fitting = sorted((one for one in priced if one.estimate_bytes <= most_bytes), key=lambda one: one.cost)
    return fitting if least is None or least in fitting else [*fitting, least]


def held_bytes(graph: Graph) -> int:
    """The most bytes of results of operators, on whole tensors, that are live at a time; gradients of parameters,
    which stay, do not count.
    """
    readers = {node: sum(user.op != "output" for user in node.users) for node in graph.nodes}
    root: dict[fx.Node, fx.Node] = {}
    waiting: dict[fx.Node, int] = {}
    size: dict[fx.Node, int] = {}
    lasting = set(graph.gradients.values())
    live = most = 0
    for node in graph.nodes:
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        view = node.op == "call_function" and node.target is not getitem and base_name(node) in VIEWS
        root[node] = root.get(source, source) if view and source is not None else node
        waiting[root[node]] = waiting.get(root[node], 0) + readers[node]
        if root[node] is node and node.op == "call_function":
            size[node] = 0 if node in lasting else _size_bytes(node)
            live += size[node]
        most = max(most, live)
        for read in node.all_input_nodes:
            origin = root.get(read, read)
            waiting[origin] = waiting.get(origin, 0) - 1
            if waiting[origin] == 0:
                live -= size.pop(origin, 0)
    return most


def _fewest(graph: Graph, nodes: Sequence[fx.Node], ends: Sequence[int], most_bytes: int) -> Recomputation:
    """Drop the fewest segments with which the estimate fits, or all where none does. ends: of the segments."""

    def dropping(n_dropped: int) -> Recomputation:
        changed = recomputed(graph, _inner(graph, nodes, ends[:n_dropped]))
        return Recomputation(changed, held_bytes(changed), len(ends), n_dropped)

    low, high = 0, len(ends)
    best = dropping(high)
    while best.estimate_bytes <= most_bytes and high - low > 1:
        middle = (low + high) // 2
        tried = dropping(middle)
        if tried.estimate_bytes <= most_bytes:
            best, high = tried, middle
        else:
            low = middle
    return best


def _cost_again(graph: Graph, cost: OpCost) -> int:
    """What the operators cost that a graph carries out again."""
    return sum(costs_of(graph, {copy: i for i, copy in enumerate(graph.copies)}, cost))


def _inner(graph: Graph, nodes: Sequence[fx.Node], ends: Sequence[int]) -> set[fx.Node]:
    """Operators of the segments that end at `ends` whose results only their own segment and the backward pass read."""
    place = {node: i for i, node in enumerate(nodes)}
    later = set(passes_of(graph)[1])
    found: set[fx.Node] = set()
    begin = 0
    for end in ends:
        inside = nodes[begin:end]
        found.update(n for n in inside if all(u in later or place.get(u, end) < end for u in n.users))
        begin = end
    return found


def _size_bytes(node: fx.Node) -> int:
    """Bytes of the tensor that a node gives; 0 where it gives several, which are taken from it one by one."""
    value = node.meta.get("val")
    return value.numel() * value.dtype.itemsize if isinstance(value, torch.Tensor) else 0
