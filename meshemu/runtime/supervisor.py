"""A parent that waits beside the work of a rank, so that a rank killed by a signal ends the whole job and says so.

    mpirun ── rank 0: supervisor ── child: the work
           └─ rank 1: supervisor ── child: the work  ← killed by SIGSEGV
                      "meshemu: rank 1 of 2 was killed by signal 11 (SIGSEGV)", PMI abort, exit code 3

A launcher alone ends the job too, but with a code and a banner that depend on which rank it notices first. The fork
comes before anything heavy is imported: the parent costs a few megabytes, and no thread exists that a fork could lose.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

from meshemu.runtime.last_words import last_words
from meshemu.runtime.launch import Launch
from meshemu.runtime.stopping import REPEATED_S, Listener, supervised

__all__ = ["supervise"]

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_GRACE_S = 5
_INTERNAL = 3
_PR_SET_PDEATHSIG = 1


def supervise(work: Callable[[], int], launch: Launch) -> int:
    """The exit code of `work()`, run in a child process when a launcher started several ranks, else in this one.

    Returns in both processes: the child leaves the interpreter in the ordinary way (which finalises MPI). SIGINT,
    SIGTERM, SIGHUP and SIGUSR1 are forwarded; a child that does not end within five seconds of one is killed, and the
    code is 128 + signal. One that stops in order (`runtime.stopping`) has all the time that it needs, until a second
    signal comes. A child killed by any other signal gives a line on stderr and 3.
    """
    if launch.size == 1:
        return work()
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    told, tell = os.pipe()
    # A signal that comes before both sides are ready waits until they are.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    child = os.fork()
    if child == 0:
        _die_with(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(told)
        with supervised(tell):
            return work()
    os.close(tell)
    received = _forward_signals(child, Listener(told))
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    if received:
        return 128 + received[0]
    return _report_killed(-code, launch)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent` ends, however that ends (Linux only)."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        os.kill(os.getpid(), signal.SIGKILL)


def _forward_signals(child: int, listener: Listener) -> list[int]:
    """Pass signals on to `child`, and kill it if it outlives the grace; the list fills with what came.

    listener: to the child, which tells whether it ends by itself.
    """
    received: list[int] = []
    first_s: list[float] = []

    def forward(signum: int, _frame: FrameType | None) -> None:
        received.append(signum)
        first_s.append(time.monotonic())
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signum)
        if not listener.ends_by_itself() or first_s[-1] - first_s[0] > REPEATED_S:
            signal.alarm(_GRACE_S)

    def kill(_signum: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, kill)
    for signum in _FORWARDED:
        signal.signal(signum, forward)
    return received


def _report_killed(signum: int, launch: Launch) -> int:
    name = signal.Signals(signum).name if signum in set(signal.Signals) else "unknown"
    last_words(f"meshemu: rank {launch.rank} of {launch.size} was killed by signal {signum} ({name})\n")
    _abort_job(_INTERNAL)
    return _INTERNAL


def _abort_job(code: int) -> None:
    """Ask the launcher to end all ranks with `code`, over the PMI-1 socket that the child inherited from here.

    Launchers without PMI-1 end the job when they see this process end with a code other than 0.
    """
    descriptor = os.environ.get("PMI_FD", "")
    if descriptor.isdecimal():
        with contextlib.suppress(OSError):
            os.write(int(descriptor), f"cmd=abort exitcode={code}\n".encode())
