"""A step in a few numbers: how long, how much of it compute, how much of it waiting for the network."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meshemu.network.results import Timing
from meshemu.program.ir import OpKind, Program

__all__ = ["StepSummary", "step_summary"]


@dataclass(frozen=True, eq=False)
class StepSummary:
    """One step. time_ps: its length; compute_ps: how long the busiest device computed, with one thread or more.

    ingest_ps: how much longer it is for the data of the next one. exposed_comm_ps = time_ps - compute_ps - ingest_ps:
    what no compute hides, so communication, waiting and imbalance. flops: of all devices. device_compute_ps,
    device_idle_ps: int64[n_devices], how long it computed and how long not; they add up to time_ps.
    """

    time_ps: int
    compute_ps: int
    ingest_ps: int
    exposed_comm_ps: int
    flops: int
    device_compute_ps: NDArray[np.int64]
    device_idle_ps: NDArray[np.int64]


def step_summary(
    program: Program, timing: Timing, duration_ps: ArrayLike, ingest: NDArray[np.bool_] | None = None
) -> StepSummary:
    """Summarise a timed Program; duration_ps as given to `time_program`. ingest: which ops are of the next step."""
    computes = np.flatnonzero((program.kind == OpKind.COMPUTE) & (np.asarray(duration_ps, np.int64) > 0))
    device_compute = _busy_ps(
        program.device[computes], timing.ops.start_ps[computes], timing.ops.end_ps[computes], program.n_devices
    )
    compute = int(device_compute.max(initial=0))
    own_end_ps = timing.end_ps if ingest is None else int(timing.ops.end_ps[~ingest].max(initial=0))
    ingest_ps = timing.end_ps - own_end_ps
    return StepSummary(
        time_ps=timing.end_ps,
        compute_ps=compute,
        ingest_ps=ingest_ps,
        exposed_comm_ps=own_end_ps - compute,
        flops=int(program.flops.sum()),
        device_compute_ps=device_compute,
        device_idle_ps=timing.end_ps - device_compute,
    )


def _busy_ps(
    device: NDArray[np.int32], start_ps: NDArray[np.int64], end_ps: NDArray[np.int64], n_devices: int
) -> NDArray[np.int64]:
    """In how much of its time each device has an op under way, int64[n_devices]; ops of one device may overlap."""
    by_end = np.lexsort((end_ps, device))
    rank = np.empty(len(device), np.int64)
    rank[by_end] = np.arange(len(device))  # in which ends of one device never reach into the next
    by_start = np.lexsort((start_ps, device))
    latest = by_end[np.maximum.accumulate(rank[by_start])]
    busy_from = start_ps[by_start]
    follows = device[by_start[1:]] == device[by_start[:-1]]
    busy_from[1:] = np.where(follows, np.maximum(busy_from[1:], end_ps[latest[:-1]]), busy_from[1:])
    busy = np.zeros(n_devices, np.int64)
    np.add.at(busy, device[by_start], np.maximum(end_ps[by_start] - busy_from, 0))
    return busy
