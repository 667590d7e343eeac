"""The seam to MPI: `Comm` over an mpi4py communicator. The only module that imports mpi4py, and only when asked to.

Messages are raw buffers in pieces below 2 GiB; objects are pickled only by `broadcast`, `gather` and `all_gather`.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from meshemu.comm import Comm
from meshemu.errors import InputError
from meshemu.runtime.last_words import last_words
from meshemu.runtime.launch import detect_launch
from meshemu.runtime.local import SingleComm

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["MpiComm", "abort", "as_comm", "raw_world", "world"]

PIECE_BYTES = 2**30  # MPI counts are C ints in most libraries
BYTES_TAG, ROWS_TAG = 1, 2
FEW_ROWS = 1024  # a message of them is small: about 50 kB in the timing engine


class MpiComm:
    """Ranks of an mpi4py intracommunicator. `comm` should be a duplicate that nobody else uses for messages."""

    def __init__(self, comm: "MPI.Intracomm") -> None:
        from mpi4py import MPI

        self._mpi = MPI
        self._comm = comm
        self._rank = comm.Get_rank()
        self._size = comm.Get_size()

    @property
    def rank(self) -> int:
        """This process, 0 <= rank < size."""
        return self._rank

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self._size

    def exchange(self, send: Mapping[int, NDArray[np.uint8]], recv: Mapping[int, NDArray[np.uint8]]) -> None:
        """Send and receive byte buffers, all at once, without blocking in between.

        Pieces of one buffer arrive in order because they share source and tag.
        """
        requests = [
            self._comm.Irecv([piece, self._mpi.BYTE], source=peer, tag=BYTES_TAG)
            for peer, buffer in recv.items()
            for piece in _pieces(buffer)
        ]
        requests += [
            self._comm.Isend([piece, self._mpi.BYTE], dest=peer, tag=BYTES_TAG)
            for peer, buffer in send.items()
            for piece in _pieces(buffer)
        ]
        self._mpi.Request.Waitall(requests)

    def all_to_all_rows(self, rows: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
        """Rows that every rank sent to this one, in rank order.

        Nobody is told how many there are: up to FEW_ROWS come in one message, of which the receiver sees the length, so
        that a window of the timing engine costs a single latency; the rest follows where there is as much.
        """
        comm, integer, status, received = self._comm, self._mpi.INT64_T, self._mpi.Status(), list(rows)
        columns = rows[self._rank].shape[1]
        for shift in range(1, self._size):
            to, source = (self._rank + shift) % self._size, (self._rank - shift) % self._size
            few = np.empty((FEW_ROWS, columns), np.int64)
            ends = [rows[to][:FEW_ROWS], integer], to, ROWS_TAG, [few, integer], source, ROWS_TAG
            comm.Sendrecv(*ends, status)
            received[source] = few[: status.Get_count(integer) // columns]
        rest = {peer: part[FEW_ROWS:] for peer, part in enumerate(rows) if peer != self._rank and len(part) >= FEW_ROWS}
        requests = [comm.Isend([part, integer], peer, ROWS_TAG) for peer, part in rest.items()]
        for peer, few in enumerate(received):
            if peer != self._rank and len(few) == FEW_ROWS:
                message = comm.Mprobe(peer, ROWS_TAG, status)
                more = np.empty((status.Get_count(integer) // columns, columns), np.int64)
                message.Recv([more, integer])
                received[peer] = np.concatenate((few, more))
        self._mpi.Request.Waitall(requests)
        return received

    def min(self, value: int) -> int:
        """The least `value` of all ranks."""
        return self._reduce(value, self._mpi.MIN)

    def max(self, value: int) -> int:
        """The greatest `value` of all ranks."""
        return self._reduce(value, self._mpi.MAX)

    def _reduce(self, value: int, operation: "MPI.Op") -> int:
        result = np.array([value], np.int64)
        self._comm.Allreduce(self._mpi.IN_PLACE, [result, self._mpi.INT64_T], op=operation)
        return int(result[0])

    def sum(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Elementwise sum of integers over ranks, on every rank."""
        total = np.array(values, np.int64, order="C")
        self.sum_in_place(total)
        return total

    def sum_in_place(self, values: NDArray[np.int64]) -> None:
        """Replace contiguous values by their elementwise sum over ranks."""
        flat = values.reshape(-1)
        step = PIECE_BYTES // flat.itemsize
        for start in range(0, flat.size, step):
            piece = flat[start : start + step]
            self._comm.Allreduce(self._mpi.IN_PLACE, [piece, self._mpi.INT64_T], op=self._mpi.SUM)

    def broadcast(self, value: Any, root: int = 0) -> Any:
        """`value` of `root`, on every rank."""
        return self._comm.bcast(value, root=root)

    def gather(self, value: Any, root: int = 0) -> list[Any] | None:
        """All ranks' values in rank order on `root`, None elsewhere."""
        return self._comm.gather(value, root=root)

    def all_gather(self, value: Any) -> list[Any]:
        """All ranks' values in rank order on every rank."""
        return self._comm.allgather(value)

    def barrier(self) -> None:
        """Wait for all ranks."""
        self._comm.Barrier()


def _pieces(buffer: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The buffer in pieces of at most PIECE_BYTES: at least one, so that an empty buffer is a message too."""
    if not buffer.flags.c_contiguous:
        raise ValueError("exchange needs contiguous buffers")
    flat = buffer.reshape(-1).view(np.uint8)
    return [flat[start : start + PIECE_BYTES] for start in range(0, max(flat.size, 1), PIECE_BYTES)]


def _check_size(size: int, environment: Mapping[str, str]) -> None:
    """Raise InputError if the launcher started another number of processes than MPI sees.

    A launcher of another MPI library starts every process as a world of its own; each would run the whole job.
    """
    launched = detect_launch(environment).size
    if launched not in (1, size):
        raise InputError(
            f"the launcher started {launched} ranks but MPI sees {size}: mpirun or srun belongs to another MPI library "
            "than the one that mpi4py loads (see MPI4PY_MPIABI)"
        )


def world() -> MpiComm:
    """All processes that the launcher started, on a communicator of its own; collective, starts MPI.

    Raises InputError if the launcher belongs to another MPI library.
    """
    comm = raw_world()
    _check_size(comm.Get_size(), os.environ)
    return MpiComm(comm.Dup())


def raw_world() -> "MPI.Intracomm":
    """COMM_WORLD itself, unchecked, for the messages of a failure (runtime.failure); starts MPI."""
    from mpi4py import MPI

    return MPI.COMM_WORLD


def as_comm(comm: "Comm | MPI.Intracomm | None") -> Comm:
    """What a user passes as `comm=`: None (one rank), a `Comm`, or an mpi4py intracommunicator.

    With several mpi4py ranks, an exception that a rank's script does not catch from now on ends all ranks: the others
    would wait for it for ever. Raises InputError for anything else.
    """
    if comm is None:
        return SingleComm()
    if hasattr(comm, "all_to_all_rows"):
        return cast(Comm, comm)
    if hasattr(comm, "Get_rank") and hasattr(comm, "Alltoallv"):
        if comm.Get_size() > 1 and not isinstance(sys.excepthook, _EndAllRanks):
            sys.excepthook = _EndAllRanks(sys.excepthook, comm.Get_rank(), comm.Get_size())
        return MpiComm(comm)
    raise InputError(f"comm must be None, a meshemu Comm or an mpi4py intracommunicator, not {type(comm).__name__}")


@dataclass(frozen=True)
class _EndAllRanks:
    """An excepthook that reports as the one before it did, names the rank and ends the job."""

    previous: Callable[[type[BaseException], BaseException, TracebackType | None], Any]
    rank: int
    size: int

    def __call__(self, kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        self.previous(kind, error, traceback)
        last_words(f"meshemu: rank {self.rank} of {self.size} failed: {kind.__name__}: {error}\n")
        abort(getattr(error, "exit_code", 3))


def abort(code: int) -> None:
    """End all ranks at once with exit code `code`, if MPI is running. Returns only if it is not."""
    module = sys.modules.get("mpi4py.MPI")
    if module is not None and module.Is_initialized() and not module.Is_finalized():
        module.COMM_WORLD.Abort(code)
