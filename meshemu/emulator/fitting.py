"""Make a step fit into the memory of its devices as `[memory] when_full` says, or refuse it and say what would help."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from meshemu.cost.memory_use import MEMORY_CATEGORIES, MemoryUse
from meshemu.emulator.build_step import BuiltStep, PlacedStep, StepOptions, op_cost, place_step, with_program
from meshemu.emulator.memory_policy import MemoryOptions, capacity_bytes, fits, overflow, refuse
from meshemu.errors import PlanError
from meshemu.hardware import System
from meshemu.mesh import Mesh
from meshemu.workload.graph import Graph
from meshemu.workload.plan import Plan
from meshemu.workload.recompute_choice import Recomputation, candidates, held_bytes

__all__ = ["Fitted", "Fitting", "fitted"]

_STAYING = [MEMORY_CATEGORIES.index(name) for name in ("weights", "gradients", "optimizer")]

TIGHTER = (1.0, 0.75, 0.5)
"""Parts of what is estimated to fit that candidates are looked for with, until one does fit."""


@dataclass(frozen=True, eq=False)
class Fitting:
    """What a step is fitted to and with. graph: of the step, or of one of its micro-batches. settings: as it was built
    with. graph_of: number of samples -> the graph of a smaller batch; batch_size: of the whole one.
    """

    graph: Graph
    mesh: Mesh
    system: System
    settings: StepOptions
    graph_of: Callable[[int], Graph]
    batch_size: int

    def placed(self, graph: Graph, plan: Plan) -> PlacedStep:
        """The step of another graph, or under another plan."""
        return place_step(graph, plan, self.mesh, self.system, self.settings)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A step that may be timed; remark: what was done for its memory, "" if nothing had to be."""

    step: BuiltStep
    remark: str = ""


def fitted(step: BuiltStep, given: Fitting, options: MemoryOptions) -> Fitted:
    """`step` if it fits, else what `options` make of it. Raises PlanError where that is nothing."""
    if fits(step.memory, given.system):
        return Fitted(step)
    words = overflow(step.memory, given.mesh, given.system)
    if options.when_full == "allow":
        return Fitted(step, f"memory: {words}; timed as if there were room, since memory.when_full = allow")
    if options.when_full == "recompute":
        placed, how = _recomputing(step, given)
        if fits(placed.memory, given.system):
            built = with_program(placed, given.mesh, given.system, given.settings)
            return Fitted(built, f"memory: {how.describe()}, since {words}")
        words = f"{overflow(placed.memory, given.mesh, given.system)}, although {how.describe()}"
    raise refuse(words, _advice(step, given, options), given.system)


def _recomputing(step: BuiltStep, given: Fitting) -> tuple[PlacedStep, Recomputation]:
    """The cheapest way found to make activations again so that the step fits, else the one that needs least memory.

    Raises PlanError where nothing can be made again.
    """
    words = overflow(step.memory, given.mesh, given.system)
    if given.settings.formats:
        raise PlanError(
            f"memory: {words}; memory.when_full = recompute: values that formats round are not made again"
        )
    capacity = capacity_bytes(given.system) or 0
    cost = op_cost(given.system.device, step.plan.n_positions // step.plan.n_stages)
    share = _share_left(step.memory, capacity)
    whole = held_bytes(given.graph)
    tried: dict[tuple[int, int], tuple[PlacedStep, Recomputation]] = {}
    for tighter in TIGHTER:
        for found in candidates(given.graph, int(whole * share * tighter), cost):
            key = found.n_segments, found.n_dropped
            if key not in tried:
                tried[key] = given.placed(found.graph, step.plan), found
                if fits(tried[key][0].memory, given.system):
                    return tried[key]
    if not tried:
        raise PlanError(f"memory: {words}; memory.when_full = recompute: there are no activations to make again")
    return min(tried.values(), key=lambda one: one[0].memory.most_bytes)


def _share_left(use: MemoryUse, capacity: int) -> float:
    """The part of what comes and goes in a step that there is room for beside what stays."""
    at_peak = use.peak_bytes[:, use.busiest]
    staying = int(at_peak[_STAYING].sum())
    return max(capacity - staying, 0) / max(int(at_peak.sum()) - staying, 1)


def _advice(
    step: BuiltStep, given: Fitting, options: MemoryOptions
) -> Iterator[tuple[str, Callable[[], MemoryUse]]]:
    """Changes that may help, each with the memory that the step then needs."""
    plan = step.plan
    if plan.has("data") and not plan.has("shard"):
        axes = tuple(replace(axis, name="shard") if axis.name == "data" else axis for axis in plan.axes)
        sharded = replace(plan, axes=axes)
        yield (
            f"plan.shard = {plan.size(('data',))} in place of plan.data",
            lambda: given.placed(given.graph, sharded).memory,
        )
    if options.when_full == "refuse" and not given.settings.formats:
        yield "memory.when_full = recompute", lambda: _recomputing(step, given)[0].memory
    parts, share = plan.size(plan.batch_axes), _share_left(step.memory, capacity_bytes(given.system) or 0)
    samples = int(-(-given.batch_size // parts) * min(share, 1.0)) * parts
    if given.settings.micro_batches == 1 and 0 < samples < given.batch_size:
        yield f"a batch of {samples} samples or less", lambda: given.placed(given.graph_of(samples), plan).memory
