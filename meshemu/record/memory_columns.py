"""What a results file tells of memory: for every category, over the step on one device and at the peak of each."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meshemu.cost.memory_use import MEMORY_CATEGORIES, MemoryUse

__all__ = ["LABELS", "MEMORY_PATHS", "memory_columns", "memory_from_columns"]

POINTS, PEAKS = "/results/memory", "/results/memory_peaks"
LABELS = f"{POINTS}/label"
MEMORY_PATHS = tuple(f"{group}/{name}_bytes" for group in (POINTS, PEAKS) for name in MEMORY_CATEGORIES)
"""All columns but the labels."""


def memory_columns(memory: MemoryUse | None, n_devices: int) -> dict[str, NDArray[Any]]:
    """The columns of both groups by path, labels left out; of a step of which nothing is known, no points."""
    if memory is None:
        nothing = np.zeros((len(MEMORY_CATEGORIES), n_devices), np.int64)
        memory = MemoryUse(nothing, nothing[:, :0].T, ())
    columns: dict[str, NDArray[Any]] = {}
    for i, name in enumerate(MEMORY_CATEGORIES):
        columns[f"{POINTS}/{name}_bytes"] = memory.live_bytes[:, i]
        columns[f"{PEAKS}/{name}_bytes"] = memory.peak_bytes[i]
    return columns


def memory_from_columns(columns: Mapping[str, NDArray[Any]], labels: tuple[str, ...]) -> MemoryUse | None:
    """Inverse of `memory_columns`."""
    if not labels:
        return None
    live = np.stack([columns[f"{POINTS}/{name}_bytes"] for name in MEMORY_CATEGORIES], axis=1)
    peak = np.stack([columns[f"{PEAKS}/{name}_bytes"] for name in MEMORY_CATEGORIES])
    return MemoryUse(peak, live, labels)
