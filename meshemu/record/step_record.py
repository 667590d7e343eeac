"""What is recorded of one training step: what its maths gave, and what the machine spent on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # the network package compiles kernels when imported; only its result types are needed here
    from meshemu.network.results import LinkStats

__all__ = ["MessageRecord", "StepRecord", "TrainingRecord"]

NOT_COMPUTED = float("nan")


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """What the maths of a step gave, whatever the machine: NaN, empty or "" where it was not computed.

    loss and, where it has several, its terms by name; held_out_loss, held_out_loss_by_name and accuracy: on data that
    are not trained on. learning_rate: that of each parameter group in this step. gradient_norm: 2-norm of all gradients
    together, before clipping. parameters_sha256: digest of all parameters and buffers after the step.
    """

    loss: float = NOT_COMPUTED
    loss_by_name: Mapping[str, float] = field(default_factory=dict)
    held_out_loss: float = NOT_COMPUTED
    held_out_loss_by_name: Mapping[str, float] = field(default_factory=dict)
    accuracy: float = NOT_COMPUTED
    learning_rate: tuple[float, ...] = ()
    gradient_norm: float = NOT_COMPUTED
    parameters_sha256: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class StepRecord:
    """What is recorded of one training step.

    time_ps, compute_ps (busiest device), exposed_comm_ps and flops (all devices) of the step; links: statistics of
    every link; device_compute_ps, device_idle_ps: int64[n_devices]; wall_s: time that emulating it took.
    """

    time_ps: int
    compute_ps: int
    exposed_comm_ps: int
    flops: int
    links: "LinkStats"
    device_compute_ps: NDArray[np.int64]
    device_idle_ps: NDArray[np.int64]
    wall_s: float
    ingest_ps: int = 0
    training: TrainingRecord = TrainingRecord()


@dataclass(frozen=True, eq=False)
class MessageRecord:
    """Every message of a step: when its head left and its tail arrived, int64[n_messages], and over how many links it
    went, int32[n_messages].
    """

    depart_ps: NDArray[np.int64]
    arrival_ps: NDArray[np.int64]
    hops: NDArray[np.int32]
