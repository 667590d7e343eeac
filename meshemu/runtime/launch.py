"""What an MPI launcher tells a process through its environment, before MPI is initialised."""

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

__all__ = ["Launch", "detect_launch", "set_launch_defaults"]

_RANK_AND_SIZE = (
    ("PMI_RANK", "PMI_SIZE"),  # MPICH, Intel MPI, srun --mpi=pmi2
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),  # srun, any other --mpi
)
_LOCAL_SIZE = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_NTASKS_PER_NODE")

# MPICH's own setting for more ranks than cores: yield at once instead of spinning
# (pmodels/mpich, .github/workflows/ci-workflow.yml).
_OVERSUBSCRIBED = {
    "MPIR_CVAR_POLLS_BEFORE_YIELD": "1",
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE": "1",
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE_NO_PROGRESS_COUNT": "1",
}


@dataclass(frozen=True)
class Launch:
    """This process among those that a launcher started: 0 <= rank < size; local_size of them on this host."""

    rank: int = 0
    size: int = 1
    local_size: int = 1


def detect_launch(environ: Mapping[str, str]) -> Launch:
    """The launch that `environ` describes; one rank where there is no launcher."""
    for rank_key, size_key in _RANK_AND_SIZE:
        rank, size = _integer(environ, rank_key), _integer(environ, size_key)
        if rank is not None and size is not None:
            local = (_integer(environ, key) for key in _LOCAL_SIZE)
            return Launch(rank, size, next((n for n in local if n is not None), size))
    return Launch()


def set_launch_defaults(environ: MutableMapping[str, str], launch: Launch) -> None:
    """Choose settings of MPI and OpenMP that several ranks need, where the user has not; before either is loaded."""
    if launch.size == 1:
        return
    environ.setdefault("OMP_NUM_THREADS", "1")
    # The line that goes with an abort is ours and names the rank.
    environ.setdefault("MPIR_CVAR_SUPPRESS_ABORT_MESSAGE", "1")
    if launch.local_size > _usable_cores():
        for key, value in _OVERSUBSCRIBED.items():
            environ.setdefault(key, value)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _integer(environ: Mapping[str, str], key: str) -> int | None:
    text = environ.get(key, "")
    return int(text) if text.isdecimal() else None
