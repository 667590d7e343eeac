"""How much the time of a step depends on each figure that nobody published: each is doubled and halved by itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from meshemu.cost import BOUNDS, bounds, durations_ps
from meshemu.cost.interfaces import InterfaceRates
from meshemu.cost.number_formats import flops_per_s
from meshemu.cost.op_classes import MATRIX, base_name
from meshemu.emulator.timing import time
from meshemu.errors import InputError
from meshemu.hardware import DeviceSpec, System
from meshemu.program.ir import OpKind, Program

__all__ = ["ClassRow", "Sensitivity", "achieved", "sensitivity"]


@dataclass(frozen=True)
class Sensitivity:
    """A figure, its value and grade, and what the step takes with twice and half of it, over what it takes as it is."""

    key: str
    value: str
    grade: str
    doubled: float
    halved: float


@dataclass(frozen=True)
class ClassRow:
    """Ops of one class on all devices. of_peak: flops over what the unit could do in their time, None without flops.
    bound: what bounds most of their time, one of cost.BOUNDS.
    """

    op_class: str
    ops: int
    time_ps: int
    of_peak: float | None
    bound: str


def sensitivity(program: Program, system: System, keys: Sequence[str]) -> list[Sensitivity]:
    """A row for each of the figures `keys`. Raises InputError for a key that the system lacks."""
    known = dict(system.figures())
    for key in keys:
        if key not in known:
            raise InputError(f"unknown figure {key!r} of {system.name}; it has {', '.join(known)}")
    usual_ps = time(program, system, packet_bytes=65536).end_ps

    def ratio(key: str, value: int) -> float:
        changed = system.override({key: value})
        return time(program, changed, packet_bytes=65536).end_ps / usual_ps

    rows = []
    for key in keys:
        figure = known[key]
        value = figure.number
        rows.append(Sensitivity(key, figure.text(), figure.grade, ratio(key, 2 * value), ratio(key, value // 2)))
    return rows


def achieved(
    program: Program, device: DeviceSpec, most: int = 8, interfaces: InterfaceRates | None = None
) -> list[ClassRow]:
    """The op classes that take most time, longest first. interfaces: as in `cost.durations_ps`."""
    durations, codes = durations_ps(program, device, interfaces=interfaces), bounds(program, device)
    peaks = _peaks(program, device)
    found = []
    for index, name in enumerate(program.op_classes):
        ops = np.flatnonzero((program.op_class == index) & (program.kind == OpKind.COMPUTE) & (durations > 0))
        if not len(ops):
            continue
        time_ps, flops_ps = int(durations[ops].sum()), 0.0
        for number_format in np.unique(program.number_format[ops]):
            own = ops[program.number_format[ops] == number_format]
            flops_ps += int(program.flops[own].sum()) / peaks[base_name(name) in MATRIX, int(number_format)] * 1e12
        by_bound = np.bincount(codes[ops], weights=durations[ops], minlength=len(BOUNDS))
        share = flops_ps / time_ps if flops_ps else None
        found.append(ClassRow(name, len(ops), time_ps, share, BOUNDS[int(by_bound.argmax())]))
    return sorted(found, key=lambda row: -row.time_ps)[:most]


def _peaks(program: Program, device: DeviceSpec) -> Mapping[tuple[bool, int], int]:
    return {
        (matrix, index): flops_per_s(device, name, matrix=matrix)
        for matrix in (False, True)
        for index, name in enumerate(program.number_formats)
        if name
    }
