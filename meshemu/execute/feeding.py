"""Which samples of a global batch the devices of a rank read, so that a rank makes no others."""

import numpy as np
from numpy.typing import NDArray

from meshemu.execute.blocks import Host
from meshemu.workload.spmd import Spmd

__all__ = ["BATCH", "samples_read"]

BATCH = "batch."
"""What the names of graph inputs begin with that are leaves of the batch."""


def samples_read(spmd: Spmd, host: Host) -> NDArray[np.int64]:
    """Indices along dim 0 of the leaves of the batch that some device of this rank holds, ascending; maybe none."""
    read: set[int] = set()
    for name, value in spmd.inputs.items():
        if not name.startswith(BATCH) or not value.shape:
            continue
        part, split = spmd.parts.get(name), value.layout.split_of(0)
        start = part.lo if part is not None else 0
        for position in host.representatives(value.layout).values():
            lo, hi = (0, value.shape[0]) if split is None else split.at(host.plan.at(position))
            read.update(range(start + lo, start + hi))
    return np.asarray(sorted(read), np.int64)
