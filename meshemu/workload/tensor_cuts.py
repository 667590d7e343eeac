"""Choose how the axis "tensor" cuts each weight, by a rehearsal of the forward pass.

A product whose activation arrives whole gets a weight cut by what it puts out (column-parallel: nothing moves). A
product whose activation arrives cut along the contracted dim gets a weight cut the same way (row-parallel: a sum over
devices follows), unless it puts out more than it takes in: then the activation is gathered for a column cut. This is
the pairing of Megatron (Shoeybi et al. 2019), found by propagation instead of by names. Column cuts fall where later
views keep them, e.g. between heads, and within the queries, keys and values that one weight makes. Parameters that the
rehearsal reads in one cut only, such as the bias of a column-parallel product, are stored in that cut.
"""

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from torch import fx

from meshemu.errors import PlanError
from meshemu.workload.graph import Graph, GraphInput, Role
from meshemu.workload.layout import REPLICATED, Layout, Split, even_ranges
from meshemu.workload.lowering import Lowering
from meshemu.workload.products import Product, product_of, root_of
from meshemu.workload.reach import blocked_by
from meshemu.workload.spmd import Fetch, Value, inputs_of

__all__ = ["TENSOR", "TensorCuts"]

TENSOR = "tensor"
MOST_SEGMENTS = 8
"""Of one weight that stands for several: queries, keys and values; gates of a recurrent cell."""


class TensorCuts:
    """Stands in for `Parameters` in the rehearsal: parameters are whole until `decide` cuts one.

    modules: (glob, "column" | "row" | "replicate"), first match wins, before any choice of ours.
    """

    pooled_per_pass = False

    def __init__(self, low: Lowering, graph: Graph, modules: tuple[tuple[str, str], ...]) -> None:
        self._low = low
        self._modules = modules
        self._items: dict[fx.Node, GraphInput] = {
            item.node: item for item in graph.inputs if item.role is Role.PARAMETER
        }
        self._whole = {node: low.like(node.meta["val"]) for node in self._items}
        self._chosen: dict[fx.Node, Layout] = {}
        self._decided: set[fx.Node] = set()
        self._weights: set[str] = set()

    def __contains__(self, node: object) -> bool:
        """Whether a node is a parameter."""
        return node in self._items

    def read(self, node: fx.Node) -> Value:
        """A parameter in the cut chosen for it so far."""
        return self._low.fetch(self._whole[node], self._chosen.get(node, REPLICATED))

    def forget(self) -> None:
        """Nothing is pooled for a pass."""

    def decide(self, node: fx.Node, read: Callable[[fx.Node], Any]) -> None:
        """Choose the cut of the weight that `node` multiplies with, when it is met first."""
        product = product_of(node)
        if product is None:
            return
        found = root_of(product.weight, self._items)
        if found is None or found[0] in self._decided:
            return
        parameter, dims = found
        owner = self._items[parameter].name.rpartition(".")[0]
        self._weights.add(owner)
        self._decided.add(parameter)
        split = self._split(product, owner, read)
        if split is not None:
            self._chosen[parameter] = Layout((split.moved(dims[split.dim]),))

    def layouts(self) -> dict[str, Layout]:
        """Parameter name -> its cut, for those that have one.

        Raises PlanError for a glob that matches no module with a weight.
        """
        for glob, _ in self._modules:
            if not any(fnmatchcase(owner, glob) for owner in self._weights):
                some = ", ".join(sorted(self._weights)[:6])
                raise PlanError(f"plan.modules.{glob!r} matches no module with a weight; there are e.g. {some}")
        chosen = {self._items[node].name: layout for node, layout in self._chosen.items()}
        return self._followers() | chosen

    def _split(self, product: Product, owner: str, read: Callable[[fx.Node], Any]) -> Split | None:
        """The cut of one dim of the product's weight, or None."""
        shape = product.weight.meta["val"].shape
        wish = next((cut for glob, cut in self._modules if fnmatchcase(owner, glob)), None)
        parts = self._low.plan.size((TENSOR,))
        activation: Value = self._low.resolve(read(product.activation))
        arriving = activation.layout.split_of(product.activation_dim)
        contracted = shape[product.contracted_dim]
        if wish == "replicate":
            return None
        smaller = wish is None and shape[product.output_dim] <= contracted
        if arriving is not None and arriving.axes == (TENSOR,) and (wish == "row" or smaller):
            return arriving.moved(product.contracted_dim)
        if wish == "row":
            return Split(product.contracted_dim, (TENSOR,), even_ranges(contracted, parts))
        return self._column(product, shape[product.output_dim], parts, required=wish == "column")

    def _column(self, product: Product, size: int, parts: int, *, required: bool) -> Split | None:
        """A cut by what is put out, in units that later views do not tear apart; None if there is no such cut."""
        for segments in (n for n in range(1, MOST_SEGMENTS + 1) if size % n == 0):
            segment = size // segments
            for unit in (n for n in range(1, segment + 1) if segment % n == 0 and segment // n >= parts):
                ranges = tuple((lo * unit, hi * unit) for lo, hi in even_ranges(segment // unit, parts))
                split = Split(product.output_dim, (TENSOR,), ranges, segments)
                if not blocked_by(product.node, split.moved(product.result_dim)):
                    return split
        return Split(product.output_dim, (TENSOR,), even_ranges(size, parts)) if required else None

    def _followers(self) -> dict[str, Layout]:
        """Parameters that no product decided on and that are read in one and the same cut everywhere."""
        names = {value.id: self._items[node].name for node, value in self._whole.items() if node not in self._decided}
        cuts: dict[str, set[Layout]] = {}
        for instruction in self._low.instructions:
            for value in inputs_of(instruction):
                if value.id in names:
                    layout = instruction.output.layout if isinstance(instruction, Fetch) else REPLICATED
                    cuts.setdefault(names[value.id], set()).add(layout)
        return {
            name: layout
            for name, (layout, *others) in ((name, tuple(layouts)) for name, layouts in cuts.items())
            if not others and layout.axes == (TENSOR,)
        }
