"""Lower one operator: by its sharding rule, or, where none fits, on whole inputs."""

from math import prod
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from meshemu.errors import UnsupportedOpError
from meshemu.workload.graph import where
from meshemu.workload.lowering import Lowering, attributes_of, base_name, operator_of
from meshemu.workload.rules import find_rule, needs_rule
from meshemu.workload.segments import lower_segments, without_segments
from meshemu.workload.spmd import Gathered, Value

__all__ = ["Operators"]


class Operators:
    """Lowers nodes; strict: an operator without a rule for its cut inputs is refused instead of gathering them."""

    def __init__(self, low: Lowering, *, strict: bool) -> None:
        self._low = low
        self._strict = strict
        self._gathered: dict[tuple[str, str], Gathered] = {}

    @property
    def gathered(self) -> tuple[Gathered, ...]:
        """Operators computed on whole inputs so far, each once per module."""
        return tuple(self._gathered.values())

    def lower(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """The node's Value or tuple of Values; args and kwargs hold Values in place of nodes.

        Raises UnsupportedOpError for an operator that cannot be computed under the plan: one without a rule that is
        random, updates in place or reads strides, and under `strict` any other without a rule for its inputs.
        """
        low, rule = self._low, find_rule(node)
        parted = lower_segments(low, node, args, kwargs)
        if parted is not None:
            return parted
        args, kwargs = without_segments(low, node, args, kwargs)
        values = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Value)]
        ruled = needs_rule(node)
        if not ruled and all(value.replicated for value in values):
            return self._replicated(node, args, kwargs)
        if rule is None and not ruled and not any(value.layout.splits for value in values):
            return self._replicated(node, *pytree.tree_map_only(Value, low.resolve, (args, kwargs)))
        if rule is None and (ruled or self._strict):
            raise low.refuse(node, values)
        if rule is not None:
            mark = low.mark()
            try:
                return rule(low, node, args, kwargs)
            except UnsupportedOpError:
                if ruled or self._strict:
                    raise
                low.roll_back(mark)
        self._note(node, values)
        return self._replicated(node, *pytree.tree_map_only(Value, low.replicate, (args, kwargs)))

    def _note(self, node: fx.Node, values: list[Value]) -> None:
        cut = {value.id: prod(value.shape) * value.dtype.itemsize for value in values if value.layout.splits}
        key = str(node.target), where(node)
        before = self._gathered[key].size_bytes if key in self._gathered else 0
        self._gathered[key] = Gathered(*key, before + sum(cut.values()))

    def _replicated(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Every device computes the same from the same: no rule is needed."""
        low = self._low
        metas: Any = node.meta.get("val")  # None: the operator only looks at its inputs, and may raise
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
