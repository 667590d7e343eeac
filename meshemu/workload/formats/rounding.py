"""Round numbers to a format, to nearest even or stochastically (`kernels` says how)."""

from collections.abc import Mapping
from functools import cache
from math import inf
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray

from meshemu.hardware.number_formats import NumberFormat
from meshemu.workload.formats import kernels
from meshemu.workload.formats.random_bits import Counted

__all__ = ["NATIVE", "layout_of", "round_to", "words_of"]

Tensor = torch.Tensor
Int32Array = NDArray[np.int32]

NATIVE: Mapping[str, torch.dtype] = MappingProxyType({
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
})  # fmt: skip

FRACTION_BITS, FP32_BIAS = 23, 127

CHUNK = 1 << 15
"""Elements for which random bits are made at once: they stay in the cache."""


def round_to(
    x: Tensor, number_format: NumberFormat, bias: int | None = None, random: Tensor | Counted | None = None
) -> Tensor:
    """`x` with every element rounded to a number of the format, as a new tensor of the same shape.

    x: fp32, any shape. bias: needed where the format has several. random: for stochastic rounding, int32 of the shape
    of x with 32 random bits each, or what they are counted from; without it ties go to even.

    Zeros and what underflows keep their sign. What is too large becomes the largest number, and so does NaN, or, in a
    format with specials, an infinity (NaN stays). An unsigned format has 0 for what is negative; one without denormals
    for what is smaller than its smallest normal number after rounding.
    """
    if random is None and number_format.name in NATIVE:
        return x.to(NATIVE[number_format.name]).to(x.dtype)
    if number_format.mantissa_bits == FRACTION_BITS:
        return x.clone()
    layout, words = layout_of(number_format, bias), words_of(x)
    out = np.empty(len(words), np.float32)
    match random:
        case None:
            kernels.rounded_nearest(words, out, layout)
        case Counted():
            _rounded_counted(words, random, out, layout)
        case _:
            kernels.rounded_with(words, random.reshape(-1).numpy(), out, layout)
    return torch.from_numpy(out).view(x.shape)


def _rounded_counted(words: Int32Array, random: Counted, out: NDArray[np.float32], layout: Int32Array) -> None:
    """Row after row, several short ones or a part of a long one at once."""
    n = len(random.columns)
    n_rows, n_columns = max(1, CHUNK // max(n, 1)), min(n, CHUNK)
    scratch = np.empty(n_columns * min(n_rows, len(random.rows)), np.int32)
    for row in range(0, len(random.rows), n_rows):
        rows = random.rows[row : row + n_rows]
        for column in range(0, n, CHUNK):
            columns = random.columns[column : column + CHUNK]
            begin, size = row * n + column, len(rows) * len(columns)
            bits, here = scratch[:size], slice(begin, begin + size)
            kernels.random_words(rows, random.seed, columns, bits)
            kernels.rounded_with(words[here], bits, out[here], layout)


def words_of(x: Tensor) -> Int32Array:
    """The bits of fp32 numbers, one after the other. Raises AssertionError for another dtype."""
    if x.dtype != torch.float32:
        raise AssertionError(f"only fp32 is rounded, not {x.dtype}")
    found: Int32Array = x.detach().numpy().reshape(-1).view(np.int32)
    return found


@cache
def layout_of(number_format: NumberFormat, bias: int | None) -> Int32Array:
    """What the kernels need to know of a format (their STEP, LEAST, ...). bias: None for the only one that there is."""
    if bias is None:
        if not number_format.fixed:
            raise AssertionError(f"{number_format.name} has several biases")
        bias = number_format.biases[0]
    p, top = number_format.mantissa_bits, number_format.largest(bias)
    cut = bias == FP32_BIAS  # the unit of its denormals is no normal number of fp32
    beyond = 2.0 ** (number_format.top_field - bias + 1) if number_format.specials and not cut else top
    layout = np.zeros(kernels.FIELDS, np.uint32)  # differences of bits wrap around
    layout[kernels.STEP] = p << FRACTION_BITS
    layout[kernels.LEAST] = (1 - bias + FP32_BIAS) << FRACTION_BITS
    layout[kernels.SCALE] = (2 * FP32_BIAS + p) << FRACTION_BITS & 0xFFFFFFFF
    numbers = np.array([beyond, top, inf if number_format.specials else top], np.float32)
    layout[[kernels.BOUND, kernels.TOP, kernels.OVER]] = numbers.view(np.uint32)
    layout[kernels.SIGNED] = number_format.signed
    layout[kernels.DENORMALS] = number_format.denormals
    layout[kernels.SPECIALS] = number_format.specials
    layout[kernels.BITS] = number_format.bits
    layout[kernels.CUT] = cut
    layout[kernels.ODD] = number_format.specials or not (number_format.signed and number_format.denormals)
    return layout.view(np.int32)
