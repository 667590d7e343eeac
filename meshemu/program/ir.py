"""The Program: what every device computes, sends, receives and reduces in one step, as plain arrays.

A Program holds work (flops, bytes), never durations, and collectives by name beside the schedule chosen for them, so
that another machine can re-time it or choose again. An op's id is its index; ids are stable across rank counts.

Op kinds:
    COMPUTE  runs on the device's compute unit.
    SEND     hands message `message` to the network when its dependencies end.
    RECV     ends when message `message` has arrived and its dependencies have ended. A RECV that no REDUCE refers to
             writes the message's chunks over the device's buffer.
    REDUCE   runs on the device's communication unit and combines what RECV of `message` brought into the device's
             buffer (message -1: a combination of several receives, e.g. the adjoint of a halo).
    INTERFACE moves bytes over a unit of interface processor `interface`, which is beside the device; the op class says
             which unit (`program.interfaces`).

Messages that share a SEND are a multicast: what it hands over travels as one, forks in the routers and ends in one
RECV each. Messages that share a RECV are a reduction in the network: routers sum what their SENDs hand over where it
meets, and the RECV gets the sum. The messages of such a tree are numbered in a row and have one size and the same
chunks; an op that belongs to several messages names the first.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

__all__ = ["CollectiveUse", "OpKind", "Program", "Shape"]

Shape = tuple[tuple[int, ...], ...]
"""What the arithmetic of an op is over: of a vector op ((elements,),), of its matrix products one (batch, m, n, k,
elements of the left operand, elements of the right one) each."""


class OpKind(IntEnum):
    """What an op does."""

    COMPUTE = 0
    SEND = 1
    RECV = 2
    REDUCE = 3
    INTERFACE = 4


@dataclass(frozen=True)
class CollectiveUse:
    """One collective in a Program: its name, the schedule chosen for it, and who takes part.

    kind: all_reduce, reduce_scatter, all_gather, broadcast or reduce. devices: participants in group order.
    grid: (rows, cols) of the group's grid. n_chunks: pieces that the buffer is cut into, none of them empty; piece c
    holds the elements between bounds c and c + 1 of mesh.split_bounds(n_elements, n_chunks), and reduce_scatter and
    all_gather give piece i to participant i. size_bytes: whole buffer.
    label: what it is for, e.g. "batch_norm layer1.0.norm" or "gradients 0".
    root: the participant that broadcast reads and reduce fills, else -1.
    """

    kind: str
    algorithm: str
    devices: tuple[int, ...]
    grid: tuple[int, int]
    n_chunks: int
    size_bytes: int
    label: str
    root: int = -1


@dataclass(frozen=True, eq=False)
class Program:
    """Ops, messages and dependencies of one step over `n_devices` devices.

    Ops (n): kind int8; device int32; label int32 -> labels; op_class int16 -> op_classes; number_format int8 ->
    number_formats; flops, read_bytes, write_bytes int64; message int64 (-1: none); collective int32 (-1: none);
    chunk_lo, chunk_hi int32 (chunk range of the collective's buffer that a SEND/RECV/REDUCE touches, else 0, 0);
    shape int32 -> shapes (-1: not known); producer int64, producer_bytes int64 (a pointwise op that alone reads the
    block of so many bytes that op `producer`, earlier on the same device, made; else -1, 0); interface int32 (number of
    the interface processor that an INTERFACE op is of, else -1).
    Messages (m): src, dst int32; size_bytes int64; send_op, recv_op int64 (either may be shared by a tree).
    Dependencies, CSR: op i waits for dep[dep_ptr[i]:dep_ptr[i+1]], all on the same device as i.
    """

    n_devices: int
    kind: NDArray[np.int8]
    device: NDArray[np.int32]
    label: NDArray[np.int32]
    op_class: NDArray[np.int16]
    number_format: NDArray[np.int8]
    flops: NDArray[np.int64]
    read_bytes: NDArray[np.int64]
    write_bytes: NDArray[np.int64]
    message: NDArray[np.int64]
    collective: NDArray[np.int32]
    chunk_lo: NDArray[np.int32]
    chunk_hi: NDArray[np.int32]
    shape: NDArray[np.int32]
    producer: NDArray[np.int64]
    producer_bytes: NDArray[np.int64]
    interface: NDArray[np.int32]
    src: NDArray[np.int32]
    dst: NDArray[np.int32]
    size_bytes: NDArray[np.int64]
    send_op: NDArray[np.int64]
    recv_op: NDArray[np.int64]
    dep_ptr: NDArray[np.int64]
    dep: NDArray[np.int64]
    labels: tuple[str, ...]
    op_classes: tuple[str, ...]
    number_formats: tuple[str, ...]
    shapes: tuple[Shape, ...]
    collectives: tuple[CollectiveUse, ...]

    @property
    def n_ops(self) -> int:
        """Number of ops."""
        return len(self.kind)

    @property
    def n_messages(self) -> int:
        """Number of messages."""
        return len(self.src)
