"""What of the cost model is a choice."""

from dataclasses import dataclass

from meshemu.cost.calibration import Calibration

__all__ = ["PLAIN", "CostOptions"]


@dataclass(frozen=True)
class CostOptions:
    """fusion: pointwise ops run within the op that makes what they alone read. calibration: measured times of ops, in
    place of the model's.
    """

    fusion: bool = False
    calibration: Calibration | None = None


PLAIN = CostOptions()
