"""Stop in order when a signal asks for it: between two steps, on all ranks at the same one.

    SIGTERM, SIGUSR1 (Slurm's warning), SIGINT (Ctrl-C)
        |  to one rank, to all, or to the launcher, which passes it on
        v
    a note ── at the next boundary all ranks compare notes ── every rank stops there

A second signal, a second after the first or later, ends at once. Within that second they count as one, since a terminal
and a launcher may both pass on the same Ctrl-C.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

from meshemu.runtime.failure import Terminated

if TYPE_CHECKING:  # loads NumPy, which has no place in a supervisor
    from meshemu.comm import Comm

__all__ = ["REPEATED_S", "Listener", "StopRequest", "stopping_in_order", "supervised"]

REPEATED_S = 1.0
"""Signals that come this soon after the first say the same again."""

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_TELL = "MESHEMU_SUPERVISOR"  # "PID DESCRIPTOR": process PID has a supervisor, which reads from this pipe
_BY_ITSELF, _NOT_BY_ITSELF = b"+", b"-"


class StopRequest:
    """Which signal has asked this rank to stop, 0 for none yet, and when it came."""

    def __init__(self) -> None:
        self._signum = 0
        self._since_s = 0.0

    def agreed(self, comm: "Comm") -> int:
        """The signal that any rank got, 0 if none did; the same on all ranks, and collective."""
        return comm.max(self._signum)

    def note(self, signum: int, _frame: FrameType | None) -> None:
        """A signal has come.

        Raises:
            Terminated, KeyboardInterrupt: it is the second one.
        """
        if not self._signum:
            self._signum, self._since_s = signum, time.monotonic()
        elif time.monotonic() - self._since_s > REPEATED_S:
            raise KeyboardInterrupt if signum == signal.SIGINT else Terminated


@contextmanager
def stopping_in_order() -> Iterator[StopRequest]:
    """Until the end of the block, signals are noted; outside of the main thread none comes."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {signum: signal.signal(signum, request.note) for signum in _SIGNALS}
    _tell(_BY_ITSELF)
    try:
        yield request
    finally:
        _tell(_NOT_BY_ITSELF)
        for signum, handler in previous.items():
            signal.signal(signum, handler)


@contextmanager
def supervised(tell: int) -> Iterator[None]:
    """This process has a supervisor, which reads from the pipe `tell`."""
    os.environ[_TELL] = f"{os.getpid()} {tell}"
    try:
        yield
    finally:
        del os.environ[_TELL]


class Listener:
    """A supervisor's end of the pipe."""

    def __init__(self, told: int) -> None:
        self._told = told
        self._last = _NOT_BY_ITSELF
        os.set_blocking(told, False)

    def ends_by_itself(self) -> bool:
        """Whether the process at the other end notes signals and stops in order; does not wait."""
        with suppress(BlockingIOError):  # nothing new
            self._last = os.read(self._told, 65_536)[-1:] or self._last
        return self._last == _BY_ITSELF


def _tell(what: bytes) -> None:
    process, _, descriptor = os.environ.get(_TELL, "").partition(" ")
    if process == str(os.getpid()):
        os.write(int(descriptor), what)
