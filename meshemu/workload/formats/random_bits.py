"""32 random bits for every element of a block, by counting: a hash of (seed, global element index).

Elements have the same bits however their tensor is cut. The index is split into that of a row, all dims but the last,
and two parts of that along it; each is hashed in 64 bits (SplitMix64's finaliser: Steele, Lea and Flood 2014), and what
is left for every element is to mix the sum of their words, as the finaliser of MurmurHash3 does (Appleby 2011).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from meshemu.workload.formats import kernels

__all__ = ["Counted", "Stream", "counted", "random_bits"]

Range = tuple[int, int]

GOLDEN = 0x9E3779B97F4A7C15
"""SplitMix64's increment."""


@dataclass(frozen=True)
class Stream:
    """The tensor whose elements are counted: its full shape, and dims whose cuts lie within so many segments each."""

    full: tuple[int, ...]
    segments: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Counted:
    """What the random bits of a block are made of, element by element (`kernels.random_words`).

    rows: int64, the global index of every row; seed: what they are hashed with, as int64; columns: int32, a word for
    each index along the last dim.
    """

    rows: NDArray[np.int64]
    seed: int
    columns: NDArray[np.int32]


def counted(shape: tuple[int, ...], ranges: Mapping[int, Range], stream: Stream, seed: int) -> Counted:
    """Of a block of `shape`; ranges: dim -> (lo, hi) of the block, in each segment."""
    if not shape:
        return Counted(np.zeros(1, np.int64), _increment(seed), np.zeros(1, np.int32))
    rows = np.zeros(1, np.int64)
    for dim, size in enumerate(stream.full[:-1]):
        along = np.concatenate([np.arange(lo, hi) for lo, hi in _parts(dim, ranges, stream)])
        rows = (rows[:, None] * size + along).reshape(-1)
    columns = np.empty(shape[-1], np.int32)
    parts = np.array(_parts(len(shape) - 1, ranges, stream))
    kernels.column_words(parts, _increment(~seed), _increment(seed + 1), np.empty(kernels.RUN, np.int32), columns)
    return Counted(rows, _increment(seed), columns)


def random_bits(shape: tuple[int, ...], ranges: Mapping[int, Range], stream: Stream, seed: int) -> torch.Tensor:
    """int32 of `shape`, as `counted` counts them."""
    made, out = counted(shape, ranges, stream, seed), torch.empty(shape, dtype=torch.int32)
    kernels.random_words(made.rows, made.seed, made.columns, out.view(-1).numpy())
    return out


def _parts(dim: int, ranges: Mapping[int, Range], stream: Stream) -> list[Range]:
    """Global indices of a block along one dim, as ranges."""
    if dim not in ranges:
        return [(0, stream.full[dim])]
    segments = stream.segments.get(dim, 1)
    (lo, hi), size = ranges[dim], stream.full[dim] // segments
    return [(segment * size + lo, segment * size + hi) for segment in range(segments)]


def _increment(seed: int) -> int:
    """What a seed adds to indices before they are hashed, modulo 2**64, as int64."""
    bits = seed * GOLDEN & (1 << 64) - 1
    return bits - (1 << 64) if bits >> 63 else bits
