"""A stored Program and the machine that it is timed on, as plain values that a study can change and time again.

Works on what a system flattens to, links and devices, so that a change needs neither torch nor the model nor the
figures that the system was made of.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from meshemu.analysis.critical_path import CriticalPath, critical_path
from meshemu.cost import CostOptions, durations_ps
from meshemu.cost.interfaces import InterfaceRates, interfaces_of
from meshemu.cost.threads import units_of
from meshemu.emulator.changes import changed_setting
from meshemu.emulator.timed_step import TimingOptions
from meshemu.errors import RecordError
from meshemu.hardware import DeviceSpec, System
from meshemu.mesh import Mesh, flatten
from meshemu.network import Timing, time_program
from meshemu.program.ir import OpKind, Program
from meshemu.program.traffic import message_classes
from meshemu.record.reader import open_run

__all__ = ["Machine", "StoredStep", "TimedMachine", "machine_of", "open_step", "timed"]


@dataclass(frozen=True, eq=False)
class Machine:
    """Links, devices and interface processors, where it has any. system: what they were made of; slowness: how much
    longer than the others a device takes for each of its ops, by device id (1 where it is not named). interfaces: None
    where the step needs none.
    """

    system: System
    mesh: Mesh
    device: DeviceSpec | None
    interfaces: InterfaceRates | None = None
    slowness: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class StoredStep:
    """A step to be timed again: its Program, how it is timed, and the machine that it was timed on."""

    program: Program
    options: TimingOptions
    machine: Machine


@dataclass(frozen=True, eq=False)
class TimedMachine:
    """A step timed on a machine; path: where its time went."""

    timing: Timing
    path: CriticalPath

    @property
    def time_ps(self) -> int:
        """Virtual time of the step."""
        return self.timing.end_ps


def machine_of(system: System) -> Machine:
    """The machine that a system is, at its device granularity."""
    return Machine(system, flatten(system), system.device, interfaces_of(system))


def open_step(path: str | Path) -> StoredStep:
    """The first step of a results file. Raises RecordError for a file without one, or a Program without ops."""
    stored = open_run(path)
    setting = changed_setting(stored, ())
    program = stored.program()
    if not program.n_ops:
        raise RecordError(f"{path}: its Program has no ops, so that there is no time to study")
    machine = machine_of(setting.system)
    if not (program.kind == OpKind.INTERFACE).any():
        machine = replace(machine, interfaces=None)
    return StoredStep(program, setting.options, machine)


def timed(step: StoredStep, machine: Machine) -> TimedMachine:
    """Time the step on a machine. Raises InputError where its messages cannot travel there."""
    program, options = step.program, step.options
    router = options.router
    timing = time_program(
        program,
        machine.mesh,
        _durations_ps(program, machine, options.costs),
        packet_bytes=options.packet_bytes,
        order=options.routing,
        timeline_bins=0,
        router=router,
        message_class=0 if router is None else message_classes(program, router.message_classes),
        units=units_of(program, options.threads),
    )
    path = critical_path(program, machine.mesh, timing.ops.start_ps, timing.ops.end_ps, options.routing)
    return TimedMachine(timing, path)


def _durations_ps(program: Program, machine: Machine, costs: CostOptions) -> NDArray[np.int64]:
    durations = durations_ps(program, machine.device, costs, machine.interfaces)
    for device, slowness in machine.slowness.items():
        own = program.device == device
        durations[own] = np.rint(durations[own] * slowness).astype(np.int64)
    return durations
