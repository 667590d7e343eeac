"""What a rank has to do of a schedule, as a flow of data: the pieces that it sends, receives and merges, in order.

Every participant's buffer is cut into the same pieces, which no transfer cuts any further. What a participant holds of
a piece is a node: its own term, or the merge of two nodes. A copy makes no node, it shares one, and a merge that
nothing needs is left out. Every rank follows the nodes of all participants, so that it knows what each rank has: a node
goes to a rank once, however many of its participants the schedule sends it to. A merge may overwrite an operand that it
is the last to need, so that a sum over many participants of one rank takes the memory of its result. The operands of a
merge do not depend on the ranks.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from meshemu.collectives import Schedule

__all__ = ["Flow", "Merge", "Phase", "Share", "make_flow"]

Share = tuple[int, int]
"""(participant, piece): what one participant holds of a piece."""

Message = tuple[int, ...]
"""The nodes of one transfer, piece by piece."""


@dataclass(frozen=True)
class Merge:
    """node = left combined with right, in the memory of the node `into` (one of the two), or in memory of its own."""

    node: int
    left: int
    right: int
    into: int | None = None


@dataclass(frozen=True)
class Phase:
    """Send and receive (peer -> messages), then merge in order, then forget what is dead. Every rank has all phases.

    leaving: (node, participant) for nodes of this rank that a participant is the first to send, to whichever rank.
    """

    sends: Mapping[int, tuple[Message, ...]]
    receives: Mapping[int, tuple[Message, ...]]
    merges: tuple[Merge, ...]
    dead: tuple[int, ...] = ()
    leaving: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Flow:
    """One rank's part of a schedule.

    pieces: node -> its piece. terms: node -> participant, for own terms that are needed. results: share -> its node at
    the end, for the shares that were asked for. places: node -> the result that ends in the memory it is made in.
    """

    phases: tuple[Phase, ...]
    pieces: Mapping[int, int]
    terms: Mapping[int, int]
    results: Mapping[Share, int]
    places: Mapping[int, Share]


def make_flow(
    schedule: Schedule,
    chunk_bounds: Sequence[int],
    piece_bounds: Sequence[int],
    ranks: NDArray[np.int64],
    rank: int,
    wanted: Iterable[Share],
) -> Flow:
    """The part of `rank`, which at the end needs the shares `wanted`, all of its own participants.

    chunk_bounds, piece_bounds: rows of the buffer where chunks and pieces begin and where the last ones end; every
    bound of a chunk is one of a piece. ranks: rank of every participant.
    """
    builder = _Builder(ranks, rank)
    piece_of = [bisect_left(piece_bounds, bound) for bound in chunk_bounds]
    for transfers in _by_phase(schedule):
        builder.phase([(src, dst, range(piece_of[lo], piece_of[hi]), reduce) for src, dst, lo, hi, reduce in transfers])
    return _pruned(builder, {share: builder.node(share) for share in wanted})


Transfer = tuple[int, int, range, bool]
"""Sender, receiver, pieces, and whether they are merged into what the receiver has."""


class _Builder:
    """Follows the nodes that participants hold, phase by phase, and where they are.

    pieces: node -> its piece. terms: node -> participant, for the terms of this rank's participants.
    """

    def __init__(self, ranks: NDArray[np.int64], rank: int) -> None:
        self._ranks = ranks.tolist()
        self._rank = rank
        self._held: dict[Share, int] = {}
        self._on: dict[int, set[int]] = {r: set() for r in self._ranks}
        self.pieces: dict[int, int] = {}
        self.terms: dict[int, int] = {}
        self.phases: list[Phase] = []
        self._sent: set[int] = set()

    def node(self, share: Share) -> int:
        """What a participant holds now."""
        if share not in self._held:
            node = self._held[share] = self._new(*share)
            if self._ranks[share[0]] == self._rank:
                self.terms[node] = share[0]
        return self._held[share]

    def phase(self, transfers: Iterable[Transfer]) -> None:
        """Transfers read what was held before the phase and take effect in their order."""
        sends: dict[int, list[Message]] = defaultdict(list)
        receives: dict[int, list[Message]] = defaultdict(list)
        arriving: list[tuple[int, Message, bool]] = []
        leaving: list[tuple[int, int]] = []
        for src, dst, pieces, reduce in transfers:
            message = tuple(self.node((src, piece)) for piece in pieces)
            source, target = self._ranks[src], self._ranks[dst]
            if source == self._rank:
                leaving += ((node, src) for node in message if node not in self._sent)
            self._sent.update(message)
            moving = tuple(node for node in message if node not in self._on[target])
            self._on[target].update(moving)
            if moving and source == self._rank:
                sends[target].append(moving)
            if moving and target == self._rank:
                receives[source].append(moving)
            arriving.append((dst, message, reduce))
        merges = [merge for arrived in arriving for merge in self._arrive(*arrived)]
        sent, received = ({p: tuple(m) for p, m in messages.items()} for messages in (sends, receives))
        self.phases.append(Phase(sent, received, tuple(merges), leaving=tuple(leaving)))

    def _arrive(self, dst: int, message: Message, reduce: bool) -> list[Merge]:
        """A message takes effect; returns the merges that this rank has to make."""
        merges = []
        for node in message:
            share = dst, self.pieces[node]
            if reduce:
                left = self.node(share)
                merges.append(Merge(self._new(*share), left, node))
            self._held[share] = merges[-1].node if reduce else node
        return merges if self._ranks[dst] == self._rank else []

    def _new(self, participant: int, piece: int) -> int:
        """A node that comes about at a participant."""
        node = len(self.pieces)
        self.pieces[node] = piece
        self._on[self._ranks[participant]].add(node)
        return node


def _pruned(builder: _Builder, results: Mapping[Share, int]) -> Flow:
    """The flow without merges that nothing needs; those that are left know where they may write."""
    uses: Counter[int] = Counter(results.values())
    needed: list[tuple[Merge, ...]] = []
    for phase in reversed(builder.phases):
        kept = []
        for merge in reversed(phase.merges):
            if uses[merge.node]:
                uses.update((merge.left, merge.right))
                kept.append(merge)
        uses.update(_nodes(phase.sends))
        needed.append(tuple(reversed(kept)))
    remaining, phases = Counter(uses), []
    for phase, merges in zip(builder.phases, reversed(needed), strict=True):
        remaining.subtract(_nodes(phase.sends))
        placed = []
        for merge in merges:
            remaining.subtract((merge.left, merge.right))
            free = (n for n in (merge.left, merge.right) if not remaining[n] and n not in builder.terms)
            placed.append(replace(merge, into=next(free, None)))
        touched = {n for m in merges for n in (m.left, m.right)} | {*_nodes(phase.sends), *_nodes(phase.receives)}
        gone = {n for n in touched if not remaining[n]} - {m.into for m in placed}
        leaving = tuple((node, sender) for node, sender in phase.leaving if uses[node])
        phases.append(Phase(phase.sends, phase.receives, tuple(placed), tuple(sorted(gone)), leaving))
    into = {merge.node: merge.into for phase in phases for merge in phase.merges}
    return Flow(
        tuple(phases),
        builder.pieces,
        {node: participant for node, participant in builder.terms.items() if uses[node]},
        results,
        _places(into, results),
    )


def _places(into: Mapping[int, int | None], results: Mapping[Share, int]) -> dict[int, Share]:
    """The merge in memory of its own with which the memory of a result begins, if there is one."""
    places = {}
    for share, node in results.items():
        while (before := into.get(node)) is not None:
            node = before
        if node in into:
            places[node] = share
    return places


def _nodes(messages: Mapping[int, tuple[Message, ...]]) -> list[int]:
    return [node for group in messages.values() for message in group for node in message]


def _by_phase(schedule: Schedule) -> list[list[tuple[int, int, int, int, bool]]]:
    """Transfers as (src, dst, chunk_lo, chunk_hi, reduce), phase by phase."""
    phases: dict[int, list[tuple[int, int, int, int, bool]]] = defaultdict(list)
    columns = (schedule.src, schedule.dst, schedule.chunk_lo, schedule.chunk_hi, schedule.reduce)
    for phase, *transfer in zip(schedule.phase.tolist(), *(c.tolist() for c in columns), strict=True):
        src, dst, lo, hi, reduce = transfer
        phases[phase].append((src, dst, lo, hi, reduce))
    return [phases[phase] for phase in sorted(phases)]
