"""From an exception to one line on stderr and an exit code, on one rank or on many.

    all ranks fail within the patience    rank 0 prints each distinct line once; every rank finalises MPI and exits
    some rank does not fail               the rank that failed prints its line with its number and aborts the job,
                                          since the others may wait for it for ever inside a collective

Exit codes: 1 a check failed, 2 bad input, 3 internal, 75 stopped in order, 130 interrupted, 143 terminated.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

from meshemu.errors import CheckError, InputError, StoppedError
from meshemu.runtime.last_words import last_words
from meshemu.runtime.launch import Launch

__all__ = ["Failure", "Terminated", "collect_failures", "failure_of", "guard", "guard_ranks", "report_lines"]

_PATIENCE_S = 5.0
_POLL_S = 0.005
_TAG = 32_749  # below the 32,767 that MPI guarantees; used by nothing else
_SIGNALLED = 128
_LONGEST_LINE = 2000


class Terminated(BaseException):
    """SIGTERM or SIGUSR1 has come. Not an Exception, so that no handler for errors takes it."""


@dataclass(frozen=True)
class Failure:
    """Why a rank cannot go on: the exit code and one line."""

    code: int
    message: str


def failure_of(error: BaseException) -> Failure:
    """The exit code and the line for `error`."""
    text = " ".join(str(error).split())[:_LONGEST_LINE]
    match error:
        case InputError():
            return Failure(error.exit_code, f"error: {text}")
        case CheckError() | StoppedError():
            return Failure(error.exit_code, text)
        case KeyboardInterrupt():
            return Failure(_SIGNALLED + signal.SIGINT, "interrupted")
        case Terminated():
            return Failure(_SIGNALLED + signal.SIGTERM, "terminated")
        case _:
            name = type(error).__name__
            return Failure(3, f"internal error: {name}: {text} (MESHEMU_DEBUG=1 shows the traceback)")


def guard(work: Callable[[], int], launch: Launch) -> int:
    """The exit code of `work()`, for work in which no rank waits for another; rank 0 alone reports a failure."""
    try:
        return _interruptible(work)
    except BaseException as error:
        failure = _failed(error)
        if launch.rank == 0:
            _print(failure.message)
        return failure.code


def guard_ranks(work: Callable[[], int], launch: Launch, raw_world: Callable[[], Any]) -> int:
    """The exit code of `work()`, in which all ranks take part; none of them waits for one that failed.

    raw_world: gives the mpi4py communicator of all ranks; called after a failure on several ranks only.
    """
    if launch.size == 1:
        return guard(work, launch)
    try:
        return _interruptible(work)
    except BaseException as error:
        failure = _failed(error)
    if failure.code > _SIGNALLED:
        # Every rank is told by the launcher; finalising MPI here could wait for one inside a collective.
        _leave_now(failure, speak=launch.rank == 0 and failure.code == _SIGNALLED + signal.SIGINT)
    comm = raw_world()
    if comm.size != launch.size:  # another MPI's launcher: no rank can reach the others
        if launch.rank == 0:
            _print(failure.message)
        return failure.code
    failures = collect_failures(comm, failure)
    if failures is None:
        sys.stdout.flush()
        last_words(f"meshemu: rank {launch.rank} of {launch.size}: {failure.message}\n")
        comm.Abort(failure.code)
        return failure.code
    if launch.rank == 0:
        for line in report_lines(failures):
            _print(line)
    return max(f.code for f in failures)


def collect_failures(comm: Any, failure: Failure, patience_s: float = _PATIENCE_S) -> list[Failure] | None:
    """The failures of all ranks of `comm` in rank order, or None if some rank does not fail within `patience_s`.

    Point to point on a tag of its own: the ranks that go on are somewhere else and take no part.
    """
    deadline_s = time.monotonic() + patience_s
    if comm.rank == 0:
        failures = [failure]
        for source in range(1, comm.size):
            if not _poll(partial(comm.iprobe, source=source, tag=_TAG), deadline_s):
                return None
            failures.append(comm.recv(source=source, tag=_TAG))
        sends = [comm.isend(failures, dest=rank, tag=_TAG) for rank in range(1, comm.size)]
        return failures if all(_poll(send.Test, deadline_s + patience_s) for send in sends) else None
    send = comm.isend(failure, dest=0, tag=_TAG)
    if not (_poll(send.Test, deadline_s) and _poll(lambda: comm.iprobe(source=0, tag=_TAG), deadline_s)):
        return None
    received: list[Failure] = comm.recv(source=0, tag=_TAG)
    return received


def report_lines(failures: Sequence[Failure]) -> list[str]:
    """What rank 0 prints when all ranks failed: one line if they agree, else one per message with its first rank."""
    first = {failure.message: rank for rank, failure in reversed(list(enumerate(failures)))}
    if len(first) == 1:
        return [failures[0].message]
    return [f"rank {rank} of {len(failures)}: {message}" for message, rank in sorted(first.items(), key=lambda p: p[1])]


def _interruptible(work: Callable[[], int]) -> int:
    """Run `work` with SIGTERM, and Slurm's warning SIGUSR1, raised as `Terminated`, so that files close in order."""

    def terminate(_signum: int, _frame: FrameType | None) -> None:
        raise Terminated

    previous = {signum: signal.signal(signum, terminate) for signum in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        return work()
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _failed(error: BaseException) -> Failure:
    if os.environ.get("MESHEMU_DEBUG") == "1":
        traceback.print_exception(error)
    return failure_of(error)


def _poll(ready: Callable[[], bool], deadline_s: float) -> bool:
    while not ready():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(_POLL_S)
    return True


def _print(message: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"meshemu: {message}\n")
    sys.stderr.flush()


def _leave_now(failure: Failure, *, speak: bool) -> None:
    if speak:
        _print(failure.message)
    sys.stdout.flush()
    os._exit(failure.code)
