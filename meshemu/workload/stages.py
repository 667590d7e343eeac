"""Which stage of a pipeline every operator of a captured step belongs to.

The forward pass is cut into contiguous stages: where modules begin, or so that stages cost about the same and little
crosses. A node of the backward pass belongs to the stage of the operator that it differentiates. What depends on no
parameter (masks, positions) and what only rearranges a parameter belongs to no stage: every stage that reads it makes
it itself.
"""

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from operator import getitem

import torch
from torch import fx

from meshemu.errors import PlanError
from meshemu.workload.dependence import (
    COPIES,
    buffer_copies,
    is_random,
    rearranged_parameters,
    updated_buffers,
    without_parameters,
)
from meshemu.workload.graph import Graph, module_of
from meshemu.workload.lowering import base_name
from meshemu.workload.pipeline_order import Turn
from meshemu.workload.stage_costs import OpCost, costs_of, crossing_bytes, flops_and_bytes
from meshemu.workload.stage_cuts import balanced_starts

__all__ = ["Stages", "assign_stages", "most_stages", "passes_of"]


@dataclass(frozen=True, eq=False)
class Stages:
    """of: operator -> its stage, those without one left out. terms: parameter -> nodes whose sum is its gradient,
    several where a parameter is read on several stages.
    """

    graph: Graph
    n_stages: int
    of: Mapping[fx.Node, int]
    terms: Mapping[str, tuple[fx.Node, ...]]

    def at(self, node: fx.Node) -> tuple[int, ...]:
        """The stage of an operator, as a Layout has it; that of one without a stage is the first."""
        return (self.of.get(node, 0),) if self.n_stages > 1 else ()

    def nodes(self, turn: Turn) -> tuple[fx.Node, ...]:
        """The operators of one pass through one stage, in order."""
        return self._segments.get((turn.stage, turn.forward), ())

    def readers(self, *nodes: fx.Node) -> tuple[int, ...]:
        """The stages that read one of these inputs or constants, as a Layout has them; the first if none does."""
        if self.n_stages == 1:
            return ()
        return tuple(sorted(set().union(*map(self._readers, nodes)))) or (0,)

    def readers_of_constant(self, name: str) -> tuple[int, ...]:
        """The stages that read a constant of the graph."""
        return self.readers(*(node for node in self.graph.nodes if node.op == "get_attr" and node.target == name))

    @cached_property
    def draws(self) -> Mapping[fx.Node, int]:
        """Number of every operator that draws random numbers; one that repeats another has that of the other."""
        copies = self.graph.copies
        drawing = [node for node in self.graph.nodes if is_random(node) and node not in copies]
        numbers = {node: i for i, node in enumerate(drawing)}
        return numbers | {copy: numbers[node] for copy, node in copies.items() if node in numbers}

    @property
    def n_draws(self) -> int:
        """How many operators draw random numbers of their own."""
        return len(set(self.draws.values()))

    @cached_property
    def rearranged(self) -> frozenset[fx.Node]:
        """Operators that only rearrange a parameter."""
        return rearranged_parameters(self.graph)

    @cached_property
    def _segments(self) -> dict[tuple[int, bool], tuple[fx.Node, ...]]:
        segments: dict[tuple[int, bool], list[fx.Node]] = {}
        for forward, nodes in zip((True, False), passes_of(self.graph), strict=True):
            for node in nodes:
                if node in self.of:
                    segments.setdefault((self.of[node], forward), []).append(node)
        return {key: tuple(nodes) for key, nodes in segments.items()}

    def _readers(self, node: fx.Node) -> set[int]:
        found: set[int] = set()
        front, seen = [node], {node}
        while front:
            for user in front.pop().users:
                if user in self.of:
                    found.add(self.of[user])
                elif user not in seen:
                    seen.add(user)
                    front.append(user)
        return found


def assign_stages(
    graph: Graph, n_stages: int, names: Sequence[str] = (), cost: OpCost = flops_and_bytes
) -> Stages:
    """Cut `graph` into stages; names: of the modules at which all stages but the first begin, chosen by cost without.

    Raises PlanError where there are more stages than places to cut, and for names that are no places to cut.
    """
    if n_stages == 1:
        whole = {name: (node,) for name, node in graph.gradients.items()}
        loose = _loose(graph)
        return Stages(graph, 1, {node: 0 for node in graph.nodes if node not in loose}, whole)
    line = _line_of(graph)
    if names:
        starts = _named_starts(line.place, names, line.spans)
    else:
        balanced = balanced_starts(costs_of(graph, line.place, cost), crossing_bytes(line.place), line.legal, n_stages)
        if balanced is None:
            raise PlanError(
                f"plan.pipeline = {n_stages}: {graph.model_name} can be cut into {line.most_stages} stages at most"
            )
        starts = balanced
    of = {node: bisect_right(starts, i) - 1 for node, i in line.place.items()}
    forward, backward = passes_of(graph)
    for node in reversed(forward):
        if node in line.state:
            of[node] = min((of[user] for user in node.users if user in of), default=0)
    _assign_backward(graph, backward, line.loose, of)
    terms = {name: _terms(graph, node, of) for name, node in graph.gradients.items()}
    _drop_joins(graph, terms, of)
    return Stages(graph, n_stages, of, terms)


def most_stages(graph: Graph) -> int:
    """The greatest number of stages that `graph` can be cut into."""
    return _line_of(graph).most_stages


def passes_of(graph: Graph) -> tuple[tuple[fx.Node, ...], tuple[fx.Node, ...]]:
    """(nodes of the forward pass, of the backward pass): all up to the loss, and what follows it."""
    if graph.loss is None or graph.loss not in graph.nodes:
        return graph.nodes, ()
    end = graph.nodes.index(graph.loss) + 1
    return graph.nodes[:end], graph.nodes[end:]


@dataclass(frozen=True, eq=False)
class _Line:
    """The forward pass as a line to cut. place: operator -> its number on it. loose: operators of no stage. state: node
    that is a buffer before the step changes it -> its name. spans: such a buffer -> what of the line it keeps together.
    """

    place: Mapping[fx.Node, int]
    loose: frozenset[fx.Node]
    state: Mapping[fx.Node, str]
    spans: Mapping[str, tuple[int, int]]

    @cached_property
    def legal(self) -> list[bool]:
        """Whether there may be a cut just before each place."""
        count = max(self.place.values(), default=-1) + 1
        return [not any(lo < i <= hi for lo, hi in self.spans.values()) for i in range(count)]

    @property
    def most_stages(self) -> int:
        """The greatest number of stages."""
        return max(1, sum(self.legal[1:]) + 1)


def _line_of(graph: Graph) -> _Line:
    updated, loose = updated_buffers(graph), _loose(graph)
    forward, _ = passes_of(graph)
    state = {node: name for node, name in buffer_copies(graph).items() if name in updated}
    place = _places([node for node in forward if node not in loose and node not in state])
    return _Line(place, loose, state, _spans(graph, state, place))


def _loose(graph: Graph) -> frozenset[fx.Node]:
    """Operators that belong to no stage: each stage that reads them makes them itself."""
    return frozenset(rearranged_parameters(graph) | without_parameters(graph, updated_buffers(graph)))


def _places(nodes: Sequence[fx.Node]) -> dict[fx.Node, int]:
    """Number of every operator; items of tuples and copies have that of their source: no cut parts them."""
    place: dict[fx.Node, int] = {}
    count = 0
    for node in nodes:
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        follows = node.target is getitem or (node.op == "call_function" and base_name(node) in COPIES)
        if follows and source in place:
            place[node] = place[source]
        else:
            place[node] = count
            count += 1
    return place


def _spans(
    graph: Graph, state: Mapping[fx.Node, str], place: Mapping[fx.Node, int]
) -> dict[str, tuple[int, int]]:
    """Buffer that a step changes -> the first and the last of the forward operators that have to do with it.

    state: the nodes that are such a buffer at the beginning of the step -> its name.
    """
    touched: dict[str, list[int]] = {}
    for node, name in state.items():
        touched.setdefault(name, []).extend(place[user] for user in node.users if user in place)
    for name, places in touched.items():
        if graph.buffers[name] in place:
            places.append(place[graph.buffers[name]])
    return {name: (min(places), max(places)) for name, places in touched.items() if places}


def _named_starts(
    place: Mapping[fx.Node, int], names: Sequence[str], spans: Mapping[str, tuple[int, int]]
) -> tuple[int, ...]:
    """Where the modules of these names begin, after the first stage's 0."""
    modules = [(module_of(node), i) for node, i in place.items()]
    starts = [0]
    for name in names:
        begin = next((i for module, i in modules if module == name or module.startswith(f"{name}.")), None)
        if begin is None:
            valid = dict.fromkeys(module for module, _ in modules if module)
            some = ", ".join([*valid][:8])
            raise PlanError(f"plan.stages: {name!r} is no module of the forward pass; there are e.g. {some}")
        starts.append(begin)
    for before, name, (earlier, begin) in zip(["", *names], names, pairwise(starts), strict=False):
        if begin <= earlier:
            where = f"not after {before!r} begins" if before else "where the model begins, which leaves stage 0 empty"
            raise PlanError(f"plan.stages: {name!r} begins {where}")
        for buffer, (lo, hi) in spans.items():
            if lo < begin <= hi:
                raise PlanError(f"plan.stages: the cut at {name!r} has the buffer {buffer} updated on two stages")
    return tuple(starts)


def _assign_backward(
    graph: Graph, backward: Sequence[fx.Node], loose: Collection[fx.Node], of: dict[fx.Node, int]
) -> None:
    """The stage of what a node differentiates or repeats; else gradients stay where the earliest of them comes from."""
    passed = set(backward).difference(graph.copies)
    for node in backward:
        if node in loose:
            continue
        if node in graph.copies:
            of[node] = of[graph.copies[node]]
            continue
        sources = [source for source in node.all_input_nodes if source in of]
        gradients = [of[source] for source in sources if source in passed]
        origin = graph.origins.get(node)
        if origin in of:
            of[node] = min([of[origin], *gradients])
        else:
            of[node] = min(gradients) if gradients else max((of[source] for source in sources), default=0)


def _terms(graph: Graph, node: fx.Node, of: Mapping[fx.Node, int]) -> tuple[fx.Node, ...]:
    """Nodes of one stage each whose sum `node` is: what autograd adds up because a parameter is read on several."""
    if not _joins(graph, node, of):
        return (node,)
    return tuple(term for source in node.all_input_nodes for term in _terms(graph, source, of))


def _joins(graph: Graph, node: fx.Node, of: Mapping[fx.Node, int]) -> bool:
    """Whether a node adds up gradients of several stages for no other reader."""
    sources = node.all_input_nodes
    return (
        node.target is torch.ops.aten.add.Tensor
        and node not in graph.origins
        and len(node.args) == len(sources) == 2
        and not node.kwargs
        and all(user.op == "output" for user in node.users)
        and all(source in of and _kind(source) == _kind(node) for source in sources)
        and len({of[source] for source in sources}) > 1
    )


def _kind(node: fx.Node) -> tuple[torch.Size, torch.dtype]:
    return node.meta["val"].shape, node.meta["val"].dtype


def _drop_joins(graph: Graph, terms: Mapping[str, tuple[fx.Node, ...]], of: dict[fx.Node, int]) -> None:
    """Sums that are made of accumulated terms are not made for each micro-batch."""
    for name, node in graph.gradients.items():
        front = [node] if len(terms[name]) > 1 else []
        while front:
            join = front.pop()
            if join not in terms[name]:
                of.pop(join, None)
                front += join.all_input_nodes
