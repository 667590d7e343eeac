"""The roofs of one device: the highest rates at which it computes, and what its memory feeds them with.

After Williams, Waterman and Patterson, "Roofline" (CACM 52(4), 2009). Intensity is FLOPs per byte loaded from or stored
to the device's memory; the sloping roof is both rates together, since loads and stores proceed side by side.
"""

from dataclasses import dataclass

import numpy as np

from meshemu.hardware import System
from meshemu.record import Run

__all__ = ["Roof", "roofs"]

_UNITS = ("matrix", "vector")


@dataclass(frozen=True)
class Roof:
    """A bound of one device: a level in FLOP/s, or, where slope is true, bytes per second times intensity."""

    name: str
    rate_per_s: int
    slope: bool


def roofs(run: Run) -> list[Roof]:
    """Peak rates of a device in the formats of the run's ops, and of its memory; none without a device."""
    device, program = System.from_json(run.system_json).device, run.program()
    if device is None:
        return []
    used = [program.number_formats[index] for index in np.unique(program.number_format[program.flops > 0])]
    tables = (device.matrix_flops_per_s, device.vector_flops_per_s)
    levels = {
        (rates[name], unit, name) for unit, rates in zip(_UNITS, tables, strict=True) for name in used if name in rates
    }
    moved = device.load_bytes_per_s + device.store_bytes_per_s
    memory = [Roof("memory, loads and stores", moved, True)] if moved else []
    merged: dict[int, list[str]] = {}
    for rate, unit, name in sorted(levels, reverse=True):
        merged.setdefault(rate, []).append(f"{unit} {name}")
    return [*(Roof(", ".join(names), rate, False) for rate, names in merged.items()), *memory]
