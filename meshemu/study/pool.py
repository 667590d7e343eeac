"""Independent pieces of a study, in this process or shared by several: the results are the same, in the same order."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from meshemu.errors import InputError, MeshemuError
from meshemu.runtime.memory import keep_freed_memory

__all__ = ["jobs_of", "map_jobs"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def jobs_of(jobs: int | None) -> int:
    """How many processes: `jobs`, None for one per core that this process may use. InputError below 1."""
    if jobs is None:
        return len(os.sched_getaffinity(0))
    if jobs < 1:
        raise InputError(f"--jobs {jobs}: must be at least 1")
    return jobs


def map_jobs(work: Callable[[Item], Result], items: Iterable[Item], jobs: int) -> Iterator[Result]:
    """`work` of each of `items`, in their order, as they are ready; both must be picklable if jobs > 1.

    Processes are started afresh (spawn), since libraries here hold threads that do not survive a fork, and with one
    thread each. What `work` raises is raised here; MeshemuError where a process is killed.
    """
    pieces = list(items)
    jobs = min(jobs, len(pieces))
    if jobs <= 1:
        yield from map(work, pieces)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_begin) as pool:
        try:
            yield from pool.map(work, pieces)
        except BrokenProcessPool:
            words = f"one of {jobs} processes of the study was killed (out of memory? try --jobs 1)"
            raise MeshemuError(words) from None


def _begin() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    keep_freed_memory(os.environ)
