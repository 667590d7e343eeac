"""Which op must wait for which: the graph of dependencies and messages, and its topological levels."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from meshemu.errors import ScheduleError
from meshemu.program.ir import OpKind, Program
from meshemu.program.pieces import expand_ranges

__all__ = ["describe_op", "first_unordered", "levels", "precedence"]

Ids = NDArray[np.int64]


def precedence(program: Program) -> tuple[Ids, Ids]:
    """(before, after), int64[n_edges]: every dependency, then SEND before RECV of every message."""
    waiting = np.repeat(np.arange(program.n_ops), np.diff(program.dep_ptr))
    return np.concatenate((program.dep, program.send_op)), np.concatenate((waiting, program.recv_op))


def levels(before: Ids, after: Ids, n_ops: int, name: Callable[[int], str]) -> NDArray[np.int32]:
    """Length of the longest chain of ops before each op, int32[n_ops] (Kahn's algorithm, a level at a time).

    name words an op for the message. Raises ScheduleError with the ops of one cycle if there is one.
    """
    order = np.argsort(before, kind="stable")
    successor = after[order]
    count = np.bincount(before, minlength=n_ops)
    first = np.cumsum(count) - count
    waits = np.bincount(after, minlength=n_ops)
    level = np.full(n_ops, -1, np.int32)
    front, depth = np.flatnonzero(waits == 0), 0
    while len(front):
        level[front] = depth
        reached = successor[expand_ranges(first[front], count[front])]
        np.subtract.at(waits, reached, 1)
        # Each op once: of equal entries only the one written last finds its own index.
        ready = reached[waits[reached] == 0]
        waits[ready] = -1 - np.arange(len(ready))
        front = ready[waits[ready] == -1 - np.arange(len(ready))]
        depth += 1
    if (level < 0).any():
        cycle = _cycle(before, after, level < 0)
        raise ScheduleError("ops wait for one another in a cycle: " + " before ".join(name(op) for op in cycle))
    return level


def first_unordered(before: Ids, after: Ids, level: NDArray[np.int32], first: Ids, then: Ids) -> int:
    """Index of the first pair for which no chain of edges leads from op first[i] to op then[i]; -1 if all have one.

    before, after: the edges of `precedence`. level: of each op by `levels`. Pairs that are edges themselves, as
    builders make them, are found by bisection; for each other one the graph is searched between the levels of its ends.
    """
    n_ops = np.int64(len(level))
    edge = np.sort(after * n_ops + before)
    key = then * n_ops + first
    at = np.minimum(np.searchsorted(edge, key), max(len(edge) - 1, 0))
    direct = edge[at] == key if len(edge) else np.zeros(len(key), bool)
    if direct.all():
        return -1
    awaited = edge % n_ops
    end = np.cumsum(np.bincount(after, minlength=len(level)))
    for pair in np.flatnonzero(~direct).tolist():
        front, seen = {int(then[pair])}, set[int]()
        while front and int(first[pair]) not in front:
            seen |= front
            feeding = {int(on) for op in front for on in awaited[end[op - 1] if op else 0 : end[op]]}
            front = {op for op in feeding - seen if level[op] >= level[first[pair]]}
        if not front:
            return int(pair)
    return -1


def describe_op(program: Program, op: int) -> str:
    """Words for an op: its id, kind, label, device and message."""
    kind = OpKind(program.kind[op]).name.lower()
    message = f", message {program.message[op]}" if program.message[op] >= 0 else ""
    return f"op {op} ({kind} {program.labels[program.label[op]]!r} on device {program.device[op]}{message})"


def _cycle(before: Ids, after: Ids, stuck: NDArray[np.bool_]) -> list[int]:
    """One cycle among the stuck ops, each of which waits for another stuck one; the first op closes the list."""
    inside = stuck[before] & stuck[after]
    awaited = dict(zip(after[inside].tolist(), before[inside].tolist(), strict=True))
    seen: dict[int, int] = {}
    op = min(awaited)
    path: list[int] = []
    while op not in seen:
        seen[op] = len(path)
        path.append(op)
        op = awaited[op]
    return [op, *reversed(path[seen[op] :])]
