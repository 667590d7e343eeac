"""A Program on a system with its virtual time: what is recorded of every step. Works without torch."""

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meshemu.comm import Comm
from meshemu.cost import Assumption, CostOptions, assumptions, durations_ps, read_calibration
from meshemu.cost.interfaces import interfaces_of
from meshemu.cost.memory_use import MemoryUse
from meshemu.cost.threads import ONE_EACH, Threads, units_of
from meshemu.emulator.flits import announce_flits
from meshemu.errors import InputError
from meshemu.hardware import Router, System
from meshemu.mesh import Mesh, flatten
from meshemu.mesh.routing import Order
from meshemu.network import Timing, time_program
from meshemu.network.summary import StepSummary, step_summary
from meshemu.program.interfaces import ingest_ops
from meshemu.program.ir import Program
from meshemu.program.traffic import TRAFFIC, message_classes
from meshemu.units import format_time

__all__ = ["TimedStep", "TimingOptions", "time_step", "timing_options"]


@dataclass(frozen=True)
class TimingOptions:
    """How virtual time is computed, and which collectives are used.

    prefetch: modules ahead of their use for which sharded parameters are pooled (docs/memory.md). fusion: pointwise ops
    run within the op that makes what they alone read. calibration: a file of measured times of ops
    (docs/cost-model.md). compute_threads, communication_threads: of a device (docs/timing-model.md). router: routers
    with finite buffers (docs/back-pressure.md); None: unbounded FIFOs. Raises InputError for packets that do not fit
    the router, for a calibration that cannot be read, and for threads that a device does not have.
    """

    packet_bytes: int = 4096
    routing: Order = "xy"
    collective: str = "auto"
    bucket_bytes: int = 25_000_000
    prefetch: int = 1
    timeline_bins: int = 64
    fusion: bool = False
    calibration: str | None = None
    compute_threads: int = 1
    communication_threads: int = 1
    router: Router | None = None

    def __post_init__(self) -> None:
        if self.router is not None:
            self.router.packet_flits(self.packet_bytes)
        if self.calibration is not None:
            _ = self.costs
        _ = self.threads

    @cached_property
    def costs(self) -> CostOptions:
        """How long ops take."""
        table = None if self.calibration is None else read_calibration(self.calibration)
        return CostOptions(self.fusion, table)

    @property
    def threads(self) -> Threads:
        """How many of a device's ops are under way at a time."""
        return Threads(self.compute_threads, self.communication_threads)

    def tables(self) -> dict[str, Any]:
        """The sections [timing] and [network] of a configuration that say the same."""
        timing = asdict(replace(self, router=None))
        del timing["router"]
        if self.calibration is None:
            del timing["calibration"]
        return {"timing": timing, "network": {} if self.router is None else {"router": self.router.as_table()}}


@dataclass(frozen=True, eq=False)
class TimedStep:
    """One step of a Program on a system. peak_memory_bytes: int64[n_devices]; memory: for what, where that is known."""

    system: System
    mesh: Mesh
    program: Program
    timing: Timing
    summary: StepSummary
    peak_memory_bytes: NDArray[np.int64]
    assumptions: tuple[Assumption, ...]
    memory: MemoryUse | None = None


def timing_options(options: TimingOptions | None, router: Router | None) -> TimingOptions:
    """Options of a step that is to be built: `options` (None: the defaults), with `router` unless that is None.

    Raises InputError for two different routers, and for collectives that a router cannot carry.
    """
    chosen = options or TimingOptions()
    if router is not None:
        if chosen.router not in (None, router):
            raise InputError(f"two routers: router = {router} and options.router = {chosen.router}")
        chosen = replace(chosen, router=router)
    if chosen.router is not None and chosen.collective == "in_network":
        raise InputError(
            "timing.collective = 'in_network': routers with finite buffers (network.router) neither fork nor merge "
            "messages; set timing.collective to ring, rows_columns or tree, or leave network.router out"
        )
    return chosen


def time_step(
    program: Program,
    system: System,
    peak_memory_bytes: NDArray[np.int64],
    options: TimingOptions,
    comm: Comm,
    memory: MemoryUse | None = None,
) -> TimedStep:
    """Time `program` on `system`; with a router, messages travel in the classes of `program.traffic`."""
    mesh = flatten(system)
    durations = durations_ps(program, system.device, options.costs, interfaces_of(system))
    router = options.router
    if router is not None and comm.rank == 0:
        announce_flits(program, mesh, router)
    timing = time_program(
        program,
        mesh,
        durations,
        packet_bytes=options.packet_bytes,
        order=options.routing,
        timeline_bins=options.timeline_bins,
        router=router,
        message_class=0 if router is None else message_classes(program, router.message_classes),
        units=units_of(program, options.threads),
        comm=comm,
    )
    ingest = ingest_ops(program)
    summary = step_summary(program, timing, durations, ingest)
    named = assumptions(system.device, program, options.costs) + ([] if router is None else [_of_routers(router)])
    if options.threads != ONE_EACH:
        named.append(_of_threads(options.threads))
    if ingest.any():
        named.append(_of_ingest(int(timing.ops.end_ps[ingest].max()), summary))
    return TimedStep(system, mesh, program, timing, summary, peak_memory_bytes, tuple(named), memory)


def _of_ingest(there_ps: int, summary: StepSummary) -> Assumption:
    """When the data of the next step are there, and what that means for this one."""
    waits = f"the step waits {format_time(summary.ingest_ps)} for them" if summary.ingest_ps else "the step hides that"
    return Assumption(
        "ingest",
        "The batch of the next step is brought in during this one, over PCIe, interface processors and links of the "
        f"mesh; it is on its devices after {format_time(there_ps)}: {waits}.",
    )


def _of_threads(threads: Threads) -> Assumption:
    """What times with more threads than one of each kind rest on."""
    computing = (
        "; two compute threads take a device's ops in turn and share one matrix and one vector unit, each with all of "
        "the SRAM's bandwidth"
    )
    return Assumption(
        "threads",
        f"Each device runs {threads.compute} compute and {threads.communication} communication threads"
        f"{computing if threads.compute > 1 else ''}.",
    )


def _of_routers(router: Router) -> Assumption:
    """What times with routers rest on; without them links are FIFOs, which needs no words."""
    classes = ", ".join(f"{number} {what}" for number, what in enumerate(TRAFFIC[: router.message_classes]))
    split = f"; message classes: {classes}" if router.message_classes > 1 else ""
    return Assumption("back_pressure", f"Timed with routers that have finite buffers: {router.describe()}{split}.")
