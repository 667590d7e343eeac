"""meshemu: an MPI-parallel emulator of a wafer-scale 2D mesh of training dies.

    import meshemu
    system = meshemu.System.preset("dojo-tile", devices="die")
    result = meshemu.emulate(model, (inputs, targets), loss_fn, system=system, plan="data", steps=5)

Names are imported when they are first used: timing and analysis do not load torch, and importing meshemu loads nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from meshemu.version import __version__

if TYPE_CHECKING:
    from meshemu.emulator.collective_times import collective
    from meshemu.emulator.emulation import EmulationResult, emulate
    from meshemu.emulator.evaluating import EvaluationResult, evaluate
    from meshemu.emulator.retiming import retime
    from meshemu.emulator.running import RunResult, run
    from meshemu.emulator.timed_step import TimingOptions
    from meshemu.emulator.timing import simulate_messages, time
    from meshemu.errors import InputError, MeshemuError
    from meshemu.hardware import Router, System
    from meshemu.network import MessageTimes, Timing, compare_modes
    from meshemu.program.ir import Program
    from meshemu.record.compare import compare
    from meshemu.record.reader import Run
    from meshemu.record.reader import open_run as open

__all__ = [
    "EmulationResult",
    "EvaluationResult",
    "InputError",
    "MeshemuError",
    "MessageTimes",
    "Program",
    "Router",
    "Run",
    "RunResult",
    "System",
    "Timing",
    "TimingOptions",
    "__version__",
    "collective",
    "compare",
    "compare_modes",
    "emulate",
    "evaluate",
    "open",
    "retime",
    "run",
    "simulate_messages",
    "time",
]

_HOMES = {
    "EmulationResult": ("emulator.emulation", "EmulationResult"),
    "EvaluationResult": ("emulator.evaluating", "EvaluationResult"),
    "InputError": ("errors", "InputError"),
    "MeshemuError": ("errors", "MeshemuError"),
    "MessageTimes": ("network", "MessageTimes"),
    "Program": ("program.ir", "Program"),
    "Router": ("hardware", "Router"),
    "Run": ("record.reader", "Run"),
    "RunResult": ("emulator.running", "RunResult"),
    "System": ("hardware", "System"),
    "Timing": ("network", "Timing"),
    "TimingOptions": ("emulator.timed_step", "TimingOptions"),
    "collective": ("emulator.collective_times", "collective"),
    "compare": ("record.compare", "compare"),
    "compare_modes": ("network", "compare_modes"),
    "emulate": ("emulator.emulation", "emulate"),
    "evaluate": ("emulator.evaluating", "evaluate"),
    "open": ("record.reader", "open_run"),
    "retime": ("emulator.retiming", "retime"),
    "run": ("emulator.running", "run"),
    "simulate_messages": ("emulator.timing", "simulate_messages"),
    "time": ("emulator.timing", "time"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
