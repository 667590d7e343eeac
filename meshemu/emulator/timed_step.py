"""A Program on a system with its virtual time: what is recorded of every step. Works without torch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.comm import Comm
from meshemu.cost import Assumption, assumptions, durations_ps
from meshemu.hardware import System
from meshemu.mesh import Mesh, flatten
from meshemu.mesh.routing import Order
from meshemu.network import Timing, time_program
from meshemu.network.summary import StepSummary, step_summary
from meshemu.program.ir import Program

__all__ = ["TimedStep", "TimingOptions", "time_step"]


@dataclass(frozen=True)
class TimingOptions:
    """How virtual time is computed, and which collectives are used."""

    packet_bytes: int = 4096
    routing: Order = "xy"
    collective: str = "auto"
    bucket_bytes: int = 25_000_000
    timeline_bins: int = 64


@dataclass(frozen=True, eq=False)
class TimedStep:
    """One step of a Program on a system. peak_memory_bytes: int64[n_devices]."""

    system: System
    mesh: Mesh
    program: Program
    timing: Timing
    summary: StepSummary
    peak_memory_bytes: NDArray[np.int64]
    assumptions: tuple[Assumption, ...]


def time_step(
    program: Program, system: System, peak_memory_bytes: NDArray[np.int64], options: TimingOptions, comm: Comm
) -> TimedStep:
    """Time `program` on `system`."""
    mesh = flatten(system)
    durations = durations_ps(program, system.device)
    timing = time_program(
        program,
        mesh,
        durations,
        packet_bytes=options.packet_bytes,
        order=options.routing,
        timeline_bins=options.timeline_bins,
        comm=comm,
    )
    summary = step_summary(program, timing, durations)
    named = tuple(assumptions(system.device, program))
    return TimedStep(system, mesh, program, timing, summary, peak_memory_bytes, named)
