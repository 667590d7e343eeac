"""The least that devices hold under a plan, known before the step is captured: what exceeds it is refused at once.

Nothing is refused here that would have fitted: parameters count as if every axis that can cut them cut all of them
evenly, and what the backward pass reads as if all devices shared it evenly. Some device holds no less than the mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from meshemu.cost import Update
from meshemu.cost.interfaces import interfaces_of
from meshemu.cost.memory_use import MEMORY_CATEGORIES, breakdown
from meshemu.emulator.memory_policy import MemoryOptions, capacity_bytes
from meshemu.errors import PlanError
from meshemu.hardware import System
from meshemu.hardware.format_roles import Formats
from meshemu.units import format_bytes
from meshemu.workload.plan import Plan
from meshemu.workload.saved import saved_bytes
from meshemu.workload.step_maths import StepMaths

__all__ = ["Least", "check_least", "least_memory"]

STATE_AXES = ("shard", "tensor", "pipeline")
"""Axes over which parameters can be cut."""

BYTES_OF_WIDTH = 16
"""Bytes that results of a layer are taken to have at most, for an element of the batch and one of its width: what makes
the forward pass worth going through."""


@dataclass(frozen=True)
class Least:
    """Bytes of whole tensors: parameters with buffers, their gradients, the optimizer's state, and the activations of a
    micro-batch that the backward pass reads. parts: over which the first three can be cut; devices: that take part.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    parts: int
    devices: int

    def at_end(self) -> dict[str, int]:
        """Category -> bytes of a device at the end of a step."""
        whole = {"weights": self.weights, "gradients": self.gradients, "optimizer": self.optimizer}
        return {name: size // self.parts for name, size in whole.items()}

    def at_turn(self) -> dict[str, int]:
        """Category -> bytes of a device when the backward pass of a micro-batch begins."""
        kept = {"weights": self.weights // self.parts, "optimizer": self.optimizer // self.parts}
        return kept | {"activations": self.activations // self.devices}


def check_least(
    maths: StepMaths, batch: Sequence[Any], updates: Mapping[str, Update], plan: Plan | None, n_devices: int,
    system: System, memory: MemoryOptions, formats: Formats, batch_size: int | None,
) -> None:  # fmt: skip
    """Refuse a step that can fit under no arrangement of the plan. batch: tensors of a micro-batch; batch_size: samples
    of the whole batch where it is one micro-batch, else None. The others as in `least_memory`.

    Raises PlanError.
    """
    capacity = capacity_bytes(system)
    if capacity is None or memory.when_full == "allow":
        return
    least = least_memory(
        maths, batch, updates, plan, n_devices, capacity, formats, activations=memory.when_full == "refuse"
    )
    if sum(least.at_end().values()) > capacity:
        raise _too_many_parameters(least, capacity)
    if sum(least.at_turn().values()) > capacity:
        raise _too_many_activations(least, capacity, batch_size, interfaces_of(system) is not None)


def least_memory(
    maths: StepMaths, batch: Sequence[Any], updates: Mapping[str, Update], plan: Plan | None, n_devices: int,
    capacity: int, formats: Formats, *, activations: bool = True,
) -> Least:  # fmt: skip
    """updates: of the parameters that the optimizer holds; the loss is taken to depend on all of these. plan: None for
    one that is still to be found, over up to n_devices. activations: False to count none, as where they can be made
    again; nor do they count where they are far from the capacity of all devices, in bytes of one, or cannot be counted.
    """
    parts = n_devices if plan is None else prod(plan.size((axis,)) for axis in STATE_AXES)
    devices = n_devices if plan is None else plan.n_positions
    parameters = maths.parameters
    held = {name: parameters[name] for name in updates}
    itemsize = min((role.number_format.size_bytes for role in formats.named().values()), default=None)
    if maths.autocast_dtype is not None:
        itemsize = maths.autocast_dtype.itemsize
    worth = activations and maths.gradients and _estimate(maths, batch) > capacity * devices
    return Least(
        weights=sum(t.numel() * t.element_size() for t in (*parameters.values(), *maths.buffers.values())),
        gradients=sum(p.numel() * p.element_size() for p in held.values()),
        optimizer=sum(p.numel() * _state_itemsize(updates[name], p.element_size()) for name, p in held.items()),
        activations=(saved_bytes(maths, batch, itemsize) or 0) if worth else 0,
        parts=parts,
        devices=devices,
    )


def _estimate(maths: StepMaths, batch: Sequence[Any]) -> int:
    """About the most that activations may come to."""
    widths = sum(max(p.shape, default=0) for p in maths.parameters.values())
    elements: int = sum(leaf.numel() for leaf in batch)
    return elements * widths * BYTES_OF_WIDTH


def _too_many_parameters(least: Least, capacity: int) -> PlanError:
    held, parts = least.at_end(), least.parts
    over = f" over the {parts} devices that the plan can cut it over" if parts > 1 else ""
    needed = -(-(least.weights + least.gradients + least.optimizer) // capacity)
    return PlanError(
        f"memory: a device needs at least {format_bytes(sum(held.values()))} of {format_bytes(capacity)} for "
        f"parameters{over}: {_words(held)}; cut them over at least {needed} devices by plan.shard, plan.tensor or "
        "plan.pipeline (memory.when_full = allow times it all the same)"
    )


def _too_many_activations(least: Least, capacity: int, batch_size: int | None, spills: bool) -> PlanError:
    held = least.at_turn()
    room = capacity - held["weights"] - held["optimizer"]
    samples = None if batch_size is None else batch_size * room * least.devices // least.activations
    most = "take smaller micro-batches or more devices"
    if samples:
        most = f"no batch of more than {samples} samples can fit"
    return PlanError(
        f"memory: a device needs at least {format_bytes(sum(held.values()))} of {format_bytes(capacity)} when the "
        f"backward pass begins: {_words(held)}, a share of the {format_bytes(least.activations)} that it reads over "
        f"{least.devices} devices; {most}; memory.when_full = recompute makes activations again"
        f"{', spill lets them wait at interface processors' if spills else ''} (allow times it all the same)"
    )


def _words(held: Mapping[str, int]) -> str:
    return breakdown([held.get(name, 0) for name in MEMORY_CATEGORIES])


def _state_itemsize(update: Update, itemsize: int) -> int:
    """Bytes of the optimizer's state for an element of a parameter."""
    return update.n_states * itemsize if update.state_itemsizes is None else sum(update.state_itemsizes)
