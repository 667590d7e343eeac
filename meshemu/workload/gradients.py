"""Gradients: summed over micro-batches on each device, then over devices, in buckets and into parameters' layouts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import fx

from meshemu.workload.formats.storing import Storing
from meshemu.workload.layout import Layout
from meshemu.workload.lowering import Lowering
from meshemu.workload.spmd import Value
from meshemu.workload.stages import Stages

__all__ = ["Gradients", "accumulated"]


def accumulated(low: Lowering, total: Value | None, term: Value, micro_batches: int, *, last: bool) -> Value:
    """`term` added to the total of the micro-batches before it; the last one makes a mean of the total.

    Terms of sums over devices are added as they are: nothing moves. Those of maxima and the like are combined first.
    """
    if micro_batches > 1 and term.combine != "sum":
        term = low.resolve(term)
    if total is not None:
        output = low.value(term.shape, term.dtype, term.layout, term.combine)
        (term,) = low.compute(torch.add, (total, term), [output], op_class="add")
    if last and micro_batches > 1:
        output = low.value(term.shape, term.dtype, term.layout, term.combine)
        (term,) = low.compute(torch.div, (term, micro_batches), [output], op_class="div")
    return term


@dataclass(frozen=True)
class _Route:
    """How a gradient gets to its parameter's layout: scattered over some axes, summed over others, on its stage.

    uneven: if it is summed, the axes along which its blocks differ in size. A buffer is cut into chunks of equal size,
    and where a chunk begins decides in what order terms are added (and which of them are rounded as they are sent). So
    groups that sum the same block each for themselves must have buffers of one size: else their copies would differ.
    """

    stages: tuple[int, ...]
    scattered: tuple[str, ...]
    summed: tuple[str, ...]
    uneven: tuple[str, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class _Item:
    """One term of the gradient of a parameter: the node that makes it, its total, and the layout that it ends in."""

    name: str
    node: fx.Node
    value: Value
    layout: Layout


class Gradients:
    """Takes gradients as they are computed and reduces each full bucket at once.

    layouts: parameter name -> layout that its gradient ends in. scatter: whether a device gets its block of a sum by a
    reduce-scatter (ZeRO 2 and 3), or gets it all and keeps its block (ZeRO 1). storing: is told what may be sent in the
    format of communication.
    """

    def __init__(
        self,
        low: Lowering,
        stages: Stages,
        layouts: Mapping[str, Layout],
        *,
        bucket_bytes: int,
        micro_batches: int,
        scatter: bool,
        storing: Storing | None = None,
    ) -> None:
        self._low = low
        self._layouts = layouts
        self._bucket_bytes = bucket_bytes
        self._micro_batches = micro_batches
        self._scatter = scatter
        self._storing = storing
        self._names: dict[fx.Node, list[str]] = {}
        self._terms = stages.terms
        for name, nodes in stages.terms.items():
            for node in nodes:
                self._names.setdefault(node, []).append(name)
        self._taken: set[tuple[fx.Node, int]] = set()
        self._totals: dict[fx.Node, Value] = {}
        self._open: dict[_Route, list[_Item]] = {}
        self._results: dict[tuple[str, fx.Node], Value] = {}
        self._count = 0

    def take(self, node: fx.Node, value: Value, micro_batch: int) -> None:
        """The value of a node in a micro-batch, if it is a gradient; counts once."""
        if node not in self._names or (node, micro_batch) in self._taken:
            return
        self._taken.add((node, micro_batch))
        last = micro_batch == self._micro_batches - 1
        total = accumulated(self._low, self._totals.get(node), value, self._micro_batches, last=last)
        if self._storing is not None:
            self._storing.exchangeable(total)
        self._totals[node] = total
        if last:
            for name in self._names[node]:
                self._send(_Item(name, node, total, self._layouts[name]))

    def finish(self) -> dict[str, Value]:
        """Reduce what is left; parameter name -> gradient."""
        for route in list(self._open):
            self._reduce(route)
        return {
            name: self._joined([self._results[name, node] for node in nodes], self._layouts[name], name)
            for name, nodes in self._terms.items()
        }

    def _joined(self, terms: Sequence[Value], layout: Layout, name: str) -> Value:
        """The sum of terms of several stages, made on the first that holds the parameter, and brought to all."""
        low = self._low
        low.label(f"gradient of {name}")
        total = terms[0]
        if len(terms) > 1:
            with low.on(layout.stages[:1]):
                total = low.bring(total)
                for term in terms[1:]:
                    output = low.value(total.shape, total.dtype, total.layout)
                    (total,) = low.compute(torch.add, (total, low.bring(term)), [output], op_class="add")
        with low.on(layout.stages):
            return low.fetch(total, layout)

    def _send(self, item: _Item) -> None:
        layout = item.value.layout
        if not layout.partial or self._low.is_resolved(item.value):
            self._results[item.name, item.node] = self._low.fetch(item.value, item.layout)
            return
        scattered = self._low.scattered_axes(item.value, item.layout) if self._scatter else ()
        summed = tuple(axis for axis in layout.partial if axis not in scattered)
        uneven = layout.uneven_axes if summed else ()
        route = _Route(layout.stages, scattered, summed, uneven, item.value.dtype)
        bucket = self._open.setdefault(route, [])
        bucket.append(item)
        if sum(self._block_bytes(i.value) for i in bucket) >= self._bucket_bytes:
            self._reduce(route)

    def _reduce(self, route: _Route) -> None:
        """One buffer for all gradients of a bucket; a gradient that several parameters share travels once."""
        with self._low.on(route.stages):
            self._reduce_here(route, self._open.pop(route))

    def _reduce_here(self, route: _Route, items: list[_Item]) -> None:
        shared = {(item.value.id, item.layout if route.scattered else None): item for item in items}
        values = [item.value for item in shared.values()]
        label = f"gradients {self._count}"
        if route.scattered:
            wanted = [item.layout for item in shared.values()]
            values = list(self._low.reduce_scatter(values, wanted, route.scattered, label))
        if route.summed:
            values = list(self._low.all_reduce(values, label))
        reduced = dict(zip(shared, values, strict=True))
        for item in items:
            value = reduced[item.value.id, item.layout if route.scattered else None]
            self._results[item.name, item.node] = self._low.fetch(value, item.layout)
        self._count += 1

    def _block_bytes(self, value: Value) -> int:
        return prod(value.layout.local_shape(value.shape, self._low.plan.at(0))) * value.dtype.itemsize
