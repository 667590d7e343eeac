"""Buffers cut into pieces: as coarse as what touches them allows.

Each participant of a collective has a buffer of `n_chunks` chunks, of which every access touches a range. A buffer is
cut where an access of its own begins or ends, and nowhere else; so an access covers whole pieces, and what is the same
for all chunks of a piece is kept once. 3,000 devices with 3,000 chunks each touch about 110 pieces a device, not 3,000.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Access", "Pieces", "expand_ranges", "pieces", "single_chunks"]

Ids = NDArray[np.int64]

Access = tuple[Ids, Ids, Ids]
"""(participant, lo, hi), one entry per access: it touches chunks lo <= c < hi of the participant's buffer."""

_ROOM = 16  # entries of a table of all places, for each place that is asked for


@dataclass(frozen=True, eq=False)
class Pieces:
    """Pieces in the order of (participant, first chunk); the last of each participant is empty, at chunk n_chunks.

    place: int64[n_pieces], participant * (n_chunks + 1) + first chunk, ascending. table: int32, the piece that holds
    each place; None where that would be too long a list.
    """

    n_chunks: int
    place: Ids
    table: NDArray[np.int32] | None

    @property
    def n_pieces(self) -> int:
        """Number of pieces, the empty ones included."""
        return len(self.place)

    @property
    def participant(self) -> Ids:
        """Whose buffer each piece is of, int64[n_pieces]."""
        return self.place // (self.n_chunks + 1)

    @property
    def first_chunk(self) -> Ids:
        """Where each piece begins, int64[n_pieces]; n_chunks for the empty ones."""
        return self.place % (self.n_chunks + 1)

    def holding(self, participant: Ids, chunk: Ids) -> Ids:
        """The piece that holds a chunk, 0 <= chunk <= n_chunks, elementwise."""
        place = participant * (self.n_chunks + 1) + chunk
        if self.table is not None:
            return np.asarray(self.table[place], np.int64)
        return np.searchsorted(self.place, place, side="right") - 1

    def ranges(self, access: Access) -> tuple[Ids, Ids]:
        """(start, length): each access touches pieces start <= p < start + length."""
        participant, lo, hi = access
        start = self.holding(participant, lo)
        return start, self.holding(participant, hi) - start


def pieces(n_participants: int, n_chunks: int, accesses: Iterable[Access]) -> Pieces:
    """Cut the buffers of all participants such that every one of `accesses` covers whole pieces."""
    ends = np.arange(n_participants) * (n_chunks + 1)
    cuts = [ends, ends + n_chunks]
    for participant, lo, hi in accesses:
        begin = participant * (n_chunks + 1)
        cuts += [begin + lo, begin + hi]
    n_places = n_participants * (n_chunks + 1)
    if n_places > _ROOM * sum(map(len, cuts)):
        return Pieces(n_chunks, np.unique(np.concatenate(cuts)), None)
    is_cut = np.zeros(n_places, np.bool_)
    for places in cuts:
        is_cut[places] = True
    table = np.cumsum(is_cut, dtype=np.int32)
    table -= 1
    return Pieces(n_chunks, np.flatnonzero(is_cut), table)


def single_chunks(n_participants: int, n_chunks: int) -> Pieces:
    """Every chunk a piece."""
    place = np.arange(n_participants * (n_chunks + 1))
    return Pieces(n_chunks, place, place.astype(np.int32))


def expand_ranges(start: Ids, length: Ids) -> Ids:
    """Concatenate start[i], start[i] + 1, ... of `length[i]` entries each."""
    end = np.cumsum(length)
    total = int(end[-1]) if len(end) else 0
    return np.arange(total, dtype=np.int64) + np.repeat(start - end + length, length)
