"""What to do about a step that does not fit into the memory of its devices: `[memory] when_full`.

A device of the machine has its SRAM and nothing behind it, so a step that needs more cannot run, and a time for it
would be wrong: by default it is refused, with the arithmetic and what would help.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from math import prod
from typing import Any

from meshemu.cost import Update
from meshemu.cost.memory_use import MemoryUse, breakdown
from meshemu.errors import InputError, PlanError
from meshemu.execute.training import Module
from meshemu.hardware import System
from meshemu.mesh import Mesh
from meshemu.units import format_bytes
from meshemu.workload.plan import Plan

__all__ = [
    "POLICIES",
    "REFUSE",
    "MemoryOptions",
    "capacity_bytes",
    "check_resident",
    "fits",
    "memory_options",
    "overflow",
    "refuse",
]

POLICIES = ("refuse", "recompute", "allow")

STATE_AXES = ("shard", "tensor", "pipeline")
"""Axes over which parameters can be cut."""


@dataclass(frozen=True)
class MemoryOptions:
    """when_full: one of POLICIES. Raises InputError for another."""

    when_full: str = "refuse"

    def __post_init__(self) -> None:
        if self.when_full not in POLICIES:
            raise InputError(f"memory.when_full = {self.when_full!r} is not one of {', '.join(POLICIES)}")


REFUSE = MemoryOptions()


def memory_options(table: Mapping[str, Any] | None) -> MemoryOptions:
    """The options that a [memory] table gives, None for the defaults. Raises InputError for an unknown key."""
    known = [field.name for field in fields(MemoryOptions)]
    for key in table or {}:
        if key not in known:
            raise InputError(f"memory: unknown key {key!r}; there are {', '.join(known)}")
    return MemoryOptions(**(table or {}))


def capacity_bytes(system: System) -> int | None:
    """Memory of a device, None where nothing is known of it."""
    return None if system.device is None else system.device.sram_bytes


def fits(use: MemoryUse, system: System) -> bool:
    """Whether every device holds what it needs at all times."""
    capacity = capacity_bytes(system)
    return capacity is None or use.most_bytes <= capacity


def overflow(use: MemoryUse, mesh: Mesh, system: System) -> str:
    """In words, which device needs how much of what it has, and for what."""
    needed, there = format_bytes(use.most_bytes), format_bytes(capacity_bytes(system) or 0)
    return f"{mesh.place(use.busiest)} needs {needed} of {there}: {breakdown(use.peak_bytes[:, use.busiest])}"


def refuse(words: str, advice: Iterable[tuple[str, Callable[[], MemoryUse]]], system: System) -> PlanError:
    """The error for a step that does not fit, with those changes that make it fit.

    words: as `overflow`. advice: (what to change, function that gives the memory of the step with that change); one
    that raises InputError is no help.
    """
    helps = []
    for change, use in advice:
        try:
            if fits(use(), system):
                helps.append(change)
        except InputError:
            continue
    ending = f"fits with {' or '.join(helps)}" if helps else "cut it over more devices"
    return PlanError(f"memory: {words}; {ending} (memory.when_full = allow times it all the same)")


def check_resident(model: Module, updates: Mapping[str, Update], plan: Plan, system: System) -> None:
    """Refuse a model whose parameters, gradients and optimizer state alone cannot fit, before it is captured.

    Counted is what a plan could do at best, every axis that can cut parameters cutting all of them evenly, so that
    nothing is refused here that would have fitted. updates: of the parameters that the optimizer holds; the loss is
    taken to depend on all of these. Raises PlanError.
    """
    capacity = capacity_bytes(system)
    if capacity is None:
        return
    parameters = dict(model.named_parameters())
    weights = sum(p.numel() * p.element_size() for p in parameters.values())
    weights += sum(b.numel() * b.element_size() for b in model.buffers())
    held = {name: parameters[name] for name in updates}
    gradients = sum(p.numel() * p.element_size() for p in held.values())
    state = sum(p.numel() * _state_itemsize(updates[name], p.element_size()) for name, p in held.items())
    parts = prod(plan.size((axis,)) for axis in STATE_AXES)
    least = (weights + gradients + state) // parts
    if least <= capacity:
        return
    over = f" over the {parts} devices that the plan can cut it over" if parts > 1 else ""
    needed = -(-(weights + gradients + state) // capacity)
    raise PlanError(
        f"memory: a device needs at least {format_bytes(least)} of {format_bytes(capacity)} for parameters{over}: "
        f"{breakdown((weights // parts, gradients // parts, state // parts, 0, 0, 0))}; cut them over at least "
        f"{needed} devices by plan.shard, plan.tensor or plan.pipeline (memory.when_full = allow times it all the same)"
    )


def _state_itemsize(update: Update, itemsize: int) -> int:
    """Bytes of the optimizer's state for an element of a parameter."""
    return update.n_states * itemsize if update.state_itemsizes is None else sum(update.state_itemsizes)
