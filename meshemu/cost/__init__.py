"""From what an op does to how long it takes on a device."""

from meshemu.cost.assumptions import Assumption, assumptions
from meshemu.cost.calibration import Calibration, Measured, read_calibration, write_calibration
from meshemu.cost.duration import BOUNDS, bounds, combine_cost, durations_ps
from meshemu.cost.options import PLAIN, CostOptions
from meshemu.cost.single import work_ps
from meshemu.cost.updates import Update
from meshemu.cost.work import TensorSpec, Work, op_work

__all__ = [
    "BOUNDS",
    "PLAIN",
    "Assumption",
    "Calibration",
    "CostOptions",
    "Measured",
    "TensorSpec",
    "Update",
    "Work",
    "assumptions",
    "bounds",
    "combine_cost",
    "durations_ps",
    "op_work",
    "read_calibration",
    "work_ps",
    "write_calibration",
]
