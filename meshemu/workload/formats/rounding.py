"""Round numbers to a format, to nearest even or stochastically, without leaving the tensor's own dtype.

Both ways work in units of the last place. Its size is a power of two that the exponent of the number gives, and at
least that of denormals. To nearest: adding and subtracting 1.5 * 2**f units, f fraction bits of the dtype, leaves whole
units, ties to even (Hauser 1996). Stochastic: the number in units, plus a random fraction of as many bits as are cut
off, rounded down; the chance to go up is then exactly the fraction that is cut off.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from types import MappingProxyType

import torch

from meshemu.hardware.number_formats import NumberFormat

__all__ = ["RANDOM_BITS", "round_to"]

Tensor = torch.Tensor

RANDOM_BITS = 32
"""Of one random number."""

CHUNK = 1 << 16
"""Elements that are worked on at once: all intermediate results stay in the cache."""

NATIVE: Mapping[str, torch.dtype] = MappingProxyType({
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
})  # fmt: skip


@dataclass(frozen=True)
class _Words:
    """How a dtype is laid out: the integer dtype of its size, its fraction bits, its bias, the mask of its exponent."""

    integer: torch.dtype
    fraction_bits: int
    bias: int

    @property
    def exponent_mask(self) -> int:
        return (2 * self.bias + 1) << self.fraction_bits

    def field(self, exponent: int) -> int:
        """The bits of 2**exponent."""
        return (exponent + self.bias) << self.fraction_bits


_WORDS: Mapping[torch.dtype, _Words] = MappingProxyType({
    torch.float32: _Words(torch.int32, 23, 127), torch.float64: _Words(torch.int64, 52, 1023),
})  # fmt: skip


def round_to(x: Tensor, number_format: NumberFormat, bias: int | None = None, random: Tensor | None = None) -> Tensor:
    """`x` with every element rounded to a number of the format, as a tensor of the same shape and dtype.

    x: fp32 or fp64, any shape; it is left as it is. bias: needed where the format has several. random: int32 of the
    shape of x, 32 random bits each, for stochastic rounding; without it ties go to even.

    Zeros and what underflows keep their sign. What is too large becomes the largest number, and so does NaN, or, in a
    format with specials, an infinity (NaN stays). An unsigned format has 0 for what is negative; one without denormals
    for what is smaller than its smallest normal number after rounding.
    """
    if random is None and x.dtype == torch.float32 and number_format.name in NATIVE:
        return x.to(NATIVE[number_format.name]).to(x.dtype)
    bias = number_format.biases[0] if bias is None and number_format.fixed else bias
    if bias is None or x.dtype not in _WORDS:
        raise AssertionError(f"{number_format.name} with bias {bias} of {x.dtype}")
    words = _WORDS[x.dtype]
    if number_format.mantissa_bits >= words.fraction_bits:
        return x.clone()
    if bias == words.bias and random is not None:
        return _cut_off(x, random.reshape(x.shape), words.fraction_bits - number_format.mantissa_bits)
    out = torch.empty(x.shape, dtype=x.dtype)
    chunks = _chunks(x, out)
    if random is None:
        _to_nearest(chunks, number_format, bias, words)
    else:
        _stochastic(zip(chunks, torch.split(random.reshape(-1), CHUNK), strict=True), number_format, bias, words)
    return _finished(out, number_format, bias)


def _chunks(x: Tensor, out: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(x.reshape(-1), CHUNK), torch.split(out.view(-1), CHUNK), strict=True)


def _bounds(number_format: NumberFormat, bias: int) -> tuple[float, float]:
    """What numbers are clamped to before they are rounded: a format with specials still has to see an overflow."""
    top = number_format.largest(bias)
    bound = 2.0 ** (number_format.top_field - bias + 1) if number_format.specials else top
    return (-bound if number_format.signed else 0.0), bound


def _to_nearest(chunks: Iterator[tuple[Tensor, Tensor]], number_format: NumberFormat, bias: int, words: _Words) -> None:
    low, high = _bounds(number_format, bias)
    magic = 1.5 * 2.0 ** (words.fraction_bits - number_format.mantissa_bits)
    scratch = torch.empty(CHUNK, dtype=words.integer)
    mask = torch.tensor(words.exponent_mask, dtype=words.integer)
    for x, y in chunks:
        field = scratch[: len(x)]
        power = field.view(x.dtype)
        torch.clamp(x, low, high, out=y)
        torch.bitwise_and(y.view(words.integer), mask, out=field)
        field.clamp_(min=words.field(1 - bias))
        y.add_(power, alpha=magic).sub_(power, alpha=magic)
        if number_format.signed:
            y.copysign_(x)


def _stochastic(
    chunks: Iterator[tuple[tuple[Tensor, Tensor], Tensor]], number_format: NumberFormat, bias: int, words: _Words
) -> None:
    low, high = _bounds(number_format, bias)
    n_bits = min(words.fraction_bits - number_format.mantissa_bits, RANDOM_BITS)
    shift = number_format.mantissa_bits << words.fraction_bits
    scratch = torch.empty(CHUNK, dtype=words.integer)
    fractions = torch.empty(CHUNK, dtype=torch.int64 if n_bits == RANDOM_BITS else torch.int32)
    mask = torch.tensor(words.exponent_mask, dtype=words.integer)
    for (x, y), random in chunks:
        field, fraction = scratch[: len(x)], fractions[: len(x)]
        unit = field.view(x.dtype)
        torch.clamp(x, low, high, out=y)
        torch.bitwise_and(y.view(words.integer), mask, out=field)
        field.clamp_(min=words.field(1 - bias)).sub_(shift)
        fraction.copy_(random).bitwise_right_shift_(RANDOM_BITS - n_bits).bitwise_and_((1 << n_bits) - 1)
        y.div_(unit).add_(fraction, alpha=2.0**-n_bits).floor_().mul_(unit)
        if number_format.signed:
            y.copysign_(x)


def _cut_off(x: Tensor, random: Tensor, n_bits: int) -> Tensor:
    """fp32 rounded stochastically to a format of the same exponents: a random number is added to the bits cut off."""
    mask = (1 << n_bits) - 1
    fraction = (random >> (RANDOM_BITS - n_bits)).bitwise_and_(mask)
    rounded = fraction.add_(x.contiguous().view(torch.int32)).bitwise_and_(~mask).view(x.dtype)
    return torch.where(x.isfinite(), rounded, x)


def _finished(y: Tensor, number_format: NumberFormat, bias: int) -> Tensor:
    """What does not fit, NaN and the numbers below the smallest normal one as the format has them."""
    top = number_format.largest(bias)
    if number_format.specials:
        y = torch.where(y.abs() > top, torch.full_like(y, inf).copysign_(y), y)
    elif bool(y.sum().isnan()):
        y.nan_to_num_(nan=top)
    if not number_format.denormals:
        y[y < number_format.smallest_normal(bias)] = 0.0
    return y
