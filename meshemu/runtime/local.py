"""Ranks without MPI: one rank alone, or all ranks as threads of this process (tests, notebooks, doctests).

`run_ranks(n, function)` runs `function(comm)` once per rank. Values that cross are copied, so a rank never sees the
memory of another. A rank that fails ends the others, and a wait that nobody can end any more is an error, not a hang.
"""

import copy
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from meshemu.comm import Comm
from meshemu.errors import InputError, MeshemuError

__all__ = ["LocalComm", "SingleComm", "run_ranks"]

T = TypeVar("T")


class SingleComm:
    """The only rank: nothing to send, nothing to wait for."""

    @property
    def rank(self) -> int:
        """Always 0."""
        return 0

    @property
    def size(self) -> int:
        """Always 1."""
        return 1

    def exchange(self, send: Mapping[int, NDArray[np.uint8]], recv: Mapping[int, NDArray[np.uint8]]) -> None:
        """Copy what this rank sends to itself, if anything. Raises InputError for any other peer."""
        if set(send) != set(recv) or set(send) - {0}:
            raise InputError(f"one rank cannot exchange: send to {sorted(send)}, receive from {sorted(recv)}")
        for peer, buffer in send.items():
            recv[peer][...] = buffer

    def all_to_all_rows(self, rows: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
        """This rank's own rows."""
        return list(rows)

    def min(self, value: int) -> int:
        """`value`."""
        return value

    def max(self, value: int) -> int:
        """`value`."""
        return value

    def sum(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """A copy of `values`."""
        return values.copy()

    def sum_in_place(self, values: NDArray[np.int64]) -> None:
        """Leave `values` as they are."""

    def broadcast(self, value: Any, root: int = 0) -> Any:
        """`value`."""
        return value

    def gather(self, value: Any, root: int = 0) -> list[Any] | None:
        """[value]."""
        return [value]

    def all_gather(self, value: Any) -> list[Any]:
        """[value]."""
        return [value]

    def barrier(self) -> None:
        """Return at once."""


class _Stopped(BaseException):
    """Ends a rank because another one failed."""


class _Group:
    """What the ranks of one process share; all of it is guarded by one condition."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.condition = threading.Condition()
        self.boards: tuple[dict[int, Any], dict[int, Any]] = ({}, {})  # values by rank, of even and of odd calls
        self.mail: dict[tuple[int, int], deque[NDArray[np.uint8]]] = {}
        self.waiting: dict[int, Callable[[], bool]] = {}
        self.ended: set[int] = set()
        self.errors: dict[int, BaseException] = {}

    def wait(self, rank: int, ready: Callable[[], bool]) -> None:
        """Wait, with the condition held, until `ready()`."""
        self.waiting[rank] = ready
        try:
            while not ready():
                if self.errors:
                    raise _Stopped
                stuck = len(self.waiting) + len(self.ended) == self.size
                if stuck and not any(is_ready() for is_ready in self.waiting.values()):
                    waiting, ended = sorted(self.waiting), sorted(self.ended)
                    raise MeshemuError(f"rank {rank} waits for ever: ranks {waiting} wait, {ended} have ended")
                self.condition.wait()
        finally:
            del self.waiting[rank]

    def end(self, rank: int, error: BaseException | None = None) -> None:
        """Rank has returned or failed; wake the others to see it."""
        with self.condition:
            self.ended.add(rank)
            if error is not None and not isinstance(error, _Stopped):
                self.errors[rank] = error
            self.condition.notify_all()


class LocalComm:
    """One of the ranks that `run_ranks` started."""

    def __init__(self, group: _Group, rank: int) -> None:
        """Join `group` as `rank`."""
        self._group = group
        self._rank = rank
        self._calls = 0

    @property
    def rank(self) -> int:
        """This thread, 0 <= rank < size."""
        return self._rank

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self._group.size

    def _share(self, value: Any) -> list[Any]:
        """The values of all ranks, in rank order, on every rank: the one collective that all others are made of."""
        group = self._group
        posted = group.boards[self._calls % 2]
        self._calls += 1
        with group.condition:
            # A full board is from two calls ago, and every rank has read it: all have posted to the other one since.
            if len(posted) == group.size:
                posted.clear()
            posted[self._rank] = copy.deepcopy(value)
            group.condition.notify_all()
            group.wait(self._rank, lambda: len(posted) == group.size)
            return [copy.deepcopy(posted[rank]) for rank in range(group.size)]

    def exchange(self, send: Mapping[int, NDArray[np.uint8]], recv: Mapping[int, NDArray[np.uint8]]) -> None:
        """Send and receive byte buffers. Raises InputError if a buffer that comes in has another size than expected."""
        group = self._group
        with group.condition:
            for peer, buffer in send.items():
                group.mail.setdefault((self._rank, peer), deque()).append(buffer.copy())
            group.condition.notify_all()
            for peer, buffer in recv.items():
                box = group.mail.setdefault((peer, self._rank), deque())
                group.wait(self._rank, lambda box=box: len(box) > 0)  # type: ignore[misc]
                got = box.popleft()
                if got.nbytes != buffer.nbytes:
                    raise InputError(f"rank {self._rank} expects {buffer.nbytes} bytes of {peer}, got {got.nbytes}")
                buffer[...] = got.reshape(buffer.shape)

    def all_to_all_rows(self, rows: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
        """Rows that every rank sent to this one, in rank order."""
        return [sent[self._rank] for sent in self._share(list(rows))]

    def min(self, value: int) -> int:
        """The least `value` of all ranks."""
        return int(min(self._share(value)))

    def max(self, value: int) -> int:
        """The greatest `value` of all ranks."""
        return int(max(self._share(value)))

    def sum(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Elementwise sum over ranks."""
        total: NDArray[np.int64] = np.sum(self._share(values), axis=0, dtype=np.int64)
        return total

    def sum_in_place(self, values: NDArray[np.int64]) -> None:
        """Replace `values` by their elementwise sum over ranks."""
        values[...] = self.sum(values.copy())

    def broadcast(self, value: Any, root: int = 0) -> Any:
        """`value` of `root`."""
        return self._share(value if self._rank == root else None)[root]

    def gather(self, value: Any, root: int = 0) -> list[Any] | None:
        """All values on `root`, None elsewhere."""
        values = self._share(value)
        return values if self._rank == root else None

    def all_gather(self, value: Any) -> list[Any]:
        """All values on every rank."""
        return self._share(value)

    def barrier(self) -> None:
        """Wait for all ranks."""
        self._share(None)


def run_ranks(n: int, function: Callable[[Comm], T]) -> list[T]:
    """Run `function(comm)` on n ranks at once, each a thread; returns their results in rank order.

    Raises the error of the lowest rank that failed by itself; the others are ended at their next call of `comm`.
    """
    if n < 1:
        raise InputError(f"number of ranks must be at least 1, not {n}")
    group = _Group(n)
    results: dict[int, T] = {}

    def work(rank: int) -> None:
        error: BaseException | None = None
        try:
            results[rank] = function(LocalComm(group, rank))
        except BaseException as caught:
            error = caught
        group.end(rank, error)

    threads = [threading.Thread(target=work, args=(rank,), name=f"rank {rank}", daemon=True) for rank in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if group.errors:
        raise group.errors[min(group.errors)]
    return [results[rank] for rank in range(n)]
