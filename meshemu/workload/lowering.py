"""Partition a captured step: apply the sharding rules node by node and write the instructions down.

A rule sees whole values and calls the methods of `Lowering`: `compute` for work on blocks, `fetch` and `push_add` for
halos, `resolve` for sums over devices, and `sharded` for every operator whose dims can be named by letters.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from meshemu.errors import UnsupportedOpError
from meshemu.program.traffic import stage_label
from meshemu.workload.graph import module_of, where
from meshemu.workload.layout import REPLICATED, Layout, Split, gathered_axes
from meshemu.workload.plan import Plan
from meshemu.workload.rounder import Rounder
from meshemu.workload.spmd import Collective, Combine, Compute, Fetch, Instruction, LocalShape, PushAdd, Value
from meshemu.workload.windows import pieces

__all__ = ["Lowering", "Rule", "attributes_of", "base_name", "operator_of", "split_letters"]

Rule = Callable[["Lowering", fx.Node, tuple[Any, ...], dict[str, Any]], Any]
"""(lowering, node, args, kwargs) -> the node's Value or tuple of Values; args hold Values in place of nodes."""


class Lowering:
    """Writes instructions; one per captured graph and plan. rounder: of a step that has number formats by role."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rounder: Rounder | None = None
        self.instructions: list[Instruction] = []
        self.environment: dict[fx.Node, Any] = {}
        self.n_random = 0
        self.stages: tuple[int, ...] = ()
        self._n_values = 0
        self._fetched: dict[tuple[int, Layout, float], Value] = {}
        self._resolved: dict[int, Value] = {}
        self._label = ""

    def begin(self, node: fx.Node, suffix: str = "") -> None:
        """Label what follows with the node's module and name."""
        module = module_of(node)
        self.label((f"{module}:{node.name}" if module else node.name) + suffix)

    def label(self, text: str) -> None:
        """Label what follows."""
        self._label = text

    @contextmanager
    def on(self, stages: tuple[int, ...]) -> Iterator[None]:
        """Meanwhile, these stages of the pipeline carry out what is written, and hold it; () stands for all."""
        before, self.stages = self.stages, stages
        try:
            yield
        finally:
            self.stages = before

    def mark(self) -> tuple[int, int]:
        """Where the instructions are, for `roll_back`."""
        return len(self.instructions), self._n_values

    def roll_back(self, mark: tuple[int, int]) -> None:
        """Strike out everything since `mark`."""
        n_instructions, n_values = mark
        del self.instructions[n_instructions:]
        self._n_values = n_values
        self._fetched = {key: value for key, value in self._fetched.items() if value.id < n_values}
        self._resolved = {key: value for key, value in self._resolved.items() if value.id < n_values}
        if self.rounder is not None:
            self.rounder.roll_back(n_values)

    def value(
        self, shape: Sequence[int], dtype: torch.dtype, layout: Layout = REPLICATED, combine: Combine = "sum"
    ) -> Value:
        """A new value."""
        self._n_values += 1
        return Value(self._n_values - 1, tuple(int(n) for n in shape), dtype, layout.on(self.stages), combine)

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
        takes_empty: bool = False,
    ) -> tuple[Value, ...]:
        """Every device calls `target` on its blocks; takes_empty: also where a block of some input is empty."""
        inputs = tuple(leaf for leaf in pytree.tree_leaves((args, kwargs or {})) if isinstance(leaf, Value))
        differing = {axis for value in inputs for axis in value.layout.axes}
        if any(not differing <= set(value.layout.axes) for value in outputs):
            raise AssertionError(f"{self._label}: an output of {op_class} does not follow its inputs along {differing}")
        if not all(value.layout.held_on(self.stages) for value in inputs):
            raise AssertionError(f"{self._label}: an input of {op_class} is not on the stages {self.stages}")
        made, named = tuple(outputs), dict(kwargs or {})
        self.instructions.append(
            Compute(target, tuple(args), named, inputs, made, op_class, self._label, attributes or {}, takes_empty)
        )
        return made

    def fetch(self, value: Value, layout: Layout, fill: float = 0.0) -> Value:
        """`value` with its blocks (or windows) as `layout` says; the same request is served once.

        Blocks that are pooled whole are gathered by a schedule, terms that are wanted cut are reduced and scattered;
        anything else moves box by box.
        """
        layout = layout.on(self.stages)
        value = self.bring(value)
        key = (value.id, layout, fill)
        if key in self._fetched:
            return self._fetched[key]
        if value.layout.partial and value.id not in self._resolved:
            axes = self.scattered_axes(value, layout)
            if axes:
                self._fetched[key] = self.resolve(self.reduce_scatter([value], [layout], axes, self._label)[0])
                return self._fetched[key]
        value = self.resolve(value)
        if value.layout.splits == layout.splits:
            return value
        torn = {s.dim for s in value.layout.splits if (t := layout.split_of(s.dim)) and t.segments != s.segments}
        if torn:
            value = self.fetch(value, Layout(tuple(s for s in value.layout.splits if s.dim not in torn)))
        key = (value.id, layout, fill)
        if key not in self._fetched:
            label = f"{self._label} {_reach(value, layout)}"
            axes = gathered_axes(value.shape, value.layout, layout)
            if axes and self.plan.size(axes) > 1:
                (self._fetched[key],) = self.all_gather([value], [layout], axes, label)
            else:
                self._fetched[key] = self._moved(value, layout, fill, label)
        return self._fetched[key]

    def bring(self, value: Value) -> Value:
        """`value` on the stages that work now: from another stage, each device gets the block of its counterpart."""
        value = self._resolved.get(value.id, value)
        if value.layout.held_on(self.stages):
            return value
        layout = value.layout.on(self.stages)
        key = (value.id, layout, 0.0)
        if key not in self._fetched:
            self._fetched[key] = self._moved(value, layout, 0.0, stage_label(self._label, self.stages))
        return self._fetched[key]

    def _moved(self, value: Value, layout: Layout, fill: float, label: str) -> Value:
        """A Fetch of `value`, rounded as it is sent if any of it is."""
        source = value
        if self.rounder is not None and pieces(value.shape, value.layout, layout, self.plan).moves.any():
            with self.on(value.layout.stages):
                source = self.rounder.sent(value)
        output = self.value(value.shape, value.dtype, layout, value.combine)
        self.instructions.append(Fetch(source, output, fill, label))
        if self.rounder is not None:
            self.rounder.moved(source, output)
        return output

    def scattered_axes(self, value: Value, layout: Layout) -> tuple[str, ...]:
        """Axes over which terms of `value` can be reduced and scattered into `layout`, or ()."""
        axes = gathered_axes(value.shape, layout, Layout(value.layout.splits))
        fits = value.combine == "sum" and set(axes) <= set(value.layout.partial) and self.plan.size(axes) > 1
        return axes if fits else ()

    def push_add(self, value: Value, layout: Layout) -> Value:
        """Add windows back to the blocks of `layout` that they were fetched from."""
        if value.layout.splits == layout.splits:
            return value
        if self.rounder is not None:
            value = self.rounder.pushed(value)
        output = self.value(value.shape, value.dtype, layout)
        self.instructions.append(PushAdd(value, output, f"{self._label} halo adjoint"))
        return output

    def all_reduce(self, values: Sequence[Value], label: str) -> tuple[Value, ...]:
        """Combine partial values (same axes, same dtype) as one buffer."""
        outputs = tuple(self.value(v.shape, v.dtype, Layout(v.layout.splits)) for v in values)
        self._collective("all_reduce", values, outputs, values[0].layout.partial, label)
        stored = self._summed(values, outputs)
        for value, output in zip(values, stored, strict=True):
            self._resolved[value.id] = output
        return stored

    def reduce_scatter(
        self, values: Sequence[Value], layouts: Sequence[Layout], axes: tuple[str, ...], label: str
    ) -> tuple[Value, ...]:
        """Combine values that are partial over `axes` (same dtype) as one buffer, each device keeping its block.

        layouts: cut over `axes` where the values are not. What is partial over other axes stays so.
        """
        outputs = []
        for value, layout in zip(values, layouts, strict=True):
            others = tuple(axis for axis in value.layout.partial if axis not in axes)
            outputs.append(self.value(value.shape, value.dtype, Layout(layout.splits, others)))
        return self._summed(values, self._collective("reduce_scatter", values, tuple(outputs), axes, label))

    def _summed(self, terms: Sequence[Value], totals: tuple[Value, ...]) -> tuple[Value, ...]:
        """Totals as they are stored; those that are still terms of a sum over other axes as they are."""
        rounder = self.rounder
        if rounder is None:
            return totals
        for term, total in zip(terms, totals, strict=True):
            rounder.moved(term, total)
        return tuple(
            total if total.layout.partial else rounder.summed(term, total)
            for term, total in zip(terms, totals, strict=True)
        )

    def all_gather(
        self, values: Sequence[Value], layouts: Sequence[Layout], axes: tuple[str, ...], label: str, paced: bool = False
    ) -> tuple[Value, ...]:
        """Pool the blocks of values (same dtype) over `axes` as one buffer; layouts: theirs without these axes."""
        if self.rounder is not None:
            values = [self.rounder.sent(value) for value in values]
        outputs = tuple(self.value(v.shape, v.dtype, layout) for v, layout in zip(values, layouts, strict=True))
        self._collective("all_gather", values, outputs, axes, label, paced)
        if self.rounder is not None:
            for value, output in zip(values, outputs, strict=True):
                self.rounder.moved(value, output)
        return outputs

    def _collective(
        self,
        kind: str,
        sources: Sequence[Value],
        outputs: tuple[Value, ...],
        axes: tuple[str, ...],
        label: str,
        paced: bool = False,
    ) -> tuple[Value, ...]:
        carried = self.rounder.carried(sources) if self.rounder is not None and kind != "all_gather" else None
        self.instructions.append(
            Collective(kind, tuple(sources), outputs, axes, sources[0].combine, label, paced, carried)
        )
        return outputs

    def resolve(self, value: Value) -> Value:
        """`value` with no partial axis left."""
        value = self.bring(value)
        if not value.layout.partial:
            return value
        if value.id not in self._resolved:
            self.all_reduce([value], self._label)
        return self._resolved[value.id]

    def is_resolved(self, value: Value) -> bool:
        """Whether the terms of a partial value have been summed already."""
        return value.id in self._resolved

    def replicate(self, value: Value) -> Value:
        """`value` whole on every device."""
        return self.fetch(value, REPLICATED)

    def refuse(self, node: fx.Node, values: Sequence[Value]) -> UnsupportedOpError:
        """The error for an operator that has no rule."""
        cuts = dict.fromkeys(f"dim {s.dim} over {' x '.join(s.axes)}" for v in values for s in v.layout.splits)
        given = f" for an input cut in {', '.join(cuts)}" if cuts else ""
        return UnsupportedOpError(
            f"operator {node.target} (node {node.name}, module {where(node)}) has no sharding rule{given} under plan "
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
        replace by the shape of output 0's block. keep_partial: the operator is linear in its one partial input, so that
        terms of a sum are still terms afterwards; what is combined otherwise is resolved first.
        """
        metas = node.meta["val"]
        metas = metas if isinstance(metas, tuple | list) else (metas,)
        leaves, spec = pytree.tree_flatten((list(args), dict(kwargs)))
        values = [leaf for leaf in leaves if isinstance(leaf, Value)]
        partial = values[0].layout.partial if keep_partial and values[0].combine == "sum" else ()
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
