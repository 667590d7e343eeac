"""Check that a schedule does what its kind says, each contribution exactly once."""

import numpy as np
from numpy.typing import NDArray

from meshemu.collectives.schedule import Schedule
from meshemu.errors import ScheduleError
from meshemu.program.contributions import Moves, check_exactly_once, pieces_of

__all__ = ["verify_schedule"]


def verify_schedule(schedule: Schedule) -> None:
    """Replay the schedule phase by phase. Raises ScheduleError with participant, chunk and phase."""
    s, n = schedule, schedule.n_participants
    columns = (s.phase, s.src, s.dst, s.chunk_lo, s.chunk_hi, s.reduce)
    if len({len(column) for column in columns}) != 1:
        raise ScheduleError(f"{s.kind}: columns of a schedule differ in length: {[len(c) for c in columns]}")
    if (np.diff(s.phase) < 0).any():
        raise ScheduleError(f"{s.kind}: transfers are not sorted by phase")
    wrong = (s.src == s.dst) | (np.minimum(s.src, s.dst) < 0) | (np.maximum(s.src, s.dst) >= n)
    wrong |= (s.chunk_lo < 0) | (s.chunk_lo >= s.chunk_hi) | (s.chunk_hi > s.n_chunks)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ScheduleError(f"{s.kind}: {_transfer(s, first)} does not fit {n} participants and {s.n_chunks} chunks")
    if s.tree is not None:
        _check_trees(s, s.tree)
    order = np.arange(len(s.phase))
    steps = [(part, part) for part in np.split(order, np.flatnonzero(np.diff(s.phase)) + 1) if len(part)]
    src, dst, lo, hi = (column.astype(np.int64) for column in (s.src, s.dst, s.chunk_lo, s.chunk_hi))
    moves = Moves(src, dst, lo, hi, s.reduce)
    check_exactly_once(
        s.kind, n, s.n_chunks, s.root, moves, steps, pieces_of(s.kind, n, s.n_chunks, moves),
        name=lambda participant: f"participant {participant}", move_name=lambda move: _transfer(s, move),
    )


def _check_trees(s: Schedule, tree: NDArray[np.int32]) -> None:
    """Transfers of a tree stand together, agree in all but one end, and combine if that end is the source."""
    if len(tree) != len(s.phase):
        raise ScheduleError(f"{s.kind}: tree has {len(tree)} entries for {len(s.phase)} transfers")
    follows = np.flatnonzero((tree[1:] == tree[:-1]) & (tree[1:] >= 0)) + 1
    starts = np.setdiff1d(np.flatnonzero(tree >= 0), follows)
    if len(np.unique(tree[starts])) < len(starts):
        raise ScheduleError(f"{s.kind}: the transfers of a tree do not stand side by side")
    same = np.ones(len(follows), np.bool_)
    for column in (s.phase, s.chunk_lo, s.chunk_hi, s.reduce):
        same &= column[follows] == column[follows - 1]
    forks, merges = s.src[follows] == s.src[follows - 1], s.dst[follows] == s.dst[follows - 1]
    wrong = ~same | (forks == merges) | (merges & ~s.reduce[follows])
    if wrong.any():
        first = int(follows[np.argmax(wrong)])
        raise ScheduleError(
            f"{s.kind}: {_transfer(s, first)} is in a tree with {_transfer(s, first - 1)}, but they are neither a "
            f"multicast nor a reduction in the network"
        )


def _transfer(s: Schedule, index: int) -> str:
    return (
        f"the transfer of chunks {s.chunk_lo[index]}:{s.chunk_hi[index]} from participant {s.src[index]} "
        f"to participant {s.dst[index]} in phase {s.phase[index]}"
    )
