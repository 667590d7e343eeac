"""Activations that are not kept for the backward pass but made again: a Graph -> Graph transformation.

Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016. The operators of the forward pass stay as they are.
Where an operator of the backward pass reads something that is not kept, copies of the operators that make it, back to
what is kept, come just before it. They are the same operators on the same blocks, so that results have the same bits:
random ones draw the same numbers, and batch norm takes its statistics anew but does not update the running ones twice.
"""

from collections.abc import Collection
from dataclasses import replace

from torch import fx
from torch.fx.node import map_arg

from meshemu.workload.decisions import Decided
from meshemu.workload.dependence import updated_buffers, without_parameters
from meshemu.workload.graph import Graph, updated_by
from meshemu.workload.stages import passes_of

__all__ = ["droppable", "recomputed"]

SUFFIX = "_again"
"""What the names of operators end in that make something again."""

RUNNING_STATISTICS = slice(3, 5)
"""Arguments of batch norm that it updates."""


def droppable(graph: Graph) -> tuple[fx.Node, ...]:
    """Forward operators that may be made again, in order.

    Not those that every stage makes itself anyway, those that values were asked of, and results of the step.
    """
    forward, _ = passes_of(graph)
    loose = without_parameters(graph, updated_buffers(graph))
    results = {graph.loss, *graph.metrics.values(), *graph.buffers.values(), *graph.gradients.values()}
    return tuple(
        node
        for node in forward
        if node.op == "call_function" and node not in loose and node not in results and not _asks(node)
    )


def recomputed(graph: Graph, dropped: Collection[fx.Node]) -> Graph:
    """`graph` without keeping `dropped`, some of its `droppable` operators, for the backward pass."""
    whole = graph.nodes[0].graph
    _, backward = passes_of(graph)
    later = set(backward)
    target = fx.Graph()
    once: dict[fx.Node, fx.Node] = {}
    again: dict[fx.Node, fx.Node] = {}
    for node in whole.nodes:
        if node not in later:
            once[node] = target.node_copy(node, once.__getitem__)
            continue
        for source in _needed(node, dropped, again):
            again[source] = _copy_again(target, source, again, once)
        once[node] = target.node_copy(node, lambda n: again.get(n, once[n]))
    kept = {once[node]: once[origin] for node, origin in graph.origins.items()}
    copies = {copy: once[node] for node, copy in again.items()}
    places = {node: i for i, node in enumerate(target.nodes)}
    mapped = {once[node] for node in graph.nodes}
    return replace(
        graph,
        inputs=tuple(replace(item, node=once[item.node]) for item in graph.inputs),
        nodes=tuple(sorted({*mapped, *copies}, key=places.__getitem__)),
        loss=None if graph.loss is None else once[graph.loss],
        gradients={name: once[node] for name, node in graph.gradients.items()},
        buffers={name: once[node] for name, node in graph.buffers.items()},
        metrics={name: once[node] for name, node in graph.metrics.items()},
        origins=kept | copies,
        copies=copies,
    )


def _asks(node: fx.Node) -> bool:
    """Whether a node stands for a decision that was taken on values."""
    return isinstance(node.target, Decided)


def _needed(reader: fx.Node, dropped: Collection[fx.Node], again: Collection[fx.Node]) -> list[fx.Node]:
    """What has to be made again for `reader`, in the order of the forward pass."""
    found: set[fx.Node] = set()
    front = [source for source in reader.all_input_nodes if source in dropped and source not in again]
    while front:
        node = front.pop()
        if node in found:
            continue
        found.add(node)
        front += [s for s in node.all_input_nodes if (s in dropped or _is_tuple(s)) and s not in again]
    return sorted(found)


def _is_tuple(node: fx.Node) -> bool:
    """Whether a node has several results, which are kept one by one."""
    return node.op == "call_function" and isinstance(node.meta.get("val"), tuple | list)


def _copy_again(
    target: fx.Graph, node: fx.Node, again: dict[fx.Node, fx.Node], once: dict[fx.Node, fx.Node]
) -> fx.Node:
    """A copy of a forward operator that reads copies of what is made again; it updates nothing."""

    def read(source: fx.Node) -> fx.Node:
        return again.get(source, once[source])

    arguments = list(map_arg(node.args, read))
    if updated_by(node):
        arguments[RUNNING_STATISTICS] = (None, None)
    copy = target.create_node(
        node.op, node.target, tuple(arguments), dict(map_arg(node.kwargs, read)), name=f"{node.name}{SUFFIX}"
    )
    copy.meta = dict(node.meta)
    return copy
