"""What the memory of each device holds over a step, as plain numbers: no torch, so that stored runs tell it too."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.units import format_bytes

__all__ = ["MEMORY_CATEGORIES", "MemoryUse", "breakdown"]

MEMORY_CATEGORIES = ("weights", "gradients", "optimizer", "activations", "communication", "batch")
"""weights: parameters, buffers, constants and copies made of nothing else. gradients: of parameters, and their terms.
optimizer: its state. communication: blocks, windows and pooled parameters that were fetched from other devices, and
buffers for terms that arrive to be summed. batch: samples and targets. activations: everything else."""

Int64Array = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class MemoryUse:
    """Bytes by category of MEMORY_CATEGORIES.

    peak_bytes: int64[category, n_devices], at the moment when the device holds most. live_bytes: int64[point,
    category], what the device that holds most of all holds at each point of the step, named in points: its beginning,
    then every instruction while its inputs and outputs are both held.
    """

    peak_bytes: Int64Array
    live_bytes: Int64Array
    points: tuple[str, ...]

    @property
    def total_bytes(self) -> Int64Array:
        """The most that each device holds, int64[n_devices]."""
        return np.asarray(self.peak_bytes.sum(axis=0))

    @property
    def busiest(self) -> int:
        """The device that holds most of all; the first of several."""
        return int(self.total_bytes.argmax())

    @property
    def most_bytes(self) -> int:
        """The most that any device holds."""
        return int(self.total_bytes.max(initial=0))


def breakdown(by_category: Sequence[int] | Int64Array) -> str:
    """A sum such as "weights 1 MB + gradients 1 MB", without the categories that hold nothing."""
    held = zip(MEMORY_CATEGORIES, map(int, by_category), strict=True)
    return " + ".join(f"{name} {format_bytes(size)}" for name, size in held if size)
