"""What waits for each op of a rank, and for how much each op waits. Compiled: two passes over all ops."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.network.compiled import kernel, writable
from meshemu.network.events import Ints
from meshemu.network.ops import RECV
from meshemu.program.ir import Program

__all__ = ["NO_OPS", "Share", "share_of"]


@dataclass(frozen=True, eq=False)
class Share:
    """The ops of a rank: own, bool[n_ops], which they are, and n_own, how many; waiting, int64[n_ops], how many events
    each waits for (0 for others' ops); idle, which wait for none; successor_ptr, int64[n_ops + 2], and successor, as
    CSR, which ops of the rank wait for each.
    """

    own: NDArray[np.bool_]
    n_own: int
    waiting: Ints
    idle: Ints
    successor_ptr: Ints
    successor: Ints


NO_OPS = Share(
    np.zeros(0, np.bool_), 0, *(np.zeros(n, np.int64) for n in (0, 0, 2, 0))
)  # of messages without a Program


@kernel
def _count(
    dep_ptr: Ints, dep: Ints, kind: NDArray[np.int8], device: NDArray[np.int32], rank_of_device: NDArray[np.int32],
    rank: int, own: NDArray[np.bool_], waiting: Ints, idle: Ints, successor_ptr: Ints,
) -> tuple[int, int]:
    """Fill own, waiting and idle, and leave in successor_ptr[op + 2] how many ops of the rank wait for op.

    Returns how many ops are the rank's and how many of these are idle. All but idle: zeros before.
    """
    n_own, n_idle = 0, 0
    for op in range(len(kind)):
        if rank_of_device[device[op]] != rank:
            continue
        own[op] = True
        n_own += 1
        for entry in range(dep_ptr[op], dep_ptr[op + 1]):
            successor_ptr[dep[entry] + 2] += 1
        waiting[op] = dep_ptr[op + 1] - dep_ptr[op] + (kind[op] == RECV)
        if waiting[op] == 0:
            idle[n_idle] = op
            n_idle += 1
    return n_own, n_idle


@kernel
def _invert(dep_ptr: Ints, dep: Ints, own: NDArray[np.bool_], successor_ptr: Ints, successor: Ints) -> None:
    """From what `_count` left in successor_ptr to pointers, and the own ops that wait for each op, ascending."""
    for op in range(2, len(successor_ptr)):
        successor_ptr[op] += successor_ptr[op - 1]
    for op in range(len(own)):
        if own[op]:
            for entry in range(dep_ptr[op], dep_ptr[op + 1]):
                node = dep[entry] + 1
                successor[successor_ptr[node]] = op
                successor_ptr[node] += 1


def share_of(program: Program, rank_of_device: NDArray[np.int32], rank: int) -> Share:
    """The ops of `rank` in a checked Program."""
    n_ops = program.n_ops
    dep_ptr, dep = writable(program.dep_ptr, np.int64), writable(program.dep, np.int64)
    own, waiting, successor_ptr = np.zeros(n_ops, np.bool_), np.zeros(n_ops, np.int64), np.zeros(n_ops + 2, np.int64)
    idle, successor = np.empty(n_ops, np.int64), np.empty(len(dep), np.int64)
    n_own, n_idle = _count(
        dep_ptr, dep, writable(program.kind, np.int8), writable(program.device, np.int32), rank_of_device, rank, own,
        waiting, idle, successor_ptr,
    )  # fmt: skip
    _invert(dep_ptr, dep, own, successor_ptr, successor)
    return Share(own, n_own, waiting, idle[:n_idle], successor_ptr, successor)
