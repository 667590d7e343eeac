"""The two motions that all schedules are made of: chunks that rotate around rings, and chunks that follow a tree."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Transfers", "concatenate", "no_transfers", "pipeline", "rotate_gather", "rotate_scatter"]

Ints = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Transfers:
    """Parts of a schedule, unsorted: phase, src, dst, chunk_lo, chunk_hi int32[t]; reduce bool[t].

    tree: int32[t], transfers side by side with one number are a multicast or reduction in the network; None: all alone.
    """

    phase: Ints
    src: Ints
    dst: Ints
    chunk_lo: Ints
    chunk_hi: Ints
    reduce: NDArray[np.bool_]
    tree: Ints | None = None

    @property
    def end_phase(self) -> int:
        """First phase after the last."""
        return int(self.phase.max(initial=-1)) + 1

    def after(self, phases: int) -> "Transfers":
        """Move all transfers `phases` later."""
        return Transfers(
            self.phase + np.int32(phases), self.src, self.dst, self.chunk_lo, self.chunk_hi, self.reduce, self.tree
        )


def rotate_scatter(rings: ArrayLike, chunk_lo: ArrayLike, chunk_hi: ArrayLike) -> Transfers:
    """Reduce-scatter around rings: n - 1 phases in which everyone sends one range to the next.

    rings: participants in ring order, int[n_rings, n]; all rings run at once. chunk_lo, chunk_hi: [n_rings, n], the
    range that each of them owns at the end. In phase p place k passes on the range of place k - 1 - p, to which p
    others have contributed by then.
    """
    return _rotate(rings, chunk_lo, chunk_hi, shift=1, reduce=True)


def rotate_gather(rings: ArrayLike, chunk_lo: ArrayLike, chunk_hi: ArrayLike) -> Transfers:
    """All-gather around rings: in phase p place k passes on the range that place k - p owned at the start."""
    return _rotate(rings, chunk_lo, chunk_hi, shift=0, reduce=False)


def _rotate(rings: ArrayLike, chunk_lo: ArrayLike, chunk_hi: ArrayLike, *, shift: int, reduce: bool) -> Transfers:
    """Transfers of a phase stand in the order of who sends, not ring after ring: so neighbours on the mesh, which act
    at one time, are neighbours in memory. Columns of 3,000 devices are timed a sixth faster.
    """
    ring, lo, hi = (np.asarray(array, np.int32) for array in (rings, chunk_lo, chunk_hi))
    n_rings, n = ring.shape
    phase = np.arange(n - 1, dtype=np.int32)
    owner = (np.arange(n) - shift - phase[:, None]) % n
    by_sender = np.argsort(ring, axis=None)
    shape = (n - 1, n_rings * n)
    return Transfers(
        np.broadcast_to(phase[:, None], shape).ravel(),
        np.broadcast_to(ring.ravel()[by_sender], shape).ravel(),
        np.broadcast_to(np.roll(ring, -1, axis=1).ravel()[by_sender], shape).ravel(),
        lo[:, owner].swapaxes(0, 1).reshape(shape)[:, by_sender].ravel(),
        hi[:, owner].swapaxes(0, 1).reshape(shape)[:, by_sender].ravel(),
        np.full(int(np.prod(shape)), reduce),
    )


def pipeline(src: ArrayLike, dst: ArrayLike, stage: ArrayLike, n_chunks: int, *, reduce: bool) -> Transfers:
    """Every edge src -> dst carries all chunks, one per phase: chunk c crosses an edge of stage s in phase s + c.

    src, dst, stage: int[n_edges]; an edge's stage is above those of all edges that feed its source.
    """
    source, target, at = (np.asarray(array, np.int32) for array in (src, dst, stage))
    chunk = np.arange(n_chunks, dtype=np.int32)[:, None]
    shape = (n_chunks, len(source))
    lo = np.broadcast_to(chunk, shape).ravel()
    return Transfers(
        (at + chunk).ravel(),
        np.broadcast_to(source, shape).ravel(),
        np.broadcast_to(target, shape).ravel(),
        lo,
        lo + np.int32(1),
        np.full(len(lo), reduce),
    )


def concatenate(parts: Sequence[Transfers]) -> Transfers:
    """All transfers of several parts, all with trees or all without."""
    fields = ("phase", "src", "dst", "chunk_lo", "chunk_hi", "reduce")
    numbered, before = [], 0
    for part in parts:
        if part.tree is not None:
            numbered.append(part.tree + np.int32(before))
            before += int(part.tree.max(initial=-1)) + 1
    tree = np.concatenate(numbered) if numbered else None
    phase, src, dst, lo, hi, reduce = (np.concatenate([getattr(part, field) for part in parts]) for field in fields)
    return Transfers(phase, src, dst, lo, hi, reduce, tree)


def no_transfers() -> Transfers:
    """Nothing to do, e.g. for a group of one."""
    empty = np.empty(0, np.int32)
    return Transfers(empty, empty, empty, empty, empty, np.empty(0, bool))
