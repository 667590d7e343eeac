"""The ops of a rank: which they are, what each waits for, and what waits for it. Compiled: three passes over them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.network.compiled import at, kernel, writable
from meshemu.network.events import Ints
from meshemu.network.merging import Rows, rows_of
from meshemu.network.ops import RECV
from meshemu.program.ir import Program

__all__ = ["Share", "no_ops", "share_of"]


Ids = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Share:
    """The ops of a rank, numbered among themselves in the order of the Program; those of others take no room.

    rows: of all ops of the Program, which are whose. number: int32[n_ops], the number of each of them, -1 for others'.
    By these numbers: waiting, int32[n_own], how many events each op waits for; idle, which wait for none;
    successor_ptr, int32[n_own + 2], and successor, as CSR, which wait for each.
    """

    rows: Rows
    number: Ids
    waiting: Ids
    idle: Ids
    successor_ptr: Ids
    successor: Ids


@kernel
def _number(runs: Ints, rank: int, number: Ids) -> None:
    """Fill number."""
    n_own = 0
    for run in range(len(runs)):
        first, behind, own = runs[run, 0], runs[run, 1], runs[run, 2] == rank
        of_run = number[first:behind]
        for i in range(len(of_run)):
            of_run[i] = n_own + i if own else -1
        n_own += len(of_run) * own


@kernel
def _count(
    runs: Ints, rank: int, dep_ptr: Ints, dep: Ints, kind: NDArray[np.int8], number: Ids, waiting: Ids, idle: Ids,
    successor_ptr: Ids,
) -> int:
    """Fill waiting and idle, and leave in successor_ptr[i + 2], zeros before, how many ops wait for i.

    Dependencies are on the same device, so of the same rank. Returns how many ops are idle.
    """
    n_own, n_idle = 0, 0
    for run in range(len(runs)):
        if runs[run, 2] != rank:
            continue
        for op in range(runs[run, 0], runs[run, 1]):
            begin, end = dep_ptr[at(op)], dep_ptr[at(op + 1)]
            for entry in range(begin, end):
                successor_ptr[at(number[at(dep[at(entry)])] + 2)] += 1
            waiting[n_own] = end - begin + (kind[at(op)] == RECV)
            if waiting[n_own] == 0:
                idle[n_idle] = n_own
                n_idle += 1
            n_own += 1
    return n_idle


@kernel
def _invert(runs: Ints, rank: int, dep_ptr: Ints, dep: Ints, number: Ids, successor_ptr: Ids, successor: Ids) -> None:
    """From what `_count` left in successor_ptr to pointers, and the ops that wait for each, ascending."""
    for i in range(2, len(successor_ptr)):
        successor_ptr[i] += successor_ptr[i - 1]
    n_own = 0
    for run in range(len(runs)):
        if runs[run, 2] != rank:
            continue
        for op in range(runs[run, 0], runs[run, 1]):
            for entry in range(dep_ptr[at(op)], dep_ptr[at(op + 1)]):
                node = at(number[at(dep[at(entry)])] + 1)
                successor[at(successor_ptr[node])] = n_own
                successor_ptr[node] += 1
            n_own += 1


def share_of(program: Program, rank_of_device: Ids, rank: int, n_ranks: int) -> Share:
    """The ops of `rank` in a checked Program."""
    rows = rows_of(program.device, rank_of_device, n_ranks)
    n_own, number = int(rows.count[rank]), np.empty(program.n_ops, np.int32)
    _number(rows.runs, rank, number)
    dep_ptr, dep = writable(program.dep_ptr, np.int64), writable(program.dep, np.int64)
    waiting, idle, successor = (np.empty(n, np.int32) for n in (n_own, n_own, len(dep)))
    successor_ptr = np.zeros(n_own + 2, np.int32)
    kind = writable(program.kind, np.int8)
    n_idle = _count(rows.runs, rank, dep_ptr, dep, kind, number, waiting, idle, successor_ptr)
    _invert(rows.runs, rank, dep_ptr, dep, number, successor_ptr, successor)
    return Share(rows, number, waiting, idle[:n_idle], successor_ptr, successor)


def no_ops() -> Share:
    """That of messages without a Program."""
    none = np.zeros(0, np.int32)
    rows = Rows(np.zeros((0, 3), np.int64), np.zeros(0, np.int64))
    return Share(rows, none, none, none, np.zeros(2, np.int32), none)
