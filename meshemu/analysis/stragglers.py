"""How evenly the work of a step lies on the devices: who computes longest, who waits, who does nothing."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["DeviceLoad", "device_load"]

STRAGGLES = 1.05  # times the median from which on a device counts as a straggler


@dataclass(frozen=True)
class DeviceLoad:
    """Compute time over the devices that are alive.

    imbalance: the busiest over the mean, 1 where all are equal; 0 where none computes. median_ps, busiest_ps: compute
    time. stragglers: devices more than 5 % above the median, the busiest first; waiting: those that compute least of
    the ones that compute at all, where that is more than 5 % below the median; unused: devices without any.
    """

    imbalance: float
    median_ps: int
    busiest_ps: int
    stragglers: tuple[int, ...]
    waiting: tuple[int, ...]
    unused: tuple[int, ...]


def device_load(compute_ps: NDArray[np.int64], alive: NDArray[np.bool_]) -> DeviceLoad:
    """The figures of one step; compute_ps: int64[n_devices]; alive: bool[n_devices]."""
    devices = np.flatnonzero(alive)
    used = devices[compute_ps[devices] > 0]
    unused = tuple(int(device) for device in devices[compute_ps[devices] == 0])
    if not len(used):
        return DeviceLoad(0.0, 0, 0, (), (), unused)
    time_ps = compute_ps[used]
    median = float(np.median(time_ps))
    ranked = np.argsort(-time_ps, kind="stable")
    return DeviceLoad(
        imbalance=float(time_ps.max() / time_ps.mean()),
        median_ps=round(median),
        busiest_ps=int(time_ps.max()),
        stragglers=tuple(int(used[i]) for i in ranked if time_ps[i] > median * STRAGGLES),
        waiting=tuple(int(used[i]) for i in ranked[::-1] if time_ps[i] * STRAGGLES < median),
        unused=unused,
    )
