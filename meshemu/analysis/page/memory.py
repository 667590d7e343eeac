"""What the fullest device holds over the step, for the page."""

from typing import Any

import numpy as np

from meshemu.analysis.page.arrays import packed
from meshemu.cost.memory_use import MEMORY_CATEGORIES
from meshemu.hardware import System
from meshemu.record import Run

__all__ = ["memory"]

_MOST_POINTS = 1500


def memory(run: Run) -> dict[str, Any] | None:
    """Bytes by category at points of the step; of more than some thousand points, the fullest of every few."""
    use = run.memory_use()
    if use is None or not len(use.points):
        return None
    kept = _fullest(use.live_bytes.sum(axis=1))
    device = System.from_json(run.system_json).device
    return {
        "device": run.mesh().place(use.busiest),
        "categories": list(MEMORY_CATEGORIES),
        "live_bytes": [packed(use.live_bytes[kept, i]) for i in range(len(MEMORY_CATEGORIES))],
        "points": [use.points[point] for point in kept],
        "number": packed(kept, "i4"),
        "has_bytes": device.sram_bytes if device is not None else 0,
    }


def _fullest(total_bytes: np.ndarray) -> np.ndarray:
    """Of every few points in a row the one where most is held."""
    together = -(-len(total_bytes) // _MOST_POINTS)
    return np.array([at + total_bytes[at : at + together].argmax() for at in range(0, len(total_bytes), together)])
