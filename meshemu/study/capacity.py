"""What another size of SRAM would mean for a stored step: whether it fits, and where time is spent because it does not.

The time of a step depends on the size of SRAM only through what is done when it is full, so that scaling it gives no
other time for a stored Program. What the file tells is what each device holds at its peak, and which ops make
activations again that were not kept.
"""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from meshemu.cost.memory_use import MEMORY_CATEGORIES
from meshemu.program.ir import OpKind, Program
from meshemu.record.reader import Run
from meshemu.study.machine import StoredStep, TimedMachine

__all__ = ["Capacity", "MadeAgain", "Size", "capacity_of"]

_AGAIN = re.compile(r"(?:^|:)\w+_again(?:_\d+)?\b(?!.*:)")
"""What labels ("module:operator and more") of ops that make something again have: `workload.recompute` names them."""


@dataclass(frozen=True)
class Size:
    """SRAM times a factor. devices_over: how many hold more than that at their peak."""

    factor: float
    size_bytes: int
    devices_over: int


@dataclass(frozen=True)
class MadeAgain:
    """Ops of the step that make again what was not kept, with their messages. compute_ps: their work on the device that
    has most of it; path_ps: what of the critical path they are; remark: what the run says of it.
    """

    ops: int
    compute_ps: int
    path_ps: int
    remark: str


@dataclass(frozen=True)
class Capacity:
    """What devices hold of their SRAM. size_bytes: of a device; peak_bytes: the most that any holds, at place, by
    category in holds; when_full: what the run was to do about a step that does not fit. spill_ps: of the critical path
    for tensors on their way to the memory of interface processors and back.
    """

    size_bytes: int
    peak_bytes: int
    place: str
    holds: dict[str, int]
    sizes: tuple[Size, ...]
    when_full: str
    made_again: MadeAgain | None
    spill_ps: int

    @property
    def least_factor(self) -> float:
        """The factor of SRAM from which on the step fits as it is stored."""
        return self.peak_bytes / self.size_bytes


def capacity_of(run: Run, step: StoredStep, baseline: TimedMachine, factors: Sequence[float]) -> Capacity | None:
    """The answers for SRAM times each of `factors`; None where the run does not tell what devices hold, or nothing is
    known of their SRAM.
    """
    use, device = run.memory_use(), step.machine.device
    if use is None or device is None:
        return None
    sizes = [(factor, int(factor * device.sram_bytes)) for factor in factors]
    return Capacity(
        size_bytes=device.sram_bytes,
        peak_bytes=use.most_bytes,
        place=step.machine.mesh.place(use.busiest),
        holds=dict(zip(MEMORY_CATEGORIES, use.peak_bytes[:, use.busiest].tolist(), strict=True)),
        sizes=tuple(Size(factor, size, int(np.count_nonzero(use.total_bytes > size))) for factor, size in sizes),
        when_full=tomllib.loads(run.config).get("memory", {}).get("when_full", "refuse"),
        made_again=_made_again(step.program, baseline, run.assumptions),
        spill_ps=baseline.path.spill_ps,
    )


def _made_again(program: Program, baseline: TimedMachine, remarks: Sequence[str]) -> MadeAgain | None:
    of_label = np.array([_AGAIN.search(label) is not None for label in program.labels], np.bool_)
    if not of_label.any():
        return None
    again, times = of_label[program.label], baseline.timing.ops
    computes = again & (program.kind == OpKind.COMPUTE)
    per_device = np.zeros(program.n_devices, np.int64)
    np.add.at(per_device, program.device[computes], (times.end_ps - times.start_ps)[computes])
    path = np.array(baseline.path.ops, np.int64)
    taken_ps = np.diff(times.end_ps[path], prepend=0)
    return MadeAgain(
        ops=int(np.count_nonzero(again)),
        compute_ps=int(per_device.max()),
        path_ps=int(taken_ps[again[path]].sum()),
        remark=next((text for text in remarks if text.startswith("memory: ")), ""),
    )
