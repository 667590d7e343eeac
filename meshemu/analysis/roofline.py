"""Where each class of compute lies under the roofs of a device: what it reaches, and which roof it meets.

Of a class of ops: its work over the time that devices spend on it, its arithmetic intensity, and what bounds most of
that time (`cost.bounds`: the matrix or vector unit, loads, stores, operands on the on-die network, launch).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.cost import CostOptions
from meshemu.cost.duration import BOUNDS, bounds
from meshemu.cost.number_formats import flops_per_s
from meshemu.cost.op_classes import MATRIX, base_name
from meshemu.hardware import DeviceSpec
from meshemu.program.ir import OpKind, Program

__all__ = ["ClassRoof", "class_roofs"]

_I64 = NDArray[np.int64]


@dataclass(frozen=True)
class ClassRoof:
    """One class of COMPUTE ops in one number format.

    device_ps: time of all its ops on all devices. achieved_flops_per_s: of one device while it works on them.
    intensity_flop_per_byte: flops over bytes loaded and stored; None where nothing is moved. roof_flops_per_s: the rate
    of its unit, or what memory feeds at this intensity if that is less. bound: what bounds most of the time, share: how
    much of it.
    """

    op_class: str
    number_format: str
    ops: int
    flops: int
    moved_bytes: int
    device_ps: int
    achieved_flops_per_s: float
    intensity_flop_per_byte: float | None
    roof_flops_per_s: float
    bound: str
    share: float

    @property
    def of_roof(self) -> float:
        """What it reaches of its roof, 0 to 1."""
        return self.achieved_flops_per_s / self.roof_flops_per_s if self.roof_flops_per_s else 0.0


def class_roofs(
    program: Program, device: DeviceSpec, duration_ps: _I64, options: CostOptions | None = None
) -> list[ClassRoof]:
    """Every class of COMPUTE ops that takes time, the longest first; duration_ps: int64[n_ops]."""
    codes = bounds(program, device, options or CostOptions())
    timed = np.flatnonzero((program.kind == OpKind.COMPUTE) & (duration_ps > 0))
    key = program.op_class[timed].astype(np.int64) * len(program.number_formats) + program.number_format[timed]
    found = []
    for group in np.unique(key):
        ops = timed[key == group]
        by_bound = np.zeros(len(BOUNDS), np.int64)
        np.add.at(by_bound, codes[ops], duration_ps[ops])
        op_class, number_format = divmod(int(group), len(program.number_formats))
        found.append(_roof(program, device, ops, int(duration_ps[ops].sum()), by_bound, op_class, number_format))
    return sorted(found, key=lambda roof: -roof.device_ps)


def _roof(
    program: Program, device: DeviceSpec, ops: _I64, device_ps: int, by_bound: _I64, op_class: int, number_format: int
) -> ClassRoof:
    name, form = program.op_classes[op_class], program.number_formats[number_format]
    flops = int(program.flops[ops].sum())
    read, written = int(program.read_bytes[ops].sum()), int(program.write_bytes[ops].sum())
    peak = flops_per_s(device, form, matrix=base_name(name) in MATRIX) if flops else 0
    memory_s = max(read / device.load_bytes_per_s, written / device.store_bytes_per_s)
    fed = flops / memory_s if memory_s else float(peak)
    return ClassRoof(
        op_class=name,
        number_format=form,
        ops=len(ops),
        flops=flops,
        moved_bytes=read + written,
        device_ps=device_ps,
        achieved_flops_per_s=flops / (device_ps / 1e12),
        intensity_flop_per_byte=flops / (read + written) if read + written else None,
        roof_flops_per_s=min(float(peak), fed),
        bound=BOUNDS[int(by_bound.argmax())],
        share=float(by_bound.max() / device_ps),
    )
