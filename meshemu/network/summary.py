"""A step in a few numbers: how long, how much of it compute, how much of it waiting for the network."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meshemu.network.results import Timing
from meshemu.program.ir import OpKind, Program

__all__ = ["StepSummary", "step_summary"]


@dataclass(frozen=True, eq=False)
class StepSummary:
    """One step. time_ps: its length; compute_ps: how long the compute unit of the busiest device was busy.

    ingest_ps: how much longer it is for the data of the next one. exposed_comm_ps = time_ps - compute_ps - ingest_ps:
    what no compute hides, so communication, waiting and imbalance. flops: of all devices. device_compute_ps,
    device_idle_ps: int64[n_devices], compute unit busy or not; they add up to time_ps.
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
    computes = program.kind == OpKind.COMPUTE
    device_compute = np.zeros(program.n_devices, np.int64)
    np.add.at(device_compute, program.device[computes], np.asarray(duration_ps, np.int64)[computes])
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
