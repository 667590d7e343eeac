"""32 random bits for every element of a block, by counting: a hash of (seed, global element index).

Elements have the same bits however their tensor is cut. The index is split into that of a row, all dims but the last,
and two parts of that along it; each is hashed in 64 bits (SplitMix64's finaliser: Steele, Lea and Flood 2014), and what
is left for every element is to mix the sum of their words, as the finaliser of MurmurHash3 does (Appleby 2011).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

__all__ = ["Stream", "random_bits"]

Tensor = torch.Tensor
Range = tuple[int, int]

RUN = 256
"""Indices along the last dim that share a hash."""


@dataclass(frozen=True)
class Stream:
    """The tensor whose elements are counted: its full shape, and dims whose cuts lie within so many segments each."""

    full: tuple[int, ...]
    segments: Mapping[int, int] = field(default_factory=dict)


def random_bits(shape: tuple[int, ...], ranges: Mapping[int, Range], stream: Stream, seed: int) -> Tensor:
    """int32 of `shape`, the shape of a block; ranges: dim -> (lo, hi) of the block, in each segment."""
    if not shape:
        return _mixed(_word(torch.zeros((), dtype=torch.int64), seed))
    rows = torch.zeros(shape[:-1], dtype=torch.int64)
    for dim, size in enumerate(stream.full[:-1]):
        along = torch.cat([torch.arange(*part, dtype=torch.int64) for part in _parts(dim, ranges, stream)])
        rows = rows * size + along.view(-1, *[1] * (len(shape) - dim - 2))
    columns = torch.cat([_words_along(*part, seed) for part in _parts(len(shape) - 1, ranges, stream)])
    return _mixed(_word(rows, seed).unsqueeze(-1) + columns)


def _parts(dim: int, ranges: Mapping[int, Range], stream: Stream) -> list[Range]:
    """Global indices of a block along one dim, as ranges."""
    if dim not in ranges:
        return [(0, stream.full[dim])]
    segments = stream.segments.get(dim, 1)
    (lo, hi), size = ranges[dim], stream.full[dim] // segments
    return [(segment * size + lo, segment * size + hi) for segment in range(segments)]


def _words_along(lo: int, hi: int, seed: int) -> Tensor:
    """A word for each index lo <= i < hi: the sum of one for i // RUN and one for i % RUN."""
    first, last = lo // RUN, -(-hi // RUN)
    runs = _word(torch.arange(first, last, dtype=torch.int64), ~seed)
    within = _word(torch.arange(RUN, dtype=torch.int64), seed + 1)
    return (runs[:, None] + within).view(-1)[lo - first * RUN : hi - first * RUN]


def _mixed(word: Tensor) -> Tensor:
    word.mul_(-2048144789)  # 0x85EBCA6B
    word.bitwise_xor_(word >> 13)
    return word.mul_(-1028477387)  # 0xC2B2AE35


def _word(index: Tensor, seed: int) -> Tensor:
    """32 bits for every index, as int32."""
    z = index + _signed(seed * 0x9E3779B97F4A7C15)
    z = (z ^ _shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    return (z ^ _shift_right(z, 31)).to(torch.int32)


def _shift_right(z: Tensor, by: int) -> Tensor:
    return (z >> by) & ((1 << (64 - by)) - 1)


def _signed(bits: int) -> int:
    bits &= (1 << 64) - 1
    return bits - (1 << 64) if bits >> 63 else bits
