"""What a collective must achieve, checked by replaying its messages on symbolic buffers.

A buffer holds a multiset of contributions per (participant, chunk): SEND copies the multiset, a reducing receive adds
to it, any other receive replaces it. A contribution that is lost, or added twice, gives another multiset.

A multiset over n participants is kept as one 64-bit number, the sum of a fixed pseudo-random weight per contribution
(mod 2**64): two different multisets agree with probability 2**-64, and a check over 3,000 x 3,000 buffers fits in
72 MB. A buffer that does not hold its final value is looked at again with exact counts, to say what is wrong.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.errors import ScheduleError

__all__ = ["KINDS", "Moves", "Step", "check_exactly_once", "expand_ranges"]

KINDS = ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce")

Step = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Moves that are sent, and moves that are received, at one time: indices into Moves."""


@dataclass(frozen=True, eq=False)
class Moves:
    """The messages of one collective: src, dst participant; chunks lo <= c < hi; reduce: combine, else overwrite."""

    src: NDArray[np.int64]
    dst: NDArray[np.int64]
    lo: NDArray[np.int64]
    hi: NDArray[np.int64]
    reduce: NDArray[np.bool_]


def expand_ranges(start: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.int64]:
    """Concatenate start[i], start[i] + 1, ... of `length[i]` entries each."""
    end = np.cumsum(length)
    total = int(end[-1]) if len(end) else 0
    return np.arange(total, dtype=np.int64) + np.repeat(start - end + length, length)


def check_exactly_once(
    kind: str, n_participants: int, n_chunks: int, root: int, moves: Moves, steps: Sequence[Step], *,
    name: Callable[[int], str], move_name: Callable[[int], str],
) -> None:
    """Replay `moves` in the order of `steps` and check that `kind` is done, each contribution exactly once.

    In a step all sends come first. name and move_name word a participant and a move for the message.
    Raises ScheduleError.
    """
    label = _initial(kind, n_participants, n_chunks, root)
    weight = _weights(2 * n_participants)
    state = weight[label.ravel()]
    for move in _replay(state, moves, n_chunks, steps):
        raise ScheduleError(f"{kind}: {move_name(move)} touches chunks that another message of the same time writes")
    wanted, value = _expected(kind, n_participants, n_chunks, root, weight)
    wrong = np.flatnonzero(wanted.ravel() & (state != value.ravel()))
    if len(wrong):
        participant, chunk = divmod(int(wrong[0]), n_chunks)
        counts = _counts(label, moves, steps, participant, chunk, n_participants)
        writers = np.flatnonzero((moves.dst == participant) & (moves.lo <= chunk) & (chunk < moves.hi))
        rank = {int(move): index for index, (_, received) in enumerate(steps) for move in received}
        last = max(writers.tolist(), key=lambda move: rank.get(move, -1), default=None)
        raise ScheduleError(
            f"{kind}: {name(participant)} ends with {_fault(kind, counts, chunk, root, name)} on chunk {chunk}"
            + ("; nothing writes it" if last is None else f"; last written by {move_name(last)}")
        )


def _initial(kind: str, n: int, n_chunks: int, root: int) -> NDArray[np.int64]:
    """Contribution that each (participant, chunk) holds at the start; n + i stands for undefined data of i."""
    participant = np.arange(n)[:, None]
    if kind == "all_gather":
        defined = participant == np.arange(n_chunks)
    elif kind == "broadcast":
        defined = np.broadcast_to(participant == root, (n, n_chunks))
    else:
        defined = np.ones((n, n_chunks), bool)
    return np.where(defined, participant, n + participant)


def _expected(
    kind: str, n: int, n_chunks: int, root: int, weight: NDArray[np.uint64]
) -> tuple[NDArray[np.bool_], NDArray[np.uint64]]:
    """Which (participant, chunk) the kind defines at the end, and the weight of their contents."""
    participant, chunk = np.arange(n)[:, None], np.arange(n_chunks)
    everywhere = np.ones((n, n_chunks), bool)
    total = np.broadcast_to(weight[:n].sum(), (n, n_chunks))
    match kind:
        case "all_reduce":
            return everywhere, total
        case "reduce_scatter":
            return participant == chunk, total
        case "all_gather":
            return everywhere, np.broadcast_to(weight[chunk], (n, n_chunks))
        case "broadcast":
            return everywhere, np.broadcast_to(weight[root], (n, n_chunks))
        case "reduce":
            return np.broadcast_to(participant == root, (n, n_chunks)), total
    raise ScheduleError(f"unknown collective {kind!r}; known: {', '.join(KINDS)}")


def _replay(
    state: NDArray[np.uint64] | NDArray[np.int32], moves: Moves, n_chunks: int, steps: Iterable[Step]
) -> list[int]:
    """Apply the steps to state[participant * n_chunks + chunk, ...]; the first conflicting move, if there is one."""
    width = moves.hi - moves.lo
    start = np.cumsum(width) - width
    payload = np.empty((int(width.sum()), *state.shape[1:]), state.dtype)
    held = np.full(len(state), -1, np.int64)
    for number, (sent, received) in enumerate(steps):
        read = expand_ranges(moves.src[sent] * n_chunks + moves.lo[sent], width[sent])
        payload[expand_ranges(start[sent], width[sent])] = state[read]
        over, add = received[~moves.reduce[received]], received[moves.reduce[received]]
        over_cell = expand_ranges(moves.dst[over] * n_chunks + moves.lo[over], width[over])
        add_cell = expand_ranges(moves.dst[add] * n_chunks + moves.lo[add], width[add])
        order, mark = np.arange(len(over_cell)), -2 - number
        held[over_cell] = order
        clash = np.repeat(over, width[over])[held[over_cell] != order]
        held[over_cell] = mark
        clash = np.concatenate((clash, np.repeat(add, width[add])[held[add_cell] == mark]))
        if len(clash):
            return [int(clash[0])]
        state[over_cell] = payload[expand_ranges(start[over], width[over])]
        np.add.at(state, add_cell, payload[expand_ranges(start[add], width[add])])
    return []


def _counts(
    label: NDArray[np.int64], moves: Moves, steps: Iterable[Step], participant: int, chunk: int, n: int
) -> NDArray[np.int32]:
    """How often each contribution (n defined ones, n undefined ones) is in one buffer at the end."""
    state = np.zeros((n, 2 * n), np.int32)
    state[np.arange(n), label[:, chunk]] = 1
    touched = (moves.lo <= chunk) & (chunk < moves.hi)
    zero = np.zeros_like(moves.lo)
    _replay(state, Moves(moves.src, moves.dst, zero, touched.astype(np.int64), moves.reduce), 1, steps)
    return np.asarray(state[participant])


def _fault(kind: str, counts: NDArray[np.int32], chunk: int, root: int, name: Callable[[int], str]) -> str:
    n = len(counts) // 2
    wanted = np.zeros(2 * n, np.int32)
    wanted[{"all_gather": slice(chunk, chunk + 1), "broadcast": slice(root, root + 1)}.get(kind, slice(0, n))] = 1
    wrong = int(np.flatnonzero(counts != wanted)[0])
    what = f"the contribution of {name(wrong)}" if wrong < n else f"the undefined data of {name(wrong - n)}"
    return f"{what} {counts[wrong]} times instead of {wanted[wrong]}"


def _weights(n: int) -> NDArray[np.uint64]:
    """Return n fixed pseudo-random 64-bit numbers (SplitMix64: Steele, Lea, Flood, OOPSLA 2014)."""
    z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
