"""Codes of a number format and the numbers that they stand for."""

from functools import cache

import torch

from meshemu.hardware.number_formats import NumberFormat
from meshemu.workload.formats.rounding import NATIVE, round_to

__all__ = ["decode", "encode"]

Tensor = torch.Tensor

BYTE = 8
STICKY = 0xFFFF
"""The half of an fp32 number that bf16 cuts off."""
CHUNK = 1 << 16


def encode(x: Tensor, number_format: NumberFormat, bias: int | None = None, random: Tensor | None = None) -> Tensor:
    """The code of every element of `x`, rounded as `round_to` does: uint8 for 8 bits, int32 for 16, int64 for 32.

    Codes have the sign in their highest bit, then the exponent, then the mantissa.
    """
    bias = number_format.biases[0] if bias is None else bias
    if number_format.bits == BYTE and random is None and x.dtype == torch.float32:
        return _looked_up(x, _code_table(number_format, bias))
    return _assembled(round_to(x, number_format, bias, random), number_format, bias)


def decode(codes: Tensor, number_format: NumberFormat, bias: int | None = None) -> Tensor:
    """The numbers that codes stand for, in fp32, which has all of them."""
    bias = number_format.biases[0] if bias is None else bias
    if number_format.bits == BYTE:
        numbers = torch.index_select(_number_table(number_format, bias), 0, codes.reshape(-1).int())
        return numbers.view(codes.shape)
    return _numbers(codes, number_format, bias)


def _assembled(y: Tensor, number_format: NumberFormat, bias: int) -> Tensor:
    """Codes of numbers that the format has."""
    if number_format.name in NATIVE:
        integer = torch.int32 if number_format.bits == 32 else torch.int16
        code = y.to(NATIVE[number_format.name]).view(integer).to(torch.int64) & ((1 << number_format.bits) - 1)
    else:
        p = number_format.mantissa_bits
        fraction, exponent = torch.frexp(y.abs().double())  # fraction in [1/2, 1)
        field = (exponent + (bias - 1)).clamp(min=1)  # of a denormal: 1, whose unit it shares
        field = torch.where(fraction == 0, torch.ones_like(field), field).to(torch.int64)
        units = torch.ldexp(y.abs().double(), p + bias - field).to(torch.int64)
        code = ((field - 1) << p) + units
        if number_format.signed:
            code |= y.signbit().to(torch.int64) << (number_format.bits - 1)
    return code.to({8: torch.uint8, 16: torch.int32, 32: torch.int64}[number_format.bits])


def _numbers(codes: Tensor, number_format: NumberFormat, bias: int) -> Tensor:
    code = codes.to(torch.int64)
    if number_format.name in NATIVE:
        integer = torch.int32 if number_format.bits == 32 else torch.int16
        return code.to(integer).view(NATIVE[number_format.name]).float()
    p = number_format.mantissa_bits
    magnitude = code & ((1 << (number_format.bits - int(number_format.signed))) - 1)
    field, mantissa = magnitude >> p, magnitude & ((1 << p) - 1)
    units = mantissa + ((field > 0).to(torch.int64) << p)
    if not number_format.denormals:
        units = torch.where(field == 0, torch.zeros_like(units), units)
    numbers = torch.ldexp(units.double(), field.clamp(min=1) - bias - p)
    if number_format.signed:
        numbers = torch.where((code >> (number_format.bits - 1)) & 1 == 1, -numbers, numbers)
    return numbers.float()


def _looked_up(x: Tensor, table: Tensor) -> Tensor:
    """table[upper half of each fp32 number], whose last bit is set if the lower half is not zero: rounded to odd.

    That is enough to round to at most 6 significant bits as if from the number itself (Boldo and Melquiond 2008).
    """
    codes = torch.empty(x.shape, dtype=table.dtype)
    scratch = torch.empty(CHUNK, dtype=torch.int32)
    mask = torch.tensor(STICKY, dtype=torch.int32)
    chunks = torch.split(x.reshape(-1).view(torch.int32), CHUNK), torch.split(codes.view(-1), CHUNK)
    for words, chunk in zip(*chunks, strict=True):
        index = scratch[: len(words)]
        torch.bitwise_and(words, mask, out=index)
        index.add_(STICKY).bitwise_or_(words).bitwise_right_shift_(16).bitwise_and_(mask)
        torch.index_select(table, 0, index, out=chunk)
    return codes


@cache
def _code_table(number_format: NumberFormat, bias: int) -> Tensor:
    """Code of every number of 16 bits that is the upper half of an fp32 number."""
    halves = torch.arange(1 << 16, dtype=torch.int64)
    numbers = (halves << 16).to(torch.int32).view(torch.float32)
    return _assembled(round_to(numbers, number_format, bias), number_format, bias)


@cache
def _number_table(number_format: NumberFormat, bias: int) -> Tensor:
    """Number of every code."""
    return _numbers(torch.arange(1 << number_format.bits), number_format, bias)
