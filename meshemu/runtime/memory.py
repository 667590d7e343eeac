"""What a process does with memory that it has freed: keep it for the next step, which asks for as much again.

glibc gives the pages of every large array back at once, and the kernel clears each page anew that is touched for the
first time: 0.3 to 0.5 ms per MB, where writing to memory that is there takes 0.04. A training step frees and asks for
gigabytes. Keeping them takes 5 to 10 % off an executed step of ResNet-50, a tenth off the timing engine on two ranks;
the most memory of a process stays within 6 % of what it was.
"""

import ctypes
from collections.abc import Mapping

__all__ = ["keep_freed_memory"]

# Of mallopt(3): the size of free memory at the end of the heap above which it is given back, -1 for never; how many
# arrays may have pages of their own, which go when they do.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_OF_THE_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")


def keep_freed_memory(environ: Mapping[str, str]) -> bool:
    """Keep what is freed until the process ends, and return whether it does.

    Not where `environ` already says what is to be done with it, nor without glibc.
    """
    if any(name in environ for name in _OF_THE_USER) or "glibc.malloc" in environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_TRIM_THRESHOLD, -1)) and bool(mallopt(_MMAP_MAX, 0))
