"""Append ops, messages and dependencies in bulk; `build()` freezes them into a Program.

Columns grow by doubling, so that a call costs a few array assignments whether it adds one op or a million.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from meshemu.errors import ScheduleError
from meshemu.program.ir import CollectiveUse, OpKind, Program, Shape

__all__ = ["ProgramBuilder"]


class _Column:
    """One growing array; values broadcast to the number of rows that an append adds."""

    def __init__(self, dtype: DTypeLike) -> None:
        self._data: NDArray[Any] = np.empty(64, dtype)
        self._length = 0

    def append(self, value: ArrayLike, count: int) -> None:
        end = self._length + count
        if end > len(self._data):
            grown = np.empty(max(end, 2 * len(self._data)), self._data.dtype)
            grown[: self._length] = self._data[: self._length]
            self._data = grown
        self._data[self._length : end] = value
        self._length = end

    def array(self) -> NDArray[Any]:
        """A copy of what was appended."""
        return self._data[: self._length].copy()


class _Table:
    """Distinct strings, numbered in the order of their first use."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}

    def intern(self, name: str) -> int:
        return self._index.setdefault(name, len(self._index))

    def names(self) -> tuple[str, ...]:
        return tuple(self._index)


_OP_COLUMNS = {
    "kind": np.int8, "device": np.int32, "label": np.int32, "op_class": np.int16, "number_format": np.int8,
    "flops": np.int64, "read_bytes": np.int64, "write_bytes": np.int64, "message": np.int64,
    "collective": np.int32, "chunk_lo": np.int32, "chunk_hi": np.int32,
    "shape": np.int32, "producer": np.int64, "producer_bytes": np.int64, "interface": np.int32,
}
_MESSAGE_COLUMNS = {"src": np.int32, "dst": np.int32, "size_bytes": np.int64, "send_op": np.int64, "recv_op": np.int64}
_EDGE_COLUMNS = {"op": np.int64, "on": np.int64}


class ProgramBuilder:
    """Collects the ops of a Program; every method takes and returns whole arrays of op ids.

    An op's id is the number of ops added before it, so ids follow the order of the calls. SEND and RECV ops have
    the empty op class and number format, INTERFACE ops the empty number format. A call that adds no op leaves no trace.
    """

    def __init__(self, n_devices: int) -> None:
        """Start an empty Program over devices 0 <= device < n_devices."""
        self._n_devices = n_devices
        self._n_ops = 0
        self._n_messages = 0
        self._ops = {name: _Column(dtype) for name, dtype in _OP_COLUMNS.items()}
        self._messages = {name: _Column(dtype) for name, dtype in _MESSAGE_COLUMNS.items()}
        self._edges = {name: _Column(dtype) for name, dtype in _EDGE_COLUMNS.items()}
        self._labels, self._op_classes, self._number_formats = _Table(), _Table(), _Table()
        self._shapes: dict[Shape, int] = {}
        self._collectives: list[CollectiveUse] = []

    @property
    def n_ops(self) -> int:
        """Number of ops so far: the id of the next one."""
        return self._n_ops

    def compute(
        self, device: ArrayLike, *, label: str, op_class: str, number_format: str,
        flops: ArrayLike, read_bytes: ArrayLike, write_bytes: ArrayLike,
        shape: ArrayLike = -1, producer: ArrayLike = -1, producer_bytes: ArrayLike = 0,
    ) -> NDArray[np.int64]:
        """One COMPUTE op per entry of `device`; the work arguments broadcast. Returns their ids.

        shape: numbers that `shape` gave. producer, producer_bytes: as in a Program.
        """
        return self._add(
            OpKind.COMPUTE, device, label=label, op_class=op_class, number_format=number_format,
            flops=flops, read_bytes=read_bytes, write_bytes=write_bytes,
            shape=shape, producer=producer, producer_bytes=producer_bytes,
        )

    def shape(self, shape: Shape) -> int:
        """The number of a shape, for `compute`; -1 for an empty one, which says that it is not known."""
        return self._shapes.setdefault(shape, len(self._shapes)) if shape else -1

    def reduce(
        self, device: ArrayLike, *, label: str, op_class: str, number_format: str,
        flops: ArrayLike, read_bytes: ArrayLike, write_bytes: ArrayLike,
        message: ArrayLike = -1, collective: int = -1, chunk_lo: ArrayLike = 0, chunk_hi: ArrayLike = 0,
    ) -> NDArray[np.int64]:
        """One REDUCE op per entry of `device`. Returns their ids.

        message: what it combines into the device's buffer, or -1. chunk_lo, chunk_hi: chunks of `collective`.
        """
        return self._add(
            OpKind.REDUCE, device, label=label, op_class=op_class, number_format=number_format,
            flops=flops, read_bytes=read_bytes, write_bytes=write_bytes,
            message=message, collective=collective, chunk_lo=chunk_lo, chunk_hi=chunk_hi,
        )

    def interface(
        self, device: ArrayLike, *, interface: ArrayLike, label: str, op_class: str,
        read_bytes: ArrayLike = 0, write_bytes: ArrayLike = 0,
    ) -> NDArray[np.int64]:
        """One INTERFACE op per entry of `device`. Returns their ids.

        interface: number of the interface processor beside it. read_bytes, write_bytes: of its memory. Made by way of
        `program.interfaces`.
        """
        return self._add(
            OpKind.INTERFACE, device, label=label, op_class=op_class, read_bytes=read_bytes, write_bytes=write_bytes,
            interface=interface,
        )

    def messages(
        self, src: ArrayLike, dst: ArrayLike, size_bytes: ArrayLike, *, label: str,
        collective: int = -1, chunk_lo: ArrayLike = 0, chunk_hi: ArrayLike = 0, tree: ArrayLike | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """One SEND on src and one RECV on dst per entry. Returns (message ids, send op ids, recv op ids) per entry.

        src and dst broadcast against each other; all sends of a call come before its receives. tree: entries that stand
        side by side with one number >= 0 travel as one, a multicast with one SEND if they share src, else a reduction
        in the network with one RECV; -1, or None for all: alone.
        """
        src, dst = np.broadcast_arrays(np.atleast_1d(src), np.atleast_1d(dst))
        count = len(src)
        message = np.arange(self._n_messages, self._n_messages + count, dtype=np.int64)
        low, high = np.broadcast_to(chunk_lo, count), np.broadcast_to(chunk_hi, count)
        starts = (np.ones(count, np.bool_),) * 2 if tree is None else _first_of_ops(src, np.broadcast_to(tree, count))
        send, recv = (
            self._add(
                kind, device[first], label=label, message=message[first], collective=collective,
                chunk_lo=low[first], chunk_hi=high[first],
            )[np.cumsum(first) - 1]
            for kind, device, first in ((OpKind.SEND, src, starts[0]), (OpKind.RECV, dst, starts[1]))
        )
        row: dict[str, ArrayLike] = {
            "src": src, "dst": dst, "size_bytes": size_bytes, "send_op": send, "recv_op": recv,
        }
        for name, column in self._messages.items():
            column.append(row[name], count)
        self._n_messages += count
        return message, send, recv

    def depend(self, op: ArrayLike, on: ArrayLike) -> None:
        """Each op[i] waits for on[i] (broadcast). Entries with on < 0 are ignored; duplicates are merged by build()."""
        op, on = np.broadcast_arrays(np.asarray(op, np.int64), np.asarray(on, np.int64))
        keep = on >= 0
        op, on = op[keep], on[keep]
        self._edges["op"].append(op, op.size)
        self._edges["on"].append(on, on.size)

    def collective(self, use: CollectiveUse) -> int:
        """Register a collective; returns its index."""
        self._collectives.append(use)
        return len(self._collectives) - 1

    def build(self) -> Program:
        """The Program so far, with the dependencies of each op in ascending order.

        Raises ScheduleError if a dependency names an op that does not exist.
        """
        dep_ptr, dep = _csr(self._edges["op"].array(), self._edges["on"].array(), self._n_ops)
        return Program(
            n_devices=self._n_devices,
            **{name: column.array() for name, column in self._ops.items()},
            **{name: column.array() for name, column in self._messages.items()},
            dep_ptr=dep_ptr,
            dep=dep,
            labels=self._labels.names(),
            op_classes=self._op_classes.names(),
            number_formats=self._number_formats.names(),
            shapes=tuple(self._shapes),
            collectives=tuple(self._collectives),
        )

    def _add(
        self, kind: OpKind, device: ArrayLike, *, label: str, op_class: str = "", number_format: str = "",
        flops: ArrayLike = 0, read_bytes: ArrayLike = 0, write_bytes: ArrayLike = 0,
        message: ArrayLike = -1, collective: ArrayLike = -1, chunk_lo: ArrayLike = 0, chunk_hi: ArrayLike = 0,
        shape: ArrayLike = -1, producer: ArrayLike = -1, producer_bytes: ArrayLike = 0, interface: ArrayLike = -1,
    ) -> NDArray[np.int64]:
        device = np.atleast_1d(device)
        count = len(device)
        if not count:
            return np.empty(0, np.int64)
        row: dict[str, ArrayLike] = {
            "kind": kind, "device": device, "label": self._labels.intern(label),
            "op_class": self._op_classes.intern(op_class), "number_format": self._number_formats.intern(number_format),
            "flops": flops, "read_bytes": read_bytes, "write_bytes": write_bytes, "message": message,
            "collective": collective, "chunk_lo": chunk_lo, "chunk_hi": chunk_hi,
            "shape": shape, "producer": producer, "producer_bytes": producer_bytes, "interface": interface,
        }
        for name, column in self._ops.items():
            column.append(row[name], count)
        ids = np.arange(self._n_ops, self._n_ops + count, dtype=np.int64)
        self._n_ops += count
        return ids


def _first_of_ops(src: NDArray[Any], tree: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of a list of messages start a SEND op of their own, and which a RECV op."""
    follows = np.zeros(len(tree), np.bool_)
    follows[1:] = (tree[1:] == tree[:-1]) & (tree[1:] >= 0)
    number = np.cumsum(~follows)
    start = np.flatnonzero(~follows)
    forks = np.zeros(len(start), np.bool_)
    several = np.flatnonzero(np.diff(start, append=len(tree)) > 1)
    forks[several] = src[start[several]] == src[start[several] + 1]
    outward = forks[number - 1]
    return ~(follows & outward), ~(follows & ~outward)


def _csr(op: NDArray[np.int64], on: NDArray[np.int64], n_ops: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Edges op[i] -> on[i] as (dep_ptr, dep), sorted and without duplicates."""
    if op.size and (max(op.max(), on.max()) >= n_ops or op.min() < 0):
        wrong = np.flatnonzero((op >= n_ops) | (on >= n_ops) | (op < 0))[0]
        raise ScheduleError(f"op {op[wrong]} waits for op {on[wrong]}, but there are {n_ops} ops")
    # One integer per edge sorts several times faster than a pair, and n_ops**2 fits in 64 bits below 3e9 ops.
    key = op * np.int64(n_ops) + on
    key.sort()
    if key.size:
        key = key[np.concatenate(([True], key[1:] != key[:-1]))]
    owner, dep = np.divmod(key, np.int64(max(n_ops, 1)))
    dep_ptr = np.zeros(n_ops + 1, np.int64)
    np.cumsum(np.bincount(owner, minlength=n_ops), out=dep_ptr[1:])
    return dep_ptr, dep
