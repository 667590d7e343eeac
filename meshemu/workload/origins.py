"""Which operator of the forward pass each node of the backward pass differentiates, as autograd itself knows it.

Autograd numbers its nodes when the forward pass makes them. While it runs backward, hooks write the number of the
running node into the metadata of whatever is traced; the numbers survive a second trace.
"""

from collections.abc import Iterator, Mapping

import torch
import torch.fx.traceback as fx_traceback
from torch import fx

__all__ = ["number_backward", "origins_of"]

KEY = "differentiates"
"""Under which a traced node keeps the number, in the metadata that tracing copies."""


def number_backward(loss: torch.Tensor) -> None:
    """From now on, what the backward pass of `loss` traces carries the number of its autograd node."""
    for node in _reachable(loss):
        number = _number(node)

        def enter(_gradients: object, number: int = number) -> None:
            fx_traceback.get_current_meta()["custom"] = {KEY: number}

        def leave(_inputs: object, _outputs: object) -> None:
            fx_traceback.get_current_meta().pop("custom", None)

        node.register_prehook(enter)
        node.register_hook(leave)


def origins_of(first: fx.Graph, second: fx.Graph) -> Mapping[fx.Node, fx.Node]:
    """Node of the backward pass in `second` -> node of the forward pass whose gradient it computes.

    first: the trace of the step; second: the trace of `first`. Sums of gradients that meet, and what autograd did not
    make, have no entry.
    """
    numbers = {node.name: node.meta.get("seq_nr") for node in first.nodes if KEY not in _marks(node)}
    forward: dict[int, fx.Node] = {}
    for node in second.nodes:
        number = numbers.get(_source(node))
        if number is not None and KEY not in _marks(node):
            forward.setdefault(number, node)
    marked = {node: forward.get(_marks(node)[KEY]) for node in second.nodes if KEY in _marks(node)}
    return {node: origin for node, origin in marked.items() if origin is not None}


def _reachable(loss: torch.Tensor) -> Iterator[torch.autograd.graph.Node]:
    """Every autograd node behind `loss`, once."""
    seen: set[torch.autograd.graph.Node] = set()
    front = [loss.grad_fn]
    while front:
        node = front.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        front += [behind for behind, _ in node.next_functions]


def _number(node: torch.autograd.graph.Node) -> int:
    return int(node._sequence_nr())


def _marks(node: fx.Node) -> Mapping[str, int]:
    marks = node.meta.get("custom")
    return marks if isinstance(marks, dict) else {}


def _source(node: fx.Node) -> str:
    """Name of the node of the first trace that this one repeats."""
    sources = node.meta.get("from_node")
    return str(sources[-1].name) if sources else ""
