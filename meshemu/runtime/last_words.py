"""Say something and end: the launcher must have read the words before it is told to end the job.

mpirun reads a rank's stderr through a pipe. Told to abort, it closes that pipe at once, with whatever lies in it.
"""

import fcntl
import os
import stat
import struct
import sys
import termios
import time

__all__ = ["last_words"]

_PATIENCE_S = 2.0
_POLL_S = 0.005
_FORWARDING_S = 0.05  # the launcher's proxy passes on what it has read


def last_words(text: str) -> None:
    """Write `text` to the real stderr and wait, two seconds at most, until its reader has taken it."""
    stream = sys.__stderr__
    if stream is None:
        return
    stream.write(text)
    stream.flush()
    deadline_s = time.monotonic() + _PATIENCE_S
    descriptor = stream.fileno()
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return
    while _unread_bytes(descriptor) and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
    time.sleep(_FORWARDING_S)


def _unread_bytes(descriptor: int) -> int:
    """How much of a pipe nobody has read yet; 0 where the system cannot tell."""
    try:
        answer = fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4))
    except OSError:
        return 0
    return int(struct.unpack("i", answer)[0])
