"""Random numbers of one block: a hash of (seed, global element index), so no matter how a tensor is cut.

The hash is SplitMix64's finaliser (Steele, Lea and Flood 2014) over index and seed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log, pi

import torch

__all__ = [
    "Stream", "bernoulli", "cauchy", "dropout", "exponential", "geometric", "integers", "leaky", "log_normal", "normal",
    "permutation", "uniform",
]  # fmt: skip

Tensor = torch.Tensor
Range = tuple[int, int]
BITS = 53
"""Of a random fraction: all that a double holds."""


@dataclass(frozen=True)
class Stream:
    """Whose numbers are drawn: full: shape of the whole tensor; dtype: of the result."""

    full: tuple[int, ...]
    dtype: torch.dtype


def _bits(shape: tuple[int, ...], ranges: Mapping[int, Range], full: tuple[int, ...], seed: int, draw: int) -> Tensor:
    """63 random bits for every element of a block; ranges: dim -> (lo, hi) of the block; draw: which of several."""
    index = torch.zeros(shape, dtype=torch.int64)
    stride = 1
    for dim in reversed(range(len(full))):
        lo = ranges.get(dim, (0, 0))[0]
        along = (torch.arange(shape[dim], dtype=torch.int64) + lo) * stride
        index += along.view(-1, *[1] * (len(full) - dim - 1))
        stride *= full[dim]
    seed += draw * 0xBF58476D1CE4E5B9
    return _shift_right(_mix(_mix(index + _signed(seed)) ^ _signed(seed * 0x9E3779B97F4A7C15)), 1)


def _fractions(
    shape: tuple[int, ...], ranges: Mapping[int, Range], full: tuple[int, ...], seed: int, draw: int = 0
) -> Tensor:
    """Numbers in [0, 1) as doubles."""
    return (_bits(shape, ranges, full, seed, draw) >> (63 - BITS)).to(torch.float64) * 2.0**-BITS


def uniform(
    shape: tuple[int, ...], ranges: Mapping[int, Range], stream: Stream, seed: int, low: float = 0.0, high: float = 1.0
) -> Tensor:
    """Uniform numbers in [low, high)."""
    drawn = (_fractions(shape, ranges, stream.full, seed) * (high - low) + low).to(stream.dtype)
    below = torch.nextafter(torch.tensor(high, dtype=stream.dtype), torch.tensor(low, dtype=stream.dtype))
    return torch.where(drawn < high, drawn, below) if high > low else drawn


def normal(
    shape: tuple[int, ...], ranges: Mapping[int, Range], stream: Stream, seed: int,
    mean: float | Tensor = 0.0, deviation: float | Tensor = 1.0,
) -> Tensor:  # fmt: skip
    """Normal numbers (Box and Muller 1958)."""
    radius = (-2 * torch.log1p(-_fractions(shape, ranges, stream.full, seed))).sqrt()
    angle = 2 * pi * _fractions(shape, ranges, stream.full, seed, 1)
    return (radius * angle.cos() * deviation + mean).to(stream.dtype)


def log_normal(
    shape: tuple[int, ...], ranges: Mapping[int, Range], stream: Stream, seed: int, mean: float, deviation: float
) -> Tensor:
    """Exponentials of normal numbers."""
    wide = Stream(stream.full, torch.float64)
    return normal(shape, ranges, wide, seed, mean, deviation).exp().to(stream.dtype)


def exponential(
    shape: tuple[int, ...], ranges: Mapping[int, Range], stream: Stream, seed: int, rate: float = 1.0
) -> Tensor:
    """Exponential numbers, greater than zero."""
    drawn = -torch.log1p(-_fractions(shape, ranges, stream.full, seed)) / rate
    return drawn.clamp(min=2.0**-BITS / rate).to(stream.dtype)


def cauchy(
    shape: tuple[int, ...], ranges: Mapping[int, Range], stream: Stream, seed: int, median: float, width: float
) -> Tensor:
    """Cauchy numbers."""
    return (torch.tan(pi * (_fractions(shape, ranges, stream.full, seed) - 0.5)) * width + median).to(stream.dtype)


def geometric(shape: tuple[int, ...], ranges: Mapping[int, Range], stream: Stream, seed: int, p: float) -> Tensor:
    """How many trials of probability p until the first success."""
    if p == 1:
        return torch.ones(shape, dtype=stream.dtype)
    failures = torch.log1p(-_fractions(shape, ranges, stream.full, seed)) / log(1 - p)
    return (failures.floor() + 1).to(stream.dtype)


def integers(
    shape: tuple[int, ...], ranges: Mapping[int, Range], stream: Stream, seed: int, low: int, high: int
) -> Tensor:
    """Whole numbers low <= n < high."""
    return (_bits(shape, ranges, stream.full, seed, 0) % (high - low) + low).to(stream.dtype)


def permutation(n: int, stream: Stream, seed: int) -> Tensor:
    """The numbers below n in random order."""
    return torch.argsort(_bits((n,), {}, (n,), seed, 0), stable=True).to(stream.dtype)


def bernoulli(
    shape: tuple[int, ...], ranges: Mapping[int, Range], stream: Stream, seed: int, p: float | Tensor
) -> Tensor:
    """Ones with probability p (a number, or one for each element)."""
    return (_fractions(shape, ranges, stream.full, seed) < p).to(stream.dtype)


def dropout(x: Tensor, p: float, ranges: Mapping[int, Range], stream: Stream, seed: int) -> tuple[Tensor, Tensor]:
    """(x masked and scaled by 1 / (1 - p), mask)."""
    mask = _fractions(tuple(x.shape), ranges, stream.full, seed) >= p
    scale = 0.0 if p == 1 else 1 / (1 - p)
    return x * mask * scale, mask


def leaky(
    x: Tensor, ranges: Mapping[int, Range], stream: Stream, seed: int, lower: float, upper: float
) -> tuple[Tensor, Tensor]:
    """(x with negative elements times a random slope, slopes): the randomised leaky rectifier; 1 elsewhere."""
    slopes = uniform(tuple(x.shape), ranges, stream, seed, lower, upper)
    slopes = torch.where(x <= 0, slopes, torch.ones_like(slopes))
    return x * slopes, slopes


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, by: int) -> Tensor:
    return (z >> by) & ((1 << (64 - by)) - 1)


def _signed(bits: int) -> int:
    bits &= (1 << 64) - 1
    return bits - (1 << 64) if bits >> 63 else bits
