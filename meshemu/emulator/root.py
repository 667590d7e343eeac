"""What only rank 0 does, with its failure seen by all ranks."""

from collections.abc import Callable
from typing import TypeVar

from meshemu.comm import Comm
from meshemu.errors import MeshemuError

__all__ = ["on_root"]

T = TypeVar("T")


def on_root(comm: Comm, work: Callable[[], T]) -> T | None:
    """Run `work` on rank 0; its result there, None elsewhere. A MeshemuError is raised on every rank alike."""
    result, error = None, None
    if comm.rank == 0:
        try:
            result = work()
        except MeshemuError as caught:
            error = caught
    shared = comm.broadcast(error)
    if shared is not None:
        raise shared
    return result
