"""Parameters: how devices store them between steps, and when they are pooled for use.

Over the axis "shard" every device stores a block of each parameter (ZeRO: Rajbhandari et al. 2020). Levels 1 and 2
pool all of them at the beginning of a step: what ZeRO gathers after the update of the step before. Level 3 pools the
parameters of a module where its forward pass reads them, forgets them, and pools them again for the backward pass, as
FSDP does (Zhao et al. 2023).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import fx

from meshemu.workload.formats.storing import Storing
from meshemu.workload.graph import Graph, GraphInput, Role
from meshemu.workload.layout import REPLICATED, Layout, Split, even_ranges
from meshemu.workload.lowering import Lowering
from meshemu.workload.plan import Plan
from meshemu.workload.spmd import Value
from meshemu.workload.stages import Stages

__all__ = ["ParameterLayout", "Parameters", "parameter_layouts"]

SHARD = "shard"


@dataclass(frozen=True)
class ParameterLayout:
    """working: of the blocks that operators read. stored: of those that a device keeps and updates."""

    working: Layout = REPLICATED
    stored: Layout = REPLICATED


def parameter_layouts(graph: Graph, plan: Plan, working: Mapping[str, Layout]) -> dict[str, ParameterLayout]:
    """Parameter name -> its layouts; working: how those are cut that operators do not read whole."""
    return {
        item.name: _layouts(tuple(item.node.meta["val"].shape), working.get(item.name, REPLICATED), plan)
        for item in graph.inputs
        if item.role is Role.PARAMETER
    }


def _layouts(shape: tuple[int, ...], working: Layout, plan: Plan) -> ParameterLayout:
    """Over "shard", the dim with the largest block is cut further; a parameter too small for that is stored whole."""
    parts = plan.size((SHARD,))
    sizes = [
        n if (split := working.split_of(dim)) is None else min(split.length(c) for c in range(len(split.ranges)))
        for dim, n in enumerate(shape)
    ]
    dim = max(range(len(shape)), key=lambda d: sizes[d], default=0)
    held = working.split_of(dim) or Split(dim, (), ((0, shape[dim] if shape else 0),))
    if not plan.has(SHARD) or min((hi - lo for lo, hi in held.ranges), default=0) < parts:
        return ParameterLayout(working, working)
    ranges = tuple((lo + a, lo + b) for lo, hi in held.ranges for a, b in even_ranges(hi - lo, parts))
    others = tuple(split for split in working.splits if split.dim != dim)
    return ParameterLayout(working, Layout((*others, Split(dim, (*held.axes, SHARD), ranges, held.segments))))


class Parameters:
    """The parameters of a step: `inputs` as stored; `read` gives them as operators need them, in their format."""

    def __init__(
        self,
        low: Lowering,
        stages: Stages,
        layouts: Mapping[str, ParameterLayout],
        bucket_bytes: int,
        storing: Storing | None = None,
    ) -> None:
        self._low = low
        self._items = [item for item in stages.graph.inputs if item.role is Role.PARAMETER]
        self._layouts = layouts
        self._bucket_bytes = bucket_bytes
        self._by_node = {item.node: item for item in self._items}
        self.inputs: dict[str, Value] = {}
        for item in self._items:
            with low.on(stages.readers(item.node)):
                self.inputs[item.name] = low.like(item.node.meta["val"], layouts[item.name].stored)
        self._held = self.inputs if storing is None else storing.weights(self.inputs)
        self._pooled: dict[str, Value] = {}
        sharded = [item for item in self._items if item.node.users and self._sharded(item.name)]
        self.pooled_per_pass = bool(sharded) and low.plan.zero == 3
        if not self.pooled_per_pass:
            self._pool_all(sharded)

    def __contains__(self, node: object) -> bool:
        """Whether a node is a parameter."""
        return node in self._by_node

    def read(self, node: fx.Node) -> Value:
        """A parameter in its working layout."""
        name = self._by_node[node].name
        if not self._sharded(name):
            return self._held[name]
        if name not in self._pooled:
            self._pool(self._module_of(name), paced=True)
        return self._pooled[name]

    def forget(self) -> None:
        """Let go of what was pooled for one pass."""
        if self.pooled_per_pass:
            self._pooled.clear()

    def _sharded(self, name: str) -> bool:
        layouts = self._layouts[name]
        return layouts.stored != layouts.working

    def _module_of(self, name: str) -> list[GraphInput]:
        """The parameter and those others of its module that are sharded, used, here, and of its number format."""
        owner, dtype = name.rpartition(".")[0], self.inputs[name].dtype
        return [
            item
            for item in self._items
            if item.name.rpartition(".")[0] == owner
            and item.node.users
            and self._sharded(item.name)
            and self.inputs[item.name].dtype == dtype
            and self.inputs[item.name].layout.held_on(self._low.stages)
        ]

    def _pool_all(self, items: list[GraphInput]) -> None:
        """Everything, in buckets."""
        kinds: dict[tuple[torch.dtype, tuple[int, ...]], list[GraphInput]] = {}
        for item in items:
            value = self.inputs[item.name]
            kinds.setdefault((value.dtype, value.layout.stages), []).append(item)
        for (dtype, stages), alike in kinds.items():
            bucket: list[GraphInput] = []
            size_bytes = 0
            for item in alike:
                bucket.append(item)
                size_bytes += prod(self.inputs[item.name].shape) * dtype.itemsize
                if size_bytes >= self._bucket_bytes or item is alike[-1]:
                    with self._low.on(stages):
                        self._pool(bucket)
                    bucket, size_bytes = [], 0

    def _pool(self, items: list[GraphInput], *, paced: bool = False) -> None:
        names = [item.name for item in items]
        owners = dict.fromkeys(name.rpartition(".")[0] or name for name in names)
        label = f"parameters {next(iter(owners))}" + (f" to {list(owners)[-1]}" if len(owners) > 1 else "")
        sources = [self._held[name] for name in names]
        wanted = [self._layouts[name].working for name in names]
        self._pooled.update(
            zip(names, self._low.all_gather(sources, wanted, (SHARD,), label, paced), strict=True)
        )
