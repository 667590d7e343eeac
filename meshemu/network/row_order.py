"""The order of independent messages that breaks ties between them, whatever the order of their rows."""

from math import prod

import numpy as np
from numpy.typing import NDArray

__all__ = ["row_order"]


def row_order(
    n_devices: int, src: NDArray[np.integer], dst: NDArray[np.integer], size_bytes: NDArray[np.integer],
    ready_ps: NDArray[np.integer],
) -> NDArray[np.int64]:
    """Rows in the order of their message ids, int64[n]: message i is row result[i].

    Sorted by (ready_ps, (dst - src) mod n_devices, src, size_bytes): what a device has ready at one time it sends to
    its nearest successor first, as in a rotated all-to-all, so that devices that send to all do not aim at one at a
    time; and where messages of several devices meet at one time, each device has its turn before one has its second.
    Rows that agree in all four columns are interchangeable and keep their order.
    """
    if len(src) == 0:
        return np.zeros(0, np.int64)
    columns = (ready_ps, (dst - src) % n_devices, src, size_bytes)
    least = [int(column.min()) for column in columns]
    spans = [int(column.max()) - low + 1 for column, low in zip(columns, least, strict=True)]
    if prod(spans) >= 2**63:
        return np.asarray(np.lexsort(columns[::-1]), np.int64)
    packed = np.zeros(len(src), np.int64)  # one number a row: one sort in place of four
    for column, low, span in zip(columns, least, spans, strict=True):
        packed = packed * span + (column.astype(np.int64) - low)
    return np.asarray(np.argsort(packed, kind="stable"), np.int64)
