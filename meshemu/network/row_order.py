"""The order of independent messages that breaks ties between them, whatever the order of their rows."""

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
    return np.asarray(np.lexsort((size_bytes, src, (dst - src) % n_devices, ready_ps)), np.int64)
