"""What a collective must achieve, checked by replaying its messages on symbolic buffers.

A buffer holds a multiset of contributions per (participant, chunk): SEND copies the multiset, a reducing receive adds
to it, any other receive replaces it. A contribution that is lost, or added twice, gives another multiset.

A multiset is kept as one 64-bit number, the sum of a fixed pseudo-random weight per contribution (mod 2**64): two
different multisets agree with probability 2**-64. Chunks of one piece (`program.pieces`) hold the same in a collective
that is sound, so one number a piece does. Where that turns out wrong, all is replayed with every chunk a piece. A
buffer that does not hold its final value is looked at again with exact counts, to say what is wrong.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.errors import ScheduleError
from meshemu.program.pieces import Access, Pieces, expand_ranges, pieces, single_chunks

__all__ = ["KINDS", "Moves", "Step", "check_exactly_once", "pieces_of"]

KINDS = ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce")

Step = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Moves that are sent, and moves that are received, at one time: indices into Moves."""

Ids = NDArray[np.int64]

_OWNER = 0  # the contribution of the owner of a chunk, whoever that is


@dataclass(frozen=True, eq=False)
class Moves:
    """The messages of one collective: src, dst participant; chunks lo <= c < hi; reduce: combine, else overwrite."""

    src: NDArray[np.int64]
    dst: NDArray[np.int64]
    lo: NDArray[np.int64]
    hi: NDArray[np.int64]
    reduce: NDArray[np.bool_]

    @property
    def accesses(self) -> tuple[Access, Access]:
        """What the moves read, and what they write."""
        return (self.src, self.lo, self.hi), (self.dst, self.lo, self.hi)


class _MixedError(Exception):
    """Chunks of one piece do not all hold the same."""


def pieces_of(kind: str, n_participants: int, n_chunks: int, moves: Moves) -> Pieces:
    """Cut the buffers of a collective where moves begin and end, and around what one participant has of its own.

    Raises ScheduleError for an unknown kind, and for a chunk that nobody contributes.
    """
    if kind not in KINDS:
        raise ScheduleError(f"unknown collective {kind!r}; known: {', '.join(KINDS)}")
    if kind == "all_gather" and n_chunks > n_participants:
        raise ScheduleError(f"{kind}: chunk {n_participants} belongs to none of {n_participants} participants")
    own = np.arange(min(n_participants, n_chunks)) if kind in ("reduce_scatter", "all_gather") else np.arange(0)
    return pieces(n_participants, n_chunks, (*moves.accesses, (own, own, own + 1)))


def check_exactly_once(
    kind: str, n_participants: int, n_chunks: int, root: int, moves: Moves, steps: Sequence[Step], cut: Pieces, *,
    name: Callable[[int], str], move_name: Callable[[int], str],
) -> None:
    """Replay `moves` in the order of `steps` and check that `kind` is done, each contribution exactly once.

    In a step all sends come first. cut: `pieces_of` the moves. name and move_name word a participant and a move for the
    message. Raises ScheduleError.
    """
    weight = _weights(2 * n_participants)

    def wrong_in(cut: Pieces) -> Ids:
        state = weight[_initial(kind, n_participants, root, cut)]
        clash = _replay(state, _Paths.over(cut, moves), moves.reduce, steps)
        if clash >= 0:
            raise ScheduleError(
                f"{kind}: {move_name(clash)} touches chunks that another message of the same time writes"
            )
        result = {"all_gather": weight[_OWNER], "broadcast": weight[root]}.get(kind, weight[:n_participants].sum())
        return np.flatnonzero(_wanted(kind, root, cut) & (state != result))

    try:
        wrong = wrong_in(cut)
    except _MixedError:
        wrong = np.zeros(1, np.int64)
    if not len(wrong):
        return
    cut = single_chunks(n_participants, n_chunks)
    wrong = wrong_in(cut)
    if len(wrong):
        participant, chunk = int(cut.participant[wrong[0]]), int(cut.first_chunk[wrong[0]])
        counts = _counts(kind, root, moves, steps, participant, chunk, n_participants)
        writers = np.flatnonzero((moves.dst == participant) & (moves.lo <= chunk) & (chunk < moves.hi))
        rank = {int(move): index for index, (_, received) in enumerate(steps) for move in received}
        last = max(writers.tolist(), key=lambda move: rank.get(move, -1), default=None)
        raise ScheduleError(
            f"{kind}: {name(participant)} ends with {_fault(kind, counts, chunk, root, name)} on chunk {chunk}"
            + ("; nothing writes it" if last is None else f"; last written by {move_name(last)}")
        )


def _initial(kind: str, n: int, root: int, cut: Pieces) -> Ids:
    """Contribution that each piece holds at the start; n + i stands for undefined data of i.

    Of all_gather a chunk has but one contribution, that of its owner, which has one number for all chunks: _OWNER.
    """
    participant = cut.participant
    if kind == "all_gather":
        return np.where(cut.first_chunk == participant, _OWNER, n + participant)
    if kind == "broadcast":
        return np.where(participant == root, participant, n + participant)
    return participant


def _wanted(kind: str, root: int, cut: Pieces) -> NDArray[np.bool_]:
    """Which pieces the kind defines at the end."""
    wanted = cut.first_chunk < cut.n_chunks
    if kind == "reduce_scatter":
        wanted &= cut.first_chunk == cut.participant
    elif kind == "reduce":
        wanted &= cut.participant == root
    return wanted


@dataclass(frozen=True, eq=False)
class _Paths:
    """Pieces that moves write: those of move i are start[i] <= p < start[i] + width[i], its entries in `source`, the
    pieces they come from, begin at first[i]. joints: pieces that must hold the same as the ones before them when a move
    reads them, since they go into one; those of move i are n_joints[i] entries from first_joint[i] on.
    """

    start: Ids
    width: Ids
    first: Ids
    source: Ids
    first_joint: Ids
    n_joints: Ids
    joints: Ids

    @classmethod
    def over(cls, cut: Pieces, moves: Moves) -> "_Paths":
        """Find the pieces of all moves."""
        (read, n_read), (start, width) = (cut.ranges(access) for access in moves.accesses)
        piece = expand_ranges(start, width)
        source = cut.holding(np.repeat(moves.src, width), cut.first_chunk[piece])
        several = np.flatnonzero(n_read > 1)
        joints = expand_ranges(read[several] + 1, n_read[several] - 1)
        of, chunk = np.repeat(several, n_read[several] - 1), cut.first_chunk[joints]
        within = cut.first_chunk[cut.holding(moves.dst[of], chunk)] != chunk
        n_joints = np.bincount(of[within], minlength=len(width))
        return cls(
            start, width, np.cumsum(width) - width, source, np.cumsum(n_joints) - n_joints, n_joints, joints[within]
        )


def _replay(
    state: NDArray[np.uint64] | NDArray[np.int32], paths: _Paths, reduce: NDArray[np.bool_], steps: Iterable[Step]
) -> int:
    """Apply the steps to state[piece, ...]; returns the first conflicting move, -1 if there is none.

    Raises _MixedError where chunks that differ would have to share a piece.
    """
    first, width, source = paths.first, paths.width, paths.source
    payload = np.empty((len(source), *state.shape[1:]), state.dtype)
    held = np.full(len(state), -1, np.int64)
    for number, (sent, received) in enumerate(steps):
        if len(sent):
            joint = paths.joints[expand_ranges(paths.first_joint[sent], paths.n_joints[sent])]
            if (state[joint] != state[joint - 1]).any():
                raise _MixedError
            part = expand_ranges(first[sent], width[sent])
            payload[part] = state[source[part]]
        over, add = received[~reduce[received]], received[reduce[received]]
        over_piece, add_piece = (expand_ranges(paths.start[moves], width[moves]) for moves in (over, add))
        clash = _overwritten_twice(held, -2 - number, (over, over_piece), (add, add_piece), width)
        if len(clash):
            return int(clash[0])
        state[over_piece] = payload[expand_ranges(first[over], width[over])]
        np.add.at(state, add_piece, payload[expand_ranges(first[add], width[add])])
    return -1


def _overwritten_twice(held: Ids, mark: int, over: tuple[Ids, Ids], add: tuple[Ids, Ids], width: Ids) -> Ids:
    """The moves, of those that overwrite and add to pieces at one time, that touch a piece which another overwrites.

    over, add: moves, and all pieces that they touch. held: scratch per piece, where `mark` has not been used.
    """
    (over_move, over_piece), (add_move, add_piece) = over, add
    order = np.arange(len(over_piece))
    held[over_piece] = order
    clash = np.repeat(over_move, width[over_move])[held[over_piece] != order]
    held[over_piece] = mark
    return np.concatenate((clash, np.repeat(add_move, width[add_move])[held[add_piece] == mark]))


def _counts(
    kind: str, root: int, moves: Moves, steps: Iterable[Step], participant: int, chunk: int, n: int
) -> NDArray[np.int32]:
    """How often each contribution (n defined ones, n undefined ones) is in one buffer at the end."""
    everyone = np.arange(n)
    has = {"all_gather": everyone == chunk, "broadcast": everyone == root}.get(kind, np.ones(n, np.bool_))
    cut = single_chunks(n, 1)
    state = np.zeros((cut.n_pieces, 2 * n), np.int32)
    state[cut.holding(everyone, np.zeros_like(everyone)), np.where(has, everyone, n + everyone)] = 1
    touched = (moves.lo <= chunk) & (chunk < moves.hi)
    alone = Moves(moves.src, moves.dst, np.zeros_like(moves.lo), touched.astype(np.int64), moves.reduce)
    _replay(state, _Paths.over(cut, alone), moves.reduce, steps)
    return np.asarray(state[cut.holding(everyone, np.zeros_like(everyone))][participant])


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
