"""Make a step fit into the memory of its devices as `[memory] when_full` says, or refuse it and say what would help."""

from collections.abc import Iterator
from dataclasses import dataclass

from meshemu.cost.interfaces import interfaces_of
from meshemu.cost.memory_use import MEMORY_CATEGORIES, MemoryUse
from meshemu.emulator.build_step import PlacedStep, StepOptions, op_cost, place_step
from meshemu.emulator.memory_policy import MemoryOptions, capacity_bytes, fits, overflow, refuse
from meshemu.emulator.spilling import spilling
from meshemu.errors import InputError, PlanError
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
    with. batch_size: of the whole batch.
    """

    graph: Graph
    mesh: Mesh
    system: System
    settings: StepOptions
    batch_size: int

    def placed(self, graph: Graph, plan: Plan) -> PlacedStep:
        """The step of another graph, or under another plan."""
        return place_step(graph, plan, self.mesh, self.system, self.settings)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A step that may be timed; remark: what was done for its memory, "" if nothing had to be."""

    step: PlacedStep
    remark: str = ""


def fitted(step: PlacedStep, given: Fitting, options: MemoryOptions) -> Fitted:
    """`step` if it fits, else what `options` make of it. Raises PlanError where that is nothing."""
    if fits(step.memory, given.system):
        return Fitted(step)
    words = overflow(step.memory, given.mesh, given.system)
    if options.when_full == "allow":
        return Fitted(step, f"memory: {words}; timed as if there were room, since memory.when_full = allow")
    if options.when_full == "recompute":
        placed, how = _recomputing(step, given)
        if fits(placed.memory, given.system):
            return Fitted(placed, f"memory: {how.describe()}, since {words}")
        words = f"{overflow(placed.memory, given.mesh, given.system)}, although {how.describe()}"
    elif options.when_full == "spill":
        placed, done = spilling(step, given.mesh, given.system, given.settings, options)
        if fits(placed.memory, given.system):
            return Fitted(placed, f"memory: {done}, since {words}")
        words = f"{overflow(placed.memory, given.mesh, given.system)}, although {done}"
    raise refuse(words, list(_advice(step, given, options)))


def _recomputing(step: PlacedStep, given: Fitting) -> tuple[PlacedStep, Recomputation]:
    """The cheapest way found to make activations again so that the step fits, else the one that needs least memory.

    Raises PlanError where nothing can be made again.
    """
    words = overflow(step.memory, given.mesh, given.system)
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


def _advice(step: PlacedStep, given: Fitting, options: MemoryOptions) -> Iterator[str]:
    """Changes with which it should fit, by arithmetic on what is known: a trial would take as long as the step did."""
    plan, use, capacity = step.plan, step.memory, capacity_bytes(given.system) or 0
    at_peak = use.peak_bytes[:, use.busiest]
    if plan.has("data") and not plan.has("shard"):
        parts = plan.size(("data",))
        staying = int(at_peak[_STAYING].sum())
        if use.most_bytes - staying + staying // parts <= capacity:
            yield f"plan.shard = {parts} in place of plan.data"
    share = _share_left(use, capacity)
    if options.when_full == "refuse" and share > 0:
        most = int(held_bytes(given.graph) * share)
        cost = op_cost(given.system.device, plan.n_positions // plan.n_stages)
        if any(found.estimate_bytes <= most for found in candidates(given.graph, most, cost)):
            yield "memory.when_full = recompute"
    if options.when_full == "refuse" and share > 0 and _fits_spilled(step, given, options):
        yield "memory.when_full = spill"
    parts = plan.size(plan.batch_axes)
    samples = int(given.batch_size / parts * min(share, 1.0)) * parts
    if given.settings.micro_batches == 1 and 0 < samples < given.batch_size:
        yield f"a batch of {samples} samples or less"


def _fits_spilled(step: PlacedStep, given: Fitting, options: MemoryOptions) -> bool:
    """Whether there are interface processors, and the step fits with what is idle there."""
    if interfaces_of(given.system) is None:
        return False
    try:
        return fits(spilling(step, given.mesh, given.system, given.settings, options)[0].memory, given.system)
    except InputError:  # no room there, or none of them at the edges
        return False
