"""The seam between meshemu and the processes that it runs on.

`Comm` is all that the timing engine, the executor and the recorder know of MPI. `runtime.mpi` adapts an mpi4py
communicator, `runtime.local` runs all ranks as threads of one process, `runtime.local.SingleComm` is the one-rank case.
Floats are never reduced here: sums of floats follow a schedule, in device order, so that results do not depend on
the number of ranks.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Comm"]


class Comm(Protocol):
    """A group of ranks. Every method is collective except `exchange` between pairs that have nothing to say."""

    @property
    def rank(self) -> int:
        """This process, 0 <= rank < size."""

    @property
    def size(self) -> int:
        """Number of ranks."""

    def exchange(self, send: Mapping[int, NDArray[np.uint8]], recv: Mapping[int, NDArray[np.uint8]]) -> None:
        """Send a byte buffer to each peer in `send` and fill the buffer of each peer in `recv`.

        Both sides know the sizes. Peers with nothing to exchange take no part. Buffers are contiguous.
        """

    def all_to_all_rows(self, rows: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
        """Send `rows[peer]`, contiguous (n, k), to every peer; return what each sent to this rank, (m, k) each, in rank
        order.
        """

    def min(self, value: int) -> int:
        """The least `value` of all ranks."""

    def max(self, value: int) -> int:
        """The greatest `value` of all ranks."""

    def sum(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Elementwise sum of integers over ranks, on every rank."""

    def sum_in_place(self, values: NDArray[np.int64]) -> None:
        """Replace contiguous `values` by their elementwise sum over ranks: for what is too large to copy."""

    def broadcast(self, value: Any, root: int = 0) -> Any:
        """`value` of `root`, on every rank (pickled: set-up and errors only, never in a step loop)."""

    def gather(self, value: Any, root: int = 0) -> list[Any] | None:
        """All ranks' values in rank order on `root`, None elsewhere (pickled)."""

    def all_gather(self, value: Any) -> list[Any]:
        """All ranks' values in rank order on every rank (pickled)."""

    def barrier(self) -> None:
        """Wait for all ranks."""
