"""Partition a captured step: apply the sharding rules node by node and write the instructions down.

A rule sees whole values and calls the methods of `Lowering`: `compute` for work on blocks, `fetch` and `push_add` for
halos, `resolve` for sums over devices, and `sharded` for every operator whose dims can be named by letters.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from meshemu.errors import UnsupportedOpError
from meshemu.workload.graph import module_of
from meshemu.workload.layout import REPLICATED, Layout, Split
from meshemu.workload.plan import Plan
from meshemu.workload.spmd import AllReduce, Combine, Compute, Fetch, Instruction, LocalShape, PushAdd, Value

__all__ = ["Lowering", "Rule", "attributes_of", "base_name", "operator_of", "split_letters"]

Rule = Callable[["Lowering", fx.Node, tuple[Any, ...], dict[str, Any]], Any]
"""(lowering, node, args, kwargs) -> the node's Value or tuple of Values; args hold Values in place of nodes."""


class Lowering:
    """Writes instructions; one per captured graph and plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.instructions: list[Instruction] = []
        self.environment: dict[fx.Node, Any] = {}
        self.n_random = 0
        self._n_values = 0
        self._fetched: dict[tuple[int, Layout, float], Value] = {}
        self._resolved: dict[int, Value] = {}
        self._label = ""

    def begin(self, node: fx.Node) -> None:
        """Label what follows with the node's module and name."""
        module = module_of(node)
        self._label = f"{module}:{node.name}" if module else node.name

    def value(
        self, shape: Sequence[int], dtype: torch.dtype, layout: Layout = REPLICATED, combine: Combine = "sum"
    ) -> Value:
        """A new value."""
        self._n_values += 1
        return Value(self._n_values - 1, tuple(int(n) for n in shape), dtype, layout, combine)

    def like(self, meta: torch.Tensor, layout: Layout = REPLICATED) -> Value:
        """A new value of the shape and dtype of a fake tensor."""
        return self.value(meta.shape, meta.dtype, layout)

    def compute(
        self,
        target: Callable[..., Any],
        args: Sequence[Any],
        outputs: Sequence[Value],
        *,
        op_class: str,
        kwargs: Mapping[str, Any] | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> tuple[Value, ...]:
        """Every device calls `target` on its blocks."""
        inputs = tuple(leaf for leaf in pytree.tree_leaves((args, kwargs or {})) if isinstance(leaf, Value))
        differing = {axis for value in inputs for axis in value.layout.axes}
        if any(not differing <= set(value.layout.axes) for value in outputs):
            raise AssertionError(f"{self._label}: an output of {op_class} does not follow its inputs along {differing}")
        self.instructions.append(
            Compute(
                target, tuple(args), dict(kwargs or {}), inputs, tuple(outputs), op_class, self._label, attributes or {}
            )
        )
        return tuple(outputs)

    def fetch(self, value: Value, layout: Layout, fill: float = 0.0) -> Value:
        """`value` with its blocks (or windows) as `layout` says; the same request is served once."""
        value = self.resolve(value)
        if value.layout == layout:
            return value
        key = (value.id, layout, fill)
        if key not in self._fetched:
            output = self.value(value.shape, value.dtype, layout)
            self.instructions.append(Fetch(value, output, fill, f"{self._label} {_reach(value, layout)}"))
            self._fetched[key] = output
        return self._fetched[key]

    def push_add(self, value: Value, layout: Layout) -> Value:
        """Add windows back to the blocks of `layout` that they were fetched from."""
        if value.layout == layout:
            return value
        output = self.value(value.shape, value.dtype, layout)
        self.instructions.append(PushAdd(value, output, f"{self._label} halo adjoint"))
        return output

    def all_reduce(self, values: Sequence[Value], label: str) -> tuple[Value, ...]:
        """Combine partial values (same axes, same dtype) as one buffer."""
        axes, combine = values[0].layout.partial, values[0].combine
        outputs = tuple(self.value(v.shape, v.dtype, Layout(v.layout.splits)) for v in values)
        self.instructions.append(AllReduce(tuple(values), outputs, axes, combine, label))
        for value, output in zip(values, outputs, strict=True):
            self._resolved[value.id] = output
        return outputs

    def resolve(self, value: Value) -> Value:
        """`value` with no partial axis left."""
        if not value.layout.partial:
            return value
        if value.id not in self._resolved:
            self.all_reduce([value], self._label)
        return self._resolved[value.id]

    def replicate(self, value: Value) -> Value:
        """`value` whole on every device."""
        return self.fetch(value, REPLICATED)

    def refuse(self, node: fx.Node, values: Sequence[Value]) -> UnsupportedOpError:
        """The error for an operator that has no rule."""
        where = module_of(node) or "the loss"
        cuts = dict.fromkeys(f"dim {s.dim} over {' x '.join(s.axes)}" for v in values for s in v.layout.splits)
        given = f" for an input cut in {', '.join(cuts)}" if cuts else ""
        return UnsupportedOpError(
            f"operator {node.target} (node {node.name}, module {where}) has no sharding rule{given} under plan "
            f"{self.plan.describe()}"
        )

    def sharded(
        self,
        node: fx.Node,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        letters: Sequence[str],
        outputs: Sequence[str],
        *,
        free: str,
        summed: str = "",
        target: Callable[..., Any] | None = None,
        op_class: str | None = None,
        local_shape_args: Sequence[int] = (),
        keep_partial: bool = False,
    ) -> Any:
        """Lower an operator whose dims are named by letters.

        letters: the dims of every Value among args and kwargs, in order, one letter a dim; a dim of size 1 that
        broadcasts may carry the letter too. outputs: the same for each output of the node. free: letters that may be
        cut because blocks along them are independent. summed: letters that may be cut although an output lacks them:
        that output is then a partial sum. Other cut dims are gathered first. local_shape_args: positions in args to
        replace by the shape of output 0's block. keep_partial: the operator is linear in its one partial input.
        """
        metas = node.meta["val"]
        metas = metas if isinstance(metas, tuple | list) else (metas,)
        leaves, spec = pytree.tree_flatten((list(args), dict(kwargs)))
        values = [leaf for leaf in leaves if isinstance(leaf, Value)]
        partial = values[0].layout.partial if keep_partial else ()
        if not partial:
            values = [self.resolve(v) for v in values]
        splits = split_letters(values, letters, outputs, free, summed, metas)
        placed = iter(
            v if partial else self.fetch(v, _layout(v.shape, names, splits))
            for v, names in zip(values, letters, strict=True)
        )
        replaced = [next(placed) if isinstance(leaf, Value) else leaf for leaf in leaves]
        new_args, new_kwargs = pytree.tree_unflatten(replaced, spec)
        results: list[Value | None] = []
        for meta, names in zip(metas, outputs, strict=True):
            if meta is None:
                results.append(None)
                continue
            missing = tuple(axis for letter, split in splits.items() if letter not in names for axis in split.axes)
            layout = _layout(tuple(meta.shape), names, splits)
            results.append(self.like(meta, Layout(layout.splits, missing + partial)))
        for position in local_shape_args:
            if results[0] is not None:
                new_args[position] = LocalShape(results[0])
        self.compute(
            target or operator_of(node),
            new_args,
            [r for r in results if r is not None],
            op_class=op_class or base_name(node),
            kwargs=new_kwargs,
            attributes=attributes_of(node) if target is None else {},
        )
        return tuple(results) if isinstance(node.meta["val"], tuple | list) else results[0]


def base_name(node: fx.Node) -> str:
    """ATen name without namespace and overload, e.g. "convolution_backward"."""
    target = node.target
    return target._opname if isinstance(target, torch._ops.OpOverload) else operator.attrgetter("__name__")(target)


def operator_of(node: fx.Node) -> Callable[..., Any]:
    """What a call node calls."""
    if not callable(node.target):
        raise AssertionError(f"node {node.name} calls {node.target!r}")
    return node.target


def attributes_of(node: fx.Node) -> dict[str, Any]:
    """The arguments of an ATen operator that are no tensors, by their names in its schema."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return {}
    named = dict(zip((a.name for a in target._schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    return {name: value for name, value in named.items() if not isinstance(value, fx.Node)}


def split_letters(
    values: Sequence[Value],
    letters: Sequence[str],
    outputs: Sequence[str],
    free: str,
    summed: str,
    metas: Sequence[torch.Tensor | None],
) -> dict[str, Split]:
    """Letter -> the cut that all values and outputs with this letter get (the first value's cut wins).

    Where a dim of size 1 broadcasts along a letter, its own cut does not count.
    """
    kept_outputs = [names for names, meta in zip(outputs, metas, strict=True) if meta is not None]
    named = [pair for v, names in zip(values, letters, strict=True) for pair in zip(names, v.shape, strict=True)]
    sizes = {letter: n for letter, n in named if n != 1}
    chosen: dict[str, Split] = {}
    for value, names in zip(values, letters, strict=True):
        for split in value.layout.splits:
            letter = names[split.dim]
            everywhere = letter in free and all(letter in out for out in kept_outputs)
            taken = letter in chosen or any(set(split.axes) & set(other.axes) for other in chosen.values())
            if (everywhere or letter in summed) and not taken and split.tiles(sizes.get(letter, 1)):
                chosen[letter] = split
    return chosen


def _layout(shape: tuple[int, ...], names: str, splits: Mapping[str, Split]) -> Layout:
    cut = []
    for dim, letter in enumerate(names):
        split = splits.get(letter)
        if split is not None and split.tiles(shape[dim]):
            cut.append(split.moved(dim))
    return Layout(tuple(cut))


def _reach(value: Value, layout: Layout) -> str:
    """What a fetch is for, in one word."""
    held = {(s.dim, s.axes) for s in value.layout.splits}
    wanted = {(s.dim, s.axes) for s in layout.splits}
    if held == wanted:
        return "halo"
    return "gather" if wanted < held else "slice" if held < wanted else "reshard"
