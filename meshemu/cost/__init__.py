"""From what an op does to how long it takes on a device."""

from meshemu.cost.assumptions import Assumption, assumptions
from meshemu.cost.duration import combine_cost, durations_ps, work_ps
from meshemu.cost.updates import Update
from meshemu.cost.work import TensorSpec, Work, op_work

__all__ = [
    "Assumption",
    "TensorSpec",
    "Update",
    "Work",
    "assumptions",
    "combine_cost",
    "durations_ps",
    "op_work",
    "work_ps",
]
