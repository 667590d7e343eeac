"""From what an op does to how long it takes on a device."""

from meshemu.cost.assumptions import Assumption, assumptions
from meshemu.cost.duration import combine_cost, durations_ps
from meshemu.cost.work import TensorSpec, Work, op_work

__all__ = ["Assumption", "TensorSpec", "Work", "assumptions", "combine_cost", "durations_ps", "op_work"]
