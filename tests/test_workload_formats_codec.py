"""Numbers in every format, against definitions by exact fractions: codes, both roundings, what does not fit."""

import math
from bisect import bisect_left
from fractions import Fraction
from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from meshemu.errors import InputError
from meshemu.hardware.number_formats import FORMATS, NumberFormat, format_named
from meshemu.workload.formats.codes import decode, encode
from meshemu.workload.formats.random_bits import Stream, counted, random_bits
from meshemu.workload.formats.rounding import round_to

EIGHT_BITS = [FORMATS["cfloat8_1_4_3"], FORMATS["cfloat8_1_5_2"]]
SMALL = [*((f, 7) for f in EIGHT_BITS), (FORMATS["cfloat16_shp"], 15), (FORMATS["cfloat16_shp"], 60)]
ALL = [*((f, b) for f in EIGHT_BITS for b in (0, 7, 31, 63)), *((f, 15 if f.name == "cfloat16_shp" else None)
       for f in FORMATS.values() if f.bits > 8)]  # fmt: skip


def name_of(parameter: object) -> str:
    return parameter.name if isinstance(parameter, NumberFormat) else str(parameter)


def value_of(code: int, e_bits: int, m_bits: int, bias: int) -> Fraction:
    """Sign, exponent, mantissa; gradual underflow; no code kept for anything else."""
    sign, field, mantissa = code >> (e_bits + m_bits), (code >> m_bits) % 2**e_bits, code % 2**m_bits
    size = Fraction(mantissa, 2**m_bits) + (field > 0)
    return (-1) ** sign * size * Fraction(2) ** (max(field, 1) - bias)


@cache
def numbers(number_format: NumberFormat, bias: int) -> list[Fraction]:
    """All numbers >= 0 of a format without specials, in order: the code is the place."""
    n = 2 ** (number_format.exponent_bits + number_format.mantissa_bits)
    return [value_of(c, number_format.exponent_bits, number_format.mantissa_bits, bias) for c in range(n)]


def neighbours(x: Fraction, grid: list[Fraction]) -> tuple[int, int]:
    """Places of the next number below or at |x| and of the next one above or at it, both the last one beyond it."""
    above = min(bisect_left(grid, abs(x)), len(grid) - 1)
    return (above if grid[above] <= abs(x) else above - 1), above


def nearest(x: float, grid: list[Fraction]) -> Fraction:
    """To nearest, ties to the even code, sign kept, the largest number beyond it."""
    exact = Fraction(x)
    below, above = neighbours(exact, grid)
    down, up = abs(exact) - grid[below], grid[above] - abs(exact)
    chosen = below if down < up or (down == up and below % 2 == 0) else above
    return grid[chosen] * (-1 if math.copysign(1, x) < 0 else 1)


def uniform_bits(n: int, seed: int = 0) -> Tensor:
    return random_bits((n,), {}, Stream((n,)), seed)


def samples(bias: int, n: int = 300) -> Tensor:
    """fp32 over, in and under the range of a format, with all magnitudes alike often."""
    generator = torch.Generator().manual_seed(bias)
    exponents = torch.randint(-bias - 12, 24 - min(bias, 40), (n,), generator=generator)
    return torch.ldexp(torch.randn(n, generator=generator), exponents)


@pytest.mark.parametrize("number_format", EIGHT_BITS, ids=lambda f: f.name)
def test_every_code_at_every_bias(number_format: NumberFormat) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    for bias in range(64):
        found = decode(codes, number_format, bias)
        e_bits, m_bits = number_format.exponent_bits, number_format.mantissa_bits
        assert [Fraction(v) for v in found.tolist()] == [value_of(c, e_bits, m_bits, bias) for c in range(256)]
        assert torch.equal(encode(found, number_format, bias), codes)  # with the sign of zero


def test_published_ranges() -> None:
    """Tables 4 and 5 of Tesla's guide: normal numbers at bias 0, 31 and 63."""
    for name, top in (("cfloat8_1_4_3", 15), ("cfloat8_1_5_2", 31), ("cfloat16_shp", 31)):
        number_format = FORMATS[name]
        for bias in (0, 31, 63):
            assert number_format.smallest_normal(bias) == 2.0 ** (1 - bias)
            assert number_format.largest(bias) == (2 - 2.0**-number_format.mantissa_bits) * 2.0 ** (top - bias)
    assert (FORMATS["cfloat16_uhp"].bits, FORMATS["cfloat16_uhp"].biases) == (16, (31, 31))


@pytest.mark.parametrize(("number_format", "bias"), SMALL, ids=name_of)
def test_to_nearest_even(number_format: NumberFormat, bias: int) -> None:
    grid = numbers(number_format, bias)
    middles = torch.tensor([float((a + b) / 2) for a, b in pairwise([*grid[:60], *grid[-90:]])])
    ties = torch.cat([middles, -middles])
    beside = torch.cat([torch.nextafter(ties, torch.full_like(ties, end)) for end in (math.inf, -math.inf)])
    x = torch.cat([ties, beside, samples(bias)])
    found = round_to(x, number_format, bias)
    assert [Fraction(y) for y in found.tolist()] == [nearest(v, grid) for v in x.tolist()]
    assert torch.equal(decode(encode(x, number_format, bias), number_format, bias), found.float())


@pytest.mark.parametrize(("number_format", "bias"), SMALL, ids=name_of)
def test_stochastic_rounding_goes_to_a_neighbour(number_format: NumberFormat, bias: int) -> None:
    grid = numbers(number_format, bias)
    x = samples(bias)
    found = round_to(x, number_format, bias, uniform_bits(len(x)))
    for value, y in zip(x.tolist(), found.tolist(), strict=True):
        below, above = neighbours(Fraction(value), grid)
        assert abs(Fraction(y)) in (grid[below], grid[above])
        assert math.copysign(1, y) == math.copysign(1, value)


@pytest.mark.parametrize(("name", "bias"), [(f.name, b) for f, b in ALL if not f.name.endswith(("fp32", "uhp"))])
def test_stochastic_rounding_has_no_bias(name: str, bias: int | None) -> None:
    """The mean of n roundings of x is x to within 5 deviations of a coin that shows the fraction."""
    number_format, n = FORMATS[name], 20_000
    used = number_format.biases[0] if bias is None else bias
    for at in (1.3, -1.3, 0.3, 2.0**-number_format.mantissa_bits * 0.37):
        value = at * number_format.smallest_normal(used)
        if abs(value) < 2.0**-126:
            continue  # too small for fp32 to have a fraction of it
        x = torch.full((n,), value)
        found = round_to(x, number_format, bias, uniform_bits(n)).double()
        low, high = float(found.min()), float(found.max())
        assert low < float(x[0]) < high
        chance = (float(x[0]) - low) / (high - low)
        share = float((found == high).double().mean())
        assert abs(share - chance) < 5 * math.sqrt(chance * (1 - chance) / n)


@pytest.mark.parametrize(("f", "cut"), [(EIGHT_BITS[0], 20), (EIGHT_BITS[1], 21), (FORMATS["bf16"], 16)], ids=name_of)
def test_as_many_random_bits_count_as_are_cut_off(f: NumberFormat, cut: int) -> None:
    """A fraction of k units of fp32 goes up with the k greatest of 2**cut random numbers."""
    bias = None if f.fixed else 7
    for k in (1, 2, 2 ** (cut - 1), 2**cut - 1):
        x = torch.full((3,), 1 + k * 2.0**-23)
        numbers_below = torch.tensor([2**cut - k - 1, 2**cut - k, 2**cut - 1])  # the first one is too small by one
        random = (numbers_below << (32 - cut)).to(torch.int32)
        up = 1 + 2.0 ** (cut - 23)
        assert round_to(x, f, bias, random).tolist() == [1.0, up, up]


@pytest.mark.parametrize(("number_format", "bias"), ALL, ids=name_of)
def test_rounding_again_changes_nothing(number_format: NumberFormat, bias: int | None) -> None:
    x = samples(7 if bias is None else bias)
    for random in (None, uniform_bits(len(x))):
        once = round_to(x, number_format, bias, random)
        assert torch.equal(round_to(once, number_format, bias), once)
        assert torch.equal(round_to(once, number_format, bias, uniform_bits(len(x), 9)), once)


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int32)


@pytest.mark.parametrize(("number_format", "bias"), ALL, ids=name_of)
def test_what_does_not_fit(number_format: NumberFormat, bias: int | None) -> None:
    used = number_format.biases[0] if bias is None else bias
    top = number_format.largest(used)
    x = torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0, top, -top, 3e38, -3e38])
    for random in (None, uniform_bits(len(x))):
        found = round_to(x, number_format, bias, random)
        if number_format.specials:
            assert found[0] == math.inf and found[1] == -math.inf and found[2].isnan()
            beyond = torch.tensor([3e38, -3e38]) if number_format.name == "fp32" else found[7:]
            assert torch.equal(found[7:], beyond) and (top > 3e38 or bool(found[7:].isinf().all()))
        else:
            low = -top if number_format.signed else 0.0
            assert found[[0, 1, 2, 7, 8]].tolist() == [top, low, top, top, low]
            less = None if random is None else random[2:3]
            assert round_to(-x[2:3], number_format, bias, less).tolist() == [top], "NaN has no sign"
        signs = [0, -(2**31)] if number_format.signed else [0, 0]
        assert bits(found[3:5]).tolist() == signs
        assert found[5] == torch.tensor(top)


def test_native_formats_are_those_of_torch() -> None:
    x = torch.cat([samples(7), torch.tensor([65519.9, 65520.0, 1e-7, 6e-8, 2.9e-8, 1e-45, 3.39e38])])
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        assert torch.equal(round_to(x, FORMATS[name]), x.to(dtype).float())
        codes = encode(x, FORMATS[name])
        assert torch.equal(decode(codes, FORMATS[name]), x.to(dtype).float())


def test_unsigned_half_precision_has_neither_sign_nor_denormals() -> None:
    uhp, least = FORMATS["cfloat16_uhp"], 2.0**-30
    x = torch.tensor([-1.0, least, 0.9999999 * least, 0.4 * least, 1.0, 1 + 2.0**-11, 1 + 3 * 2.0**-11])
    assert round_to(x, uhp).tolist() == [0.0, least, least, 0.0, 1.0, 1.0, 1 + 2.0**-9]
    codes = torch.arange(1 << 16, dtype=torch.int32)
    found = decode(codes, uhp)
    assert (found[:1024] == 0).all()
    assert (found[1024:].diff() > 0).all()
    assert torch.equal(encode(found, uhp)[1024:], codes[1024:])


@given(st.sampled_from(EIGHT_BITS), st.floats(2.0**-70, 2.0**40))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_the_fitting_bias_is_the_greatest_that_holds_the_maximum(number_format: NumberFormat, maximum: float) -> None:
    exact = [bias for bias in range(64) if maximum <= number_format.largest(bias)]
    assert number_format.fitting_bias(maximum) == max(exact, default=0)
    for bias in (0, 20, 63):
        assert number_format.fitting_bias(number_format.largest(bias)) == bias
        beyond = math.nextafter(number_format.largest(bias), math.inf)
        assert number_format.fitting_bias(beyond) == max(bias - 1, 0)
    assert number_format.fitting_bias(0.0) == 63


def test_strided_and_empty_tensors_and_large_ones() -> None:
    f = EIGHT_BITS[0]
    x = torch.randn(6, 10)[:, ::2].t()
    assert torch.equal(round_to(x, f, 7), round_to(x.contiguous(), f, 7))
    assert round_to(torch.empty(0, 3), f, 7).shape == (0, 3)
    assert round_to(torch.tensor(1.06), f, 7) == 1.0
    large = torch.randn(1 << 17)
    assert torch.equal(round_to(large, f, 7)[1 << 16 :], round_to(large[1 << 16 :], f, 7))


def test_random_bits_do_not_depend_on_the_cut() -> None:
    stream = Stream((6, 5, 8))
    whole = random_bits((6, 5, 8), {}, stream, 3)
    part = random_bits((2, 5, 3), {0: (4, 6), 2: (5, 8)}, stream, 3)
    assert torch.equal(part, whole[4:6, :, 5:8])
    inner = random_bits((6, 2, 8), {1: (2, 4)}, stream, 3)
    assert torch.equal(inner, whole[:, 2:4])
    heads = random_bits((6, 5, 4), {2: (1, 2)}, Stream((6, 5, 16), {2: 4}), 3)  # one of four of each of 4 segments
    assert torch.equal(heads, random_bits((6, 5, 16), {}, Stream((6, 5, 16)), 3)[:, :, 1::4])
    assert random_bits((), {}, Stream(()), 3).shape == ()
    assert not torch.equal(whole, random_bits((6, 5, 8), {}, stream, 4))


def hashed(index: int, seed: int) -> int:
    """SplitMix64 of index + seed x the golden ratio, its low half."""
    word = 2**64 - 1
    z = index + seed * 0x9E3779B97F4A7C15 & word
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & word
    z = (z ^ z >> 27) * 0x94D049BB133111EB & word
    return (z ^ z >> 31) & 2**32 - 1


def test_random_bits_are_the_hash_that_they_have_always_been() -> None:
    """By whole numbers: a word for the row, one for the run of 256 columns, one for the column in it; then mixed."""
    for seed in (0, 3, 2**63 - 1):
        found = random_bits((3, 600), {}, Stream((3, 600)), seed)
        for row, column in ((0, 0), (2, 255), (1, 256), (2, 599)):
            word = hashed(row, seed) + hashed(column // 256, ~seed) + hashed(column % 256, seed + 1) & 2**32 - 1
            signed = word * 0x85EBCA6B & 2**32 - 1
            signed -= signed >> 31 << 32
            word = (signed ^ signed >> 13) * 0xC2B2AE35 & 2**32 - 1
            assert int(found[row, column]) & 2**32 - 1 == word


@given(st.lists(st.integers(1, 9), max_size=3), st.integers(1, 400), st.sampled_from(ALL), st.integers(0, 2**62))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_bits_that_are_counted_on_the_way_are_the_same(
    dims: list[int], last: int, chosen: tuple[NumberFormat, int | None], seed: int
) -> None:
    shape = (*dims, last)
    x = torch.ldexp(torch.randn(shape), torch.randint(-12, 6, shape))
    stream = Stream(shape)
    bits = random_bits(shape, {}, stream, seed)
    assert torch.equal(round_to(x, *chosen, counted(shape, {}, stream, seed)), round_to(x, *chosen, bits))


@pytest.mark.parametrize("shape", [(40_000, 3), (2, 70_000), (5, 0), (0, 4), ()])
def test_large_and_empty_blocks_are_counted_in_pieces(shape: tuple[int, ...]) -> None:
    x, stream, f = torch.randn(shape), Stream(shape), EIGHT_BITS[0]
    by_pieces = round_to(x, f, 7, counted(shape, {}, stream, 5))
    assert by_pieces.shape == shape and torch.equal(by_pieces, round_to(x, f, 7, random_bits(shape, {}, stream, 5)))


def test_random_bits_are_even_and_independent() -> None:
    """Every bit is set half the time, and so is the difference of neighbours along rows, columns and seeds."""
    n = 256
    words = random_bits((n, n), {}, Stream((n, n)), 1)
    others = random_bits((n, n), {}, Stream((n, n)), 2)
    corners = words[:-1, :-1] ^ words[1:, :-1] ^ words[:-1, 1:] ^ words[1:, 1:]
    for sample in (words, words[1:] ^ words[:-1], words[:, 1:] ^ words[:, :-1], words ^ others, corners):
        for bit in range(8, 32):  # those that rounding takes
            share = float(((sample >> bit) & 1).double().mean())
            assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(sample.numel())


def test_names_and_biases_are_checked() -> None:
    with pytest.raises(InputError, match=r"formats.weights = 'fp8' is no number format; there are fp32, bf16, fp16"):
        format_named("fp8", "formats.weights")
    for bias in (-1, 64, 7.0, True):
        with pytest.raises(InputError, match=r"k = .*: of cfloat8_1_4_3, a bias is a whole number from 0 to 63"):
            FORMATS["cfloat8_1_4_3"].checked_bias(bias, "k")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="k = 3: of bf16, its bias is always 127"):
        FORMATS["bf16"].checked_bias(3, "k")
