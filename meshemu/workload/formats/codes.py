"""Codes of a number format and the numbers that they stand for."""

import numpy as np
import torch

from meshemu.hardware.number_formats import NumberFormat
from meshemu.workload.formats import kernels
from meshemu.workload.formats.rounding import NATIVE, layout_of, round_to, words_of

__all__ = ["decode", "encode"]

Tensor = torch.Tensor

CODES = {8: torch.uint8, 16: torch.int32, 32: torch.int64}
"""Bits of a code -> dtype that has room for it without a sign."""


def encode(x: Tensor, number_format: NumberFormat, bias: int | None = None, random: Tensor | None = None) -> Tensor:
    """The code of every element of `x`, fp32, rounded as `round_to` does: uint8 for 8 bits, int32 for 16, int64 for 32.

    Codes have the sign in their highest bit, then the exponent, then the mantissa. random: int32 of the shape of x.
    """
    dtype = CODES[number_format.bits]
    if number_format.name in NATIVE:
        native = x.detach() if random is None else round_to(x, number_format, bias, random)
        integer, unsigned = (torch.int32, np.uint32) if number_format.bits == 32 else (torch.int16, np.uint16)
        bits = native.to(NATIVE[number_format.name]).view(integer).numpy().view(unsigned)
        return torch.from_numpy(bits.astype(np.int64 if number_format.bits == 32 else np.int32))
    layout, words = layout_of(number_format, bias), words_of(x)
    codes = np.empty(len(words), np.uint8 if dtype == torch.uint8 else np.int32)
    if random is None:
        kernels.encoded_nearest(words, codes, layout)
    else:
        kernels.encoded_with(words, random.reshape(-1).numpy(), codes, layout)
    return torch.from_numpy(codes).view(x.shape)


def decode(codes: Tensor, number_format: NumberFormat, bias: int | None = None) -> Tensor:
    """The numbers that codes stand for, in fp32, which has all of them."""
    if number_format.name in NATIVE:
        integer = torch.int32 if number_format.bits == 32 else torch.int16
        return codes.to(integer).view(NATIVE[number_format.name]).float()
    given = codes.numpy().reshape(-1)
    numbers = np.empty(len(given), np.float32)
    kernels.decoded(given, numbers, layout_of(number_format, bias))
    return torch.from_numpy(numbers).view(codes.shape)
