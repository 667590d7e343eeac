"""What a step that waits for its batch waits for, and at which rate it would not have to."""

from dataclasses import dataclass
from math import ceil

import numpy as np

from meshemu.analysis.path_strip import PARTS, PathStrip
from meshemu.cost.interfaces import InterfaceRates, interfaces_of
from meshemu.hardware import System
from meshemu.program.interfaces import LINK_LATENCY
from meshemu.program.ir import Program
from meshemu.units import format_bandwidth

__all__ = ["NO_WAIT", "IngestWait", "ingest_wait", "remedy"]


@dataclass(frozen=True)
class IngestWait:
    """How long a step waits for its batch. op_class, taken_ps: class of the ops at interface processors that take most
    of the critical path for ingest, and how long they do ("", 0 without any). n_interfaces: processors that are used;
    rates: of each, None where none are known.
    """

    waits_ps: int
    op_class: str
    taken_ps: int
    n_interfaces: int
    rates: InterfaceRates | None


NO_WAIT = IngestWait(0, "", 0, 0, None)


def ingest_wait(program: Program, strip: PathStrip, waits_ps: int, system: System) -> IngestWait:
    """Read it off the critical path. waits_ps: how much longer the step is than its own work."""
    pieces = np.flatnonzero(strip.part == PARTS.index("ingest"))
    by_class = np.zeros(len(program.op_classes) + 1, np.int64)
    np.add.at(by_class, program.op_class[strip.op[pieces]], (strip.end_ps - strip.start_ps)[pieces])
    most = int(by_class.argmax())
    n_interfaces = len(np.unique(program.interface[program.interface >= 0]))
    name = program.op_classes[most] if by_class[most] else ""
    return IngestWait(waits_ps, name, int(by_class[most]), n_interfaces, interfaces_of(system))


def remedy(wait: IngestWait) -> str:
    """What would just hide the ingest: all else that it takes stays, and the unit that takes most gets the rest of the
    time that the step takes by itself.
    """
    room_ps = wait.taken_ps - wait.waits_ps
    if wait.rates is None or wait.op_class in ("", LINK_LATENCY) or room_ps <= 0:
        return "more interface processors, or smaller samples, would save up to that"
    times = wait.taken_ps / room_ps
    needed = wait.rates.bytes_per_s(wait.op_class) * times
    limits = {f"interface.{name}": rate for name, rate in wait.rates.limits(wait.op_class).items()}
    slow = [f"{name} = {format_bandwidth(rate)}" for name, rate in limits.items() if rate < needed]
    return (
        f"{format_bandwidth(round(needed))} in place of {' and '.join(slow)} would hide it, as would "
        f"{ceil(times * wait.n_interfaces):,} interface processors in place of {wait.n_interfaces:,}, or "
        f"{100 / times:.3g} % of the bytes"
    )
