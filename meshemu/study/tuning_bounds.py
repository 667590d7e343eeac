"""How fast a step could be at best under a plan, from the Program of the same step on one device alone.

Each op of that Program is carried out under any plan too, in parts that devices hold. A device with the first part of
everything has at least an n-th of the work of each op, n being the devices of a stage, since the time of an op never
grows by more than its work does (docs/cost-model.md), and it launches each op of its stage. Stages add up to the whole,
so that the busiest has at least an even share.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from meshemu.cost import durations_ps
from meshemu.cost.interfaces import interfaces_of
from meshemu.cost.op_classes import OPTIMIZERS, base_name
from meshemu.cost.threads import units_of
from meshemu.emulator.timed_step import TimingOptions
from meshemu.hardware import System
from meshemu.program.ir import OpKind, Program
from meshemu.study.tuning_space import extent, n_devices

__all__ = ["UNKNOWN", "AloneTime", "alone_time", "plan_bound_ps"]


@dataclass(frozen=True)
class AloneTime:
    """What each unit of one device alone is busy with in the step, without updates, in ps: work, that any number of
    devices may share, and launches of ops, each of which some device of every stage makes.
    """

    work_ps: tuple[int, ...]
    launch_ps: tuple[int, ...]


UNKNOWN = AloneTime((), ())
"""Of a step about which nothing is known."""


def alone_time(program: Program, system: System, options: TimingOptions) -> AloneTime:
    """Of the Program of a step on one device.

    What fusion might save under some plan (loads, stores, launches) does not count, and nothing does where ops take
    measured times, which follow no law.
    """
    device = system.device
    if device is None or options.costs.calibration is not None:
        return UNKNOWN
    counted = program
    if options.fusion:
        nothing = np.zeros(program.n_ops, np.int64)
        counted = replace(program, read_bytes=nothing, write_bytes=nothing)
    durations = durations_ps(counted, device, interfaces=interfaces_of(system))
    of_step = np.array([base_name(name) not in OPTIMIZERS for name in program.op_classes], np.bool_)
    taken = np.flatnonzero((program.kind == OpKind.COMPUTE) & (durations > 0) & of_step[program.op_class])
    unit = units_of(program, options.threads).of_op[taken]
    busy_ps = [int(durations[taken][unit == one].sum()) for one in np.unique(unit)]
    launches_ps = [int((unit == one).sum()) * device.op_launch_ps for one in np.unique(unit)]
    work_ps = tuple(busy - launches for busy, launches in zip(busy_ps, launches_ps, strict=True))
    return AloneTime(work_ps, tuple(0 if options.fusion else ps for ps in launches_ps))


def plan_bound_ps(table: Mapping[str, Any], alone: AloneTime) -> int:
    """No step under the plan is faster. alone: of the step in as many micro-batches as the plan has."""
    devices, stages = n_devices(table), extent(table.get("pipeline", 1))
    parts = zip(alone.work_ps, alone.launch_ps, strict=True)
    return max((-(-work // devices) + launches // stages for work, launches in parts), default=0)
