"""The first run on a machine compiles the kernels: rank 0 does it, says so, and leaves the result to all others."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from meshemu.comm import Comm
from meshemu.network.kernels import run

__all__ = ["compiled_once", "notice"]

PATIENCE_S = 1.0  # to load compiled code takes less
NOTICE = "meshemu: compiling the timing engine, once for this version and machine (10 to 20 s)"


def compiled_once(first_use: Callable[[], None], comm: Comm) -> None:
    """Have all ranks call `first_use`, which uses every kernel, if any has not yet; rank 0 before the others.

    So the others find what rank 0 has compiled and kept on disk. With NUMBA_DISABLE_JIT there is nothing to do.
    """
    if not comm.max(getattr(run, "signatures", None) == []):
        return
    if comm.rank == 0:
        first_use()
    comm.barrier()
    if comm.rank > 0:
        first_use()


@contextmanager
def notice(kernel: Callable[..., object]) -> Iterator[None]:
    """Say on stderr that a kernel is being compiled, if it turns out that it is while it is used for the first time."""
    if getattr(kernel, "signatures", None) != []:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        while not done.wait(PATIENCE_S):
            if kernel.stats.cache_misses:  # type: ignore[attr-defined]
                print(NOTICE, file=sys.stderr, flush=True)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
