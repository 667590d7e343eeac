"""Compiled loops over the bits of fp32 numbers: rounding, codes, the numbers of codes, random bits.

A number's magnitude is taken in units of the last place that the format has there; the unit follows from the exponent
and is at least that of denormals. To nearest: adding and subtracting 1.5 * 2**23 leaves whole units, ties to even
(Hauser 1996). Stochastic: a random fraction of as many bits as are cut off is added, and the fraction of the sum cut
off, so that the chance to go up is the fraction that was there.

Every element takes the same operations of 32 bits, so that the compiler makes one pass of vector instructions of it.
What only some formats need (`CUT`, `ODD`) is in loops of its own.
"""

from typing import Any

from numba import types
from numba.extending import intrinsic, overload
from numpy import float32, int32, uint32, uint64
from numpy.typing import NDArray

from meshemu.network.compiled import compiled, kernel

__all__ = [
    "BITS",
    "BOUND",
    "CUT",
    "DENORMALS",
    "FIELDS",
    "LEAST",
    "ODD",
    "OVER",
    "RUN",
    "SCALE",
    "SIGNED",
    "SPECIALS",
    "STEP",
    "TOP",
    "column_words",
    "decoded",
    "encoded_nearest",
    "encoded_with",
    "random_words",
    "rounded_nearest",
    "rounded_with",
]

Array = NDArray[Any]
Layout = tuple[Any, ...]
Word = Any
"""int32: numba computes with what numpy has for it."""

STEP, LEAST, SCALE, BOUND, TOP, OVER, SIGNED, DENORMALS, SPECIALS, BITS, CUT, ODD = range(12)
"""Places in the layout of a format, int32[FIELDS]; the first six are bits of fp32 numbers.

STEP: mantissa bits, as an exponent. LEAST: exponent of the smallest normal number. SCALE: less an exponent, what turns
a number into units. BOUND: numbers are clamped to it. TOP: the largest number; OVER: what is beyond it. SIGNED,
DENORMALS, SPECIALS: 0 or 1. BITS: of a code. CUT: 1 where the format has fp32's exponents, so that bits can simply be
cut off. ODD: 1 where it lacks a sign or denormals, or has specials.
"""

FIELDS = 12

MAGNITUDE, SIGN, EXPONENT = 0x7FFFFFFF, -(1 << 31), 0x7F800000
FRACTION_BITS, BIAS = 23, 127
WHOLE = 0x4B400000
"""Bits of 1.5 * 2**23."""

FIRST_FACTOR, SECOND_FACTOR = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # SplitMix64: Steele, Lea and Flood 2014
FIRST_MIXER, SECOND_MIXER = -2048144789, -1028477387  # 0x85EBCA6B, 0xC2B2AE35: MurmurHash3, Appleby 2011

RUN_BITS = 8
RUN = 1 << RUN_BITS
"""Indices along the last dim that share a hash."""


def _number(bits: Word) -> Any:
    """The fp32 number that has these bits, int32."""
    return int32(bits).view(float32)


def _typed_bitcast(_context: Any, _bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return types.float32(types.int32), generate


_bitcast: Any = intrinsic(_typed_bitcast)


@overload(_number, strict=False)
def _compiled_number(bits: Any) -> Any:
    return lambda bits: _bitcast(int32(bits))


@compiled
def _fields(layout: Array) -> Layout:
    """A layout in registers."""
    return (
        layout[0], layout[1], layout[2], layout[3], layout[4], layout[5], layout[6], layout[7], layout[8], layout[9],
        layout[10], layout[11],
    )  # fmt: skip


@compiled
def _units(word: Word, layout: Layout) -> Any:
    """(the magnitude of a number in units, the exponent that the unit follows from)."""
    magnitude = int32(word & MAGNITUDE)
    clamped = magnitude if magnitude < layout[BOUND] else layout[BOUND]
    exponent = int32(clamped & EXPONENT)
    field = exponent if exponent > layout[LEAST] else layout[LEAST]
    return _number(clamped) * _number(int32(layout[SCALE] - field)), field


@compiled
def _nearest(units: Any) -> Any:
    """Whole units, ties to even."""
    whole = _number(WHOLE)
    return (units + whole) - whole


@compiled
def _stochastic(units: Any, random: Word, layout: Layout) -> Any:
    """Whole units: the fraction goes up where it carries when the upper bits of `random` are added."""
    n_bits = int32(FRACTION_BITS - (layout[STEP] >> FRACTION_BITS))
    fraction = float32(int32(uint32(random) >> uint32(32 - n_bits))) * _number(int32((BIAS - n_bits) << FRACTION_BITS))
    return float32(int32(units + fraction))


@compiled
def _sign(word: Word) -> Word:
    """The sign bit; NaN has none."""
    return int32(word & SIGN) if int32(word & MAGNITUDE) <= int32(EXPONENT) else int32(0)


@compiled
def _value(word: Word, whole: Any, field: Word, layout: Layout) -> Any:
    """The number that so many units are, with the sign of `word`."""
    value = whole * _number(int32(field - layout[STEP]))
    return -value if _sign(word) != 0 else value


@compiled
def _odd_value(word: Word, whole: Any, field: Word, layout: Layout) -> Any:
    """The same for a format that is ODD."""
    value = whole * _number(int32(field - layout[STEP]))
    value = value if value <= _number(layout[TOP]) else _number(layout[OVER])
    value = value if (layout[DENORMALS] != 0) | (value >= _number(layout[LEAST])) else float32(0)
    negative = _sign(word) != 0
    value = float32(0) if negative & (layout[SIGNED] == 0) else value
    value = -value if negative & (layout[SIGNED] != 0) else value
    is_nan = int32(word & MAGNITUDE) > int32(EXPONENT)
    return _number(word) if is_nan & (layout[SPECIALS] != 0) else value


@compiled
def _cut_off(word: Word, random: Word, layout: Layout) -> Any:
    """A number with random bits added to those that are cut off; infinities and NaN as they are."""
    n_bits = int32(FRACTION_BITS - (layout[STEP] >> FRACTION_BITS))
    added = int32(word + int32(uint32(random) >> uint32(32 - n_bits)))
    finite = int32(word & EXPONENT) != int32(EXPONENT)
    return _number(int32(added & int32(SIGN >> int32(31 - n_bits))) if finite else word)


@compiled
def _code(word: Word, whole: Any, field: Word, layout: Layout) -> Word:
    """The code of a number of a format without specials: exponent and mantissa together count units up."""
    bits = int32(layout[STEP] >> FRACTION_BITS)
    code = int32((int32(field - layout[LEAST]) >> int32(FRACTION_BITS - bits)) + int32(whole))
    code = code if (layout[DENORMALS] != 0) | (int32(code >> bits) != 0) else int32(0)
    negative = _sign(word) != 0
    code = int32(0) if negative & (layout[SIGNED] == 0) else code
    return int32(code | int32(int32(negative & (layout[SIGNED] != 0)) << int32(layout[BITS] - 1)))


@compiled
def _hashed(index: Word, seed: Word) -> Word:
    """32 bits for an index: the finaliser of SplitMix64, cut short."""
    z = uint64(index) + uint64(seed)
    z = (z ^ (z >> uint64(30))) * uint64(FIRST_FACTOR)
    z = (z ^ (z >> uint64(27))) * uint64(SECOND_FACTOR)
    return int32(z ^ (z >> uint64(31)))


@compiled
def _mixed(word: Word) -> Word:
    """Random bits of an element from the sum of the words of its row and its column."""
    word = int32(word * FIRST_MIXER)
    word = int32(word ^ (word >> 13))
    return int32(word * SECOND_MIXER)


@kernel
def rounded_nearest(words: Array, out: Array, layout: Array) -> None:
    """words: bits of fp32 numbers, int32[n]; out: fp32[n]."""
    fields = _fields(layout)
    if fields[ODD] != 0:
        for i in range(len(words)):
            units, field = _units(words[i], fields)
            out[i] = _odd_value(words[i], _nearest(units), field, fields)
    else:
        for i in range(len(words)):
            units, field = _units(words[i], fields)
            out[i] = _value(words[i], _nearest(units), field, fields)


@kernel
def rounded_with(words: Array, random: Array, out: Array, layout: Array) -> None:
    """As `rounded_nearest`, stochastically; random: int32[n]."""
    fields = _fields(layout)
    if fields[CUT] != 0:
        for i in range(len(words)):
            out[i] = _cut_off(words[i], random[i], fields)
    elif fields[ODD] != 0:
        for i in range(len(words)):
            units, field = _units(words[i], fields)
            out[i] = _odd_value(words[i], _stochastic(units, random[i], fields), field, fields)
    else:
        for i in range(len(words)):
            units, field = _units(words[i], fields)
            out[i] = _value(words[i], _stochastic(units, random[i], fields), field, fields)


@kernel
def random_words(rows: Array, seed: int, columns: Array, out: Array) -> None:
    """32 random bits for every element: of rows[r], int64, hashed with the seed, and of columns[c], int32."""
    n = len(columns)
    for r in range(len(rows)):
        row = _hashed(rows[r], seed)
        for c in range(n):
            out[r * n + c] = _mixed(int32(row + columns[c]))


@kernel
def column_words(parts: Array, seed_of_runs: int, seed_within: int, within: Array, out: Array) -> None:
    """A word for each index of the ranges `parts`, int64[n, 2]: the sum of one for i // RUN and one for i % RUN.

    within: int32[RUN], scratch.
    """
    for i in range(RUN):
        within[i] = _hashed(i, seed_within)
    at = 0
    for p in range(len(parts)):
        begin, end = parts[p, 0], parts[p, 1]
        while begin < end:
            run = begin >> RUN_BITS
            stop = min(end, (run + 1) << RUN_BITS)
            word, first = _hashed(run, seed_of_runs), begin - (run << RUN_BITS)
            for i in range(stop - begin):
                out[at + i] = int32(word + within[first + i])
            at += stop - begin
            begin = stop


@kernel
def encoded_nearest(words: Array, out: Array, layout: Array) -> None:
    """Codes of rounded numbers, of a format without specials."""
    fields = _fields(layout)
    for i in range(len(words)):
        units, field = _units(words[i], fields)
        out[i] = _code(words[i], _nearest(units), field, fields)


@kernel
def encoded_with(words: Array, random: Array, out: Array, layout: Array) -> None:
    """As `encoded_nearest`, stochastically; random: int32[n]."""
    fields = _fields(layout)
    for i in range(len(words)):
        units, field = _units(words[i], fields)
        out[i] = _code(words[i], _stochastic(units, random[i], fields), field, fields)


@kernel
def decoded(codes: Array, out: Array, layout: Array) -> None:
    """The numbers of codes of a format without specials; out: fp32[n]."""
    fields = _fields(layout)
    bits = int32(fields[STEP] >> FRACTION_BITS)
    for i in range(len(codes)):
        code = int32(codes[i])
        negative = (int32(code >> int32(fields[BITS] - 1)) != 0) & (fields[SIGNED] != 0)
        count = int32(code & int32((int32(1) << int32(fields[BITS] - fields[SIGNED])) - 1))
        field, units = int32(count >> bits), int32(count & int32((1 << bits) - 1))
        normal = field > 0
        units = int32(units + int32(1 << bits)) if normal else (units if fields[DENORMALS] != 0 else int32(0))
        above = int32(field - 1) if normal else int32(0)
        value = float32(units) * _number(int32(fields[LEAST] - fields[STEP] + int32(above << FRACTION_BITS)))
        out[i] = -value if negative else value
