"""Where else a pipeline might be cut: stages of even parameters, and each cut of the usual ones moved a little.

Cuts are named by the modules at which stages begin, as `plan.stages` has them.
"""

from bisect import bisect_right
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from meshemu.errors import PlanError
from meshemu.workload.graph import Graph, Role, module_of
from meshemu.workload.stage_costs import OpCost, costs_of
from meshemu.workload.stage_cuts import balanced_starts
from meshemu.workload.stages import assign_stages, passes_of

__all__ = ["stage_cuts"]

LEAST_MOVE = 0.05
"""A cut is moved over modules that cost at least so much of an even stage: less is within the slack of even cuts."""

MOST_CUTS = 8


@dataclass(frozen=True)
class _Line:
    """Where modules begin in the forward pass. names: of the outermost that begins at each place; costs, parameters:
    of what lies between it and the next. usual: numbers of the places where the stages cut by cost begin, or the last
    before; exact: whether they begin there.
    """

    names: tuple[str, ...]
    costs: tuple[int, ...]
    parameters: tuple[int, ...]
    usual: tuple[int, ...]
    exact: bool


def stage_cuts(graph: Graph, n_stages: int, cost: OpCost) -> list[tuple[str, ...]]:
    """Names of modules at which all stages but the first begin, for each cut other than the one by cost that
    `assign_stages` makes; at most MOST_CUTS. cost: of an operator, as it takes it. None where that cannot cut.
    """
    try:
        line = _line_of(graph, n_stages, cost)
    except PlanError:
        return []
    known = {line.usual} if line.exact else set[tuple[int, ...]]()
    found: list[tuple[str, ...]] = []
    for starts in _candidates(line, n_stages):
        if starts not in known and starts[0] > 0 and all(a < b for a, b in pairwise(starts)):
            known.add(starts)
            found.append(tuple(line.names[place] for place in starts))
    return found[:MOST_CUTS]


def _candidates(line: _Line, n_stages: int) -> Iterator[tuple[int, ...]]:
    """Places at which all stages but the first begin."""
    yield line.usual
    even = balanced_starts(line.parameters, [0] * len(line.names), [True] * len(line.names), n_stages)
    if even is not None:
        yield even[1:]
    least = LEAST_MOVE * sum(line.costs) / n_stages
    for number, place in enumerate(line.usual):
        for step in (-1, 1):
            moved = _moved(line.costs, place, step, least)
            if moved is not None:
                yield (*line.usual[:number], moved, *line.usual[number + 1 :])


def _moved(costs: Sequence[int], place: int, step: int, least: float) -> int | None:
    """The next place, forwards or backwards, with at least so much in between."""
    passed = 0
    while 0 < place + step < len(costs):
        passed += costs[place if step > 0 else place - 1]
        place += step
        if passed >= least:
            return place
    return None


def _line_of(graph: Graph, n_stages: int, cost: OpCost) -> _Line:
    """Raises PlanError where the graph cannot be cut into so many stages."""
    staged, cut = assign_stages(graph, 1).of, assign_stages(graph, n_stages, cost=cost).of
    forward = [node for node in passes_of(graph)[0] if node in staged]
    begins: list[int] = []
    names: list[str] = []
    seen: set[str] = set()
    for number, node in enumerate(forward):
        parts = module_of(node).split(".")
        paths = [".".join(parts[: depth + 1]) for depth in range(len(parts))]
        fresh = [path for path in paths if path and path not in seen]
        if fresh or not begins:
            begins.append(number)
            names.append(fresh[0] if fresh else "")
        seen.update(fresh)
    place = {node: bisect_right(begins, number) - 1 for number, node in enumerate(forward)}
    first = [next(i for i, node in enumerate(forward) if cut.get(node) == stage) for stage in range(1, n_stages)]
    usual = tuple(bisect_right(begins, number) - 1 for number in first)
    exact = all(begins[at] == number for at, number in zip(usual, first, strict=True))
    sizes = _parameters(graph, place, staged, len(names))
    return _Line(tuple(names), tuple(costs_of(graph, place, cost)), sizes, usual, exact)


def _parameters(graph: Graph, place: dict[Any, int], staged: Container[Any], count: int) -> tuple[int, ...]:
    """Elements of the parameters that are first read between each place and the next."""
    sizes = [0] * count
    for item in graph.inputs:
        front, seen, readers = [item.node] if item.role is Role.PARAMETER else [], {item.node}, list[int]()
        while front:
            for user in front.pop().users:
                if user in place:
                    readers.append(place[user])
                elif user not in seen and user not in staged:
                    seen.add(user)
                    front.append(user)
        if readers:
            sizes[min(readers)] += item.node.meta["val"].numel()
    return tuple(sizes)
