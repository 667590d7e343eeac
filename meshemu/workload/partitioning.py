"""Graph + Plan -> Spmd: apply the rule table to every node, reduce the gradients in buckets as they become ready."""

from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from meshemu.errors import PlanError
from meshemu.workload.graph import Graph, GraphInput, Role
from meshemu.workload.layout import REPLICATED, Layout, Split, even_ranges
from meshemu.workload.lowering import Lowering, attributes_of, base_name, operator_of
from meshemu.workload.plan import Plan
from meshemu.workload.rules import find_rule, needs_rule
from meshemu.workload.spmd import Spmd, Value

__all__ = ["partition"]


def partition(graph: Graph, plan: Plan, bucket_bytes: int) -> Spmd:
    """The SPMD instructions of `graph` under `plan`.

    Gradients that are sums over devices are reduced in buckets of at least `bucket_bytes`, each as soon as its last
    gradient is there. Raises UnsupportedOpError for an operator without a rule and PlanError where the batch does not
    fit the plan.
    """
    low = Lowering(plan)
    batch_size = _batch_size(graph)
    inputs = {
        item.name: low.value(
            item.node.meta["val"].shape, item.node.meta["val"].dtype, _input_layout(item, plan, batch_size)
        )
        for item in graph.inputs
    }
    constants: dict[str, Value] = {}
    for item in graph.inputs:
        low.environment[item.node] = inputs[item.name]
    buckets = _Buckets(low, graph, bucket_bytes)
    for item in graph.inputs:
        buckets.ready(item.node)
    for node in graph.nodes:
        low.begin(node)
        if node.op == "get_attr":
            name = str(node.target)
            tensor = graph.constants[name]
            if name not in constants:
                constants[name] = low.value(tensor.shape, tensor.dtype)
            low.environment[node] = constants[name]
        else:
            low.environment[node] = _lower(low, node)
        buckets.ready(node)
    gradients = buckets.finish()
    loss = low.replicate(low.environment[graph.loss])
    buffers = {name: low.replicate(low.environment[node]) for name, node in graph.buffers.items()}
    return Spmd(tuple(low.instructions), inputs, constants, graph.constants, loss, gradients, buffers)


def _lower(low: Lowering, node: fx.Node) -> Any:
    args = pytree.tree_map_only(fx.Node, low.environment.__getitem__, tuple(node.args))
    kwargs = pytree.tree_map_only(fx.Node, low.environment.__getitem__, dict(node.kwargs))
    values = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Value)]
    rule = find_rule(node)
    if not needs_rule(node) and all(value.replicated for value in values):
        return _replicated(low, node, args, kwargs)
    if rule is None and not needs_rule(node) and not any(value.layout.splits for value in values):
        return _replicated(low, node, *pytree.tree_map_only(Value, low.resolve, (args, kwargs)))
    if rule is None:
        raise low.refuse(node, values)
    return rule(low, node, args, kwargs)


def _replicated(low: Lowering, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Every device computes the same from the same: no rule is needed."""
    metas = node.meta["val"]
    several = isinstance(metas, tuple | list)
    outputs = [None if meta is None else low.like(meta) for meta in (metas if several else [metas])]
    low.compute(
        operator_of(node),
        args,
        [o for o in outputs if o is not None],
        kwargs=kwargs,
        op_class=base_name(node),
        attributes=attributes_of(node),
    )
    return tuple(outputs) if several else outputs[0]


class _Buckets:
    """Gathers gradients as they are computed and reduces each full bucket at once."""

    def __init__(self, low: Lowering, graph: Graph, bucket_bytes: int) -> None:
        self.low = low
        self.bucket_bytes = bucket_bytes
        self.names: dict[fx.Node, list[str]] = {}
        for name, node in graph.gradients.items():
            self.names.setdefault(node, []).append(name)
        self.open: dict[tuple[tuple[str, ...], torch.dtype], list[fx.Node]] = {}
        self.results: dict[str, Value] = {}
        self.count = 0

    def ready(self, node: fx.Node) -> None:
        """Take the gradients that this node computes, if it does."""
        if node not in self.names:
            return
        value: Value = self.low.environment[node]
        if value.layout.splits:
            value = self.low.replicate(value)
        if not value.layout.partial:
            self.results.update(dict.fromkeys(self.names[node], value))
            return
        key = (value.layout.partial, value.dtype)
        bucket = self.open.setdefault(key, [])
        bucket.append(node)
        if sum(_size_bytes(self.low.environment[n]) for n in bucket) >= self.bucket_bytes:
            self._reduce(key)

    def finish(self) -> dict[str, Value]:
        """Reduce what is left; returns parameter name -> replicated gradient."""
        for key in list(self.open):
            self._reduce(key)
        return self.results

    def _reduce(self, key: tuple[tuple[str, ...], torch.dtype]) -> None:
        nodes = self.open.pop(key)
        values = [self.low.environment[node] for node in nodes]
        for node, output in zip(nodes, self.low.all_reduce(values, f"gradients {self.count}"), strict=True):
            self.results.update(dict.fromkeys(self.names[node], output))
        self.count += 1


def _size_bytes(value: Value) -> int:
    return torch.Size(value.shape).numel() * value.dtype.itemsize


def _batch_size(graph: Graph) -> int:
    """Size of dim 0 of the first batch leaf that has dims."""
    sizes = [i.node.meta["val"].shape[0] for i in graph.inputs if i.role is Role.BATCH and i.node.meta["val"].dim()]
    return int(sizes[0]) if sizes else 0


def _input_layout(item: GraphInput, plan: Plan, batch_size: int) -> Layout:
    """Batch leaves are cut by samples, and images (the last two of four or more dims) by rows and columns."""
    shape = tuple(item.node.meta["val"].shape)
    if item.role is not Role.BATCH or not shape:
        return REPLICATED
    splits = []
    if plan.batch_axes:
        parts = plan.size(plan.batch_axes)
        if batch_size < parts:
            over = " x ".join(plan.batch_axes)
            raise PlanError(
                f"plan {over} needs at least one sample a device: batch size {batch_size} < {parts} devices"
            )
        if shape[0] == batch_size:
            splits.append(Split(0, plan.batch_axes, even_ranges(batch_size, parts)))
    if plan.has("h") and len(shape) >= 4:
        for dim, axis in ((len(shape) - 2, "h"), (len(shape) - 1, "w")):
            splits.append(Split(dim, (axis,), even_ranges(shape[dim], plan.size((axis,)))))
    return Layout(tuple(splits))
