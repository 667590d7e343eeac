"""Writes the rounding of values to the formats of their roles into a step, while it is lowered.

A value is rounded once it is complete: terms of a sum over devices when they have been summed. What is sent is rounded
before it is sent, whole, so that a device computes with the same numbers as those it sends them to.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from meshemu.hardware.format_roles import Carried, Formats, RoleFormat
from meshemu.workload.formats.maxima import Tracker
from meshemu.workload.formats.places import ACTIVATIONS, GRADIENTS, SELECTING, stored_nodes
from meshemu.workload.formats.random_bits import Stream, counted
from meshemu.workload.formats.rounding import round_to
from meshemu.workload.formats.streams import Streams
from meshemu.workload.graph import Graph
from meshemu.workload.lowering import Lowering, base_name
from meshemu.workload.spmd import LocalRange, StepSeed, Tracked, Value

__all__ = ["ROUNDED", "Storing", "rounded"]

Tensor = torch.Tensor
Range = tuple[int, int]

ROUNDED = "round_format"
"""Op class of rounding as a value is stored: no work of its own."""

CONVERTED = "_to_copy"
"""Op class of making a rounded copy of weights."""

class Storing:
    """What `Lowering` asks while it writes: a `Rounder`."""

    def __init__(self, low: Lowering, graph: Graph, formats: Formats) -> None:
        self._low = low
        self._formats = formats
        self._stored = stored_nodes(graph)
        self._roles = {ACTIVATIONS: formats.activations, GRADIENTS: formats.gradients}
        self._waiting: dict[int, tuple[RoleFormat, str]] = {}  # values that are rounded once they are summed
        self._exchangeable: set[int] = set()  # values that messages may carry in the format of communication
        self._sent: dict[int, Value] = {}
        self._streams = Streams(graph.copies)
        self._copies = graph.copies

    def begin(self, node: fx.Node, micro_batch: int) -> None:
        """An operator is about to be written down."""
        self._streams.begin(node, micro_batch)

    def node(self, node: fx.Node, result: Any, given: Any) -> Any:
        """The result of an operator, as it is stored. given: its arguments, with Values in place of nodes."""
        self._streams.end(leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Value))
        role = self._stored.get(node)
        if role is None:
            if node.op == "call_function" and base_name(node) in SELECTING:
                sources = [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, Value)]
                for value in pytree.tree_leaves(result):
                    if isinstance(value, Value):
                        self._follow(sources, value)
            return result
        self._exchangeable.add(result.id)
        wanted = self._roles[role]
        if wanted is None:
            return result
        key = f"{role} {self._copies.get(node, node).name}"
        if result.layout.partial:
            self._waiting[result.id] = wanted, key
            return result
        return self._round(result, wanted, key)

    def weights(self, parameters: Mapping[str, Value]) -> dict[str, Value]:
        """Parameter name -> the value that operators read; one conversion for all that are cut alike."""
        result = dict(parameters)
        role = self._formats.weights
        large = {name: v for name, v in parameters.items() if len(v.shape) > 1 and v.dtype.is_floating_point}
        self._exchangeable.update(value.id for value in large.values())
        if role is None:
            return result
        groups: dict[Any, list[str]] = {}
        for name, value in large.items():
            groups.setdefault((value.layout.stages, frozenset(value.layout.axes)), []).append(name)
        for (stages, _), names in groups.items():
            with self._low.on(stages):
                self._low.label("weights")
                made = self._convert([large[name] for name in names], role, [f"weights {name}" for name in names])
            result.update(zip(names, made, strict=True))
        return result

    def gradients(self, gradients: Mapping[str, Value]) -> dict[str, Value]:
        """Parameter name -> its whole gradient as it is stored."""
        role = self._formats.gradients
        if role is None:
            return dict(gradients)
        made: dict[int, Value] = {}
        for name, value in gradients.items():
            if value.id not in made:
                with self._low.on(value.layout.stages):
                    self._low.label(f"gradient of {name}")
                    made[value.id] = self._round(value, role, f"gradients of {name}")
        return {name: made[value.id] for name, value in gradients.items()}

    def sent(self, value: Value) -> Value:
        """What messages of a value carry, and all devices then use."""
        role = self._formats.communication
        if role is None or value.id not in self._exchangeable:
            return value
        if value.id not in self._sent:
            self._sent[value.id] = self._round(value, role, f"communication {self._streams.first(value)}", "sent")
            self._follow([value], self._sent[value.id])
        return self._sent[value.id]

    def pushed(self, value: Value) -> Value:
        """What messages of windows carry, which are added to blocks."""
        self._exchangeable.add(value.id)
        return self.sent(value)

    def carried(self, terms: Sequence[Value]) -> Carried | None:
        """How a collective carries terms of sums, None where it carries them as they are."""
        role = self._formats.communication
        if role is None or any(v.id not in self._exchangeable or v.combine != "sum" for v in terms):
            return None
        first = terms[0]
        return Carried(role, f"communication {self._streams.first(first)}", self._streams.number("carried", first))

    def exchangeable(self, value: Value) -> None:
        """Messages may carry this value in the format of communication."""
        self._exchangeable.add(value.id)

    def moved(self, source: Value, output: Value) -> None:
        """`output` has the numbers, or some of the terms, of `source`."""
        self._streams.derived(source, output, output.layout)
        self._follow([source], output)

    def summed(self, term: Value, total: Value) -> Value:
        """The sum of a value's terms, as it is stored."""
        self._streams.derived(term, total, "total")
        self._follow([term], total)
        waiting = self._waiting.get(term.id)
        return total if waiting is None else self._round(total, *waiting)

    def roll_back(self, n_values: int) -> None:
        """Forget values that have been struck out."""
        self._waiting = {i: waiting for i, waiting in self._waiting.items() if i < n_values}
        self._exchangeable = {i for i in self._exchangeable if i < n_values}
        self._sent = {i: value for i, value in self._sent.items() if i < n_values and value.id < n_values}
        self._streams.roll_back(n_values)

    def _follow(self, sources: Iterable[Value], output: Value) -> None:
        for source in sources:
            if source.id in self._exchangeable:
                self._exchangeable.add(output.id)
            if source.id in self._waiting and output.layout.partial:
                self._waiting[output.id] = self._waiting[source.id]

    def _round(self, value: Value, role: RoleFormat, key: str, what: str = "stored") -> Value:
        output = self._low.value(value.shape, value.dtype, value.layout, value.combine)
        self._exchangeable.add(output.id)
        self._streams.derived(value, output, what)
        self._low.compute(
            rounded, (value, role, *self._placed(value, role, key, what)), [output], op_class=ROUNDED,
            attributes={"number_format": role.number_format.name}, takes_empty=True,
        )  # fmt: skip
        return output

    def _convert(self, values: Sequence[Value], role: RoleFormat, keys: Sequence[str]) -> tuple[Value, ...]:
        outputs = [self._low.value(v.shape, v.dtype, v.layout) for v in values]
        self._exchangeable.update(output.id for output in outputs)
        places = [list(self._placed(v, role, key, "stored")) for v, key in zip(values, keys, strict=True)]
        return self._low.compute(
            _all_rounded, (list(values), role, places), outputs, op_class=CONVERTED,
            attributes={"number_format": role.number_format.name}, takes_empty=True,
        )  # fmt: skip

    def _placed(self, value: Value, role: RoleFormat, key: str, what: str) -> tuple[Any, ...]:
        """(running maximum, ranges of the block, what it is a block of, seed)."""
        ranges = {split.dim: LocalRange(value, split.dim) for split in value.layout.splits}
        segments = {split.dim: split.segments for split in value.layout.splits if split.segments > 1}
        tracked = Tracked(key) if role.sliding else None
        return tracked, ranges, Stream(value.shape, segments), StepSeed(self._streams.number(what, value))


def rounded(
    x: Tensor, role: RoleFormat, tracker: Tracker | None, ranges: Mapping[int, Range], stream: Stream, seed: int
) -> Tensor:
    """A block in the format of a role; as it is in a step that only looks for maxima."""
    bias = role.bias
    if bias is None:
        if tracker is None:
            raise AssertionError("a bias that slides needs a running maximum")
        tracker.note(x)
        if tracker.wanted is None:
            return x
        bias = role.number_format.fitting_bias(tracker.wanted)
    random = counted(tuple(x.shape), ranges, stream, seed) if role.stochastic else None
    return round_to(x, role.number_format, bias, random)


def _all_rounded(blocks: Sequence[Tensor], role: RoleFormat, places: Sequence[Sequence[Any]]) -> tuple[Tensor, ...]:
    """Blocks of several tensors; places: the other arguments of `rounded` for each."""
    return tuple(rounded(block, role, *place) for block, place in zip(blocks, places, strict=True))
