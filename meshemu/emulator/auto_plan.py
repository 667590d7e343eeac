"""`plan = "auto"`: build a few plans, time each, and take the fastest that fits into memory."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from meshemu.comm import Comm
from meshemu.cost import durations_ps
from meshemu.cost.interfaces import interfaces_of
from meshemu.cost.threads import units_of
from meshemu.emulator.build_step import BuiltStep
from meshemu.emulator.timed_step import TimingOptions
from meshemu.errors import InputError, PlanError
from meshemu.hardware import System
from meshemu.mesh import Mesh
from meshemu.network import time_program
from meshemu.program.ir import OpKind
from meshemu.program.loads import lower_bound_ps
from meshemu.program.units import NO_UNIT, Unit
from meshemu.units import format_bytes, format_time
from meshemu.workload.plan import PIPELINE, Plan

__all__ = ["choose_plan"]

MOST_MESSAGES = 100_000
"""Programs with more messages are judged by what bounds them instead of being timed."""


@dataclass(frozen=True, eq=False)
class _Tried:
    step: BuiltStep
    time_ps: int
    fits: bool

    def describe(self) -> str:
        return f"{self.step.plan.describe()}: {format_time(self.time_ps)}"


def choose_plan(
    plans: list[Plan],
    build: Callable[[Plan], BuiltStep],
    mesh: Mesh,
    system: System,
    options: TimingOptions,
    comm: Comm,
) -> tuple[BuiltStep, str]:
    """(the step under the fastest of `plans` whose memory fits every device, why in one line).

    Times are those with unbounded FIFOs, also where the step will be timed with routers: of many plans, back-pressure
    would take minutes. Where no plan fits, the one that needs least memory. A plan that the model cannot be partitioned
    under is passed over. Raises PlanError if that is all of them. The choice is the same on any number of ranks.
    """
    tried, faults = [], []
    for plan in plans:
        try:
            step = build(plan)
        except InputError as error:
            faults.append(str(error))
            continue
        fits = system.device is None or int(step.peak_memory_bytes.max()) <= system.device.sram_bytes
        tried.append(_Tried(step, _time_ps(step, mesh, system, options, comm), fits))
    if not tried:
        raise PlanError(f'plan = "auto" finds no plan for this model; the first says: {faults[0]}')
    fitting = sorted((t for t in tried if t.fits), key=lambda t: t.time_ps)
    if not fitting:
        least = min(tried, key=lambda t: int(t.step.peak_memory_bytes.max()))
        words = f"{least.step.plan.describe()} needs the least memory, {_memory(least, system)}"
        return least.step, words + _of_micro_batches(least)
    best, *others = fitting
    words = f"{best.describe()} a step, {_memory(best, system)}{_of_micro_batches(best)}"
    if others:
        words += f"; next {others[0].describe()}"
    too_large = len(tried) - len(fitting)
    return best.step, words + (f"; {too_large} of {len(tried)} plans do not fit into memory" if too_large else "")


def _of_micro_batches(tried: _Tried) -> str:
    """What choosing a pipeline means for the maths."""
    return "; loss and gradients are means over its micro-batches" if tried.step.plan.has(PIPELINE) else ""


def _memory(tried: _Tried, system: System) -> str:
    needed = format_bytes(int(tried.step.peak_memory_bytes.max()))
    return f"{needed} of memory" if system.device is None else f"{needed} of {format_bytes(system.device.sram_bytes)}"


def _time_ps(step: BuiltStep, mesh: Mesh, system: System, options: TimingOptions, comm: Comm) -> int:
    """Time of a step; of a large one, compute of the busiest device plus what its messages take at least, or what its
    busiest interface processor takes.
    """
    program = step.program
    durations = durations_ps(program, system.device, options.costs, interfaces_of(system))
    if program.n_messages <= MOST_MESSAGES:
        timing = time_program(
            program, mesh, durations, packet_bytes=options.packet_bytes, order=options.routing, timeline_bins=0,
            units=units_of(program, options.threads), comm=comm,
        )  # fmt: skip
        return timing.end_ps
    unit = units_of(program, options.threads).of_op
    counted = np.flatnonzero((unit != NO_UNIT) & (program.kind != OpKind.REDUCE))
    busy = np.zeros((program.n_devices, max(len(Unit), int(unit.max(initial=0)) + 1)), np.int64)
    np.add.at(busy, (program.device[counted], unit[counted]), np.asarray(durations, np.int64)[counted])
    computing, at_interfaces = (int(part.max(initial=0)) for part in np.split(busy, [len(Unit)], axis=1))
    return max(computing + lower_bound_ps(program, mesh), at_interfaces)
