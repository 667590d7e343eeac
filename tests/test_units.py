"""Text with units to exact integers, refusals that name the key, and back to text."""

import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshemu import units
from meshemu.errors import InputError


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        (units.time_ps, "500 ns", 500_000),
        (units.time_ps, "0.5ns", 500),
        (units.time_ps, "1.3 us", 1_300_000),
        (units.time_ps, "1.3 µs", 1_300_000),
        (units.time_ps, "1e3 ns", 1_000_000),
        (units.time_ps, "0 s", 0),
        (units.time_ps, 0, 0),
        (units.time_ps, 700, 700),
        (units.time_ps, "700", 700),
        (units.time_ps, "3 ms", 3 * 10**9),
        (units.bandwidth_bytes_per_s, "0.9 TB/s", 900_000_000_000),
        (units.bandwidth_bytes_per_s, "50GB/s", 50_000_000_000),
        (units.bandwidth_bytes_per_s, "1 GiB/s", 2**30),
        (units.bandwidth_bytes_per_s, 12.5e9, 12_500_000_000),
        (units.bandwidth_bytes_per_s, np.int64(7), 7),
        (units.size_bytes, "1 MiB", 2**20),
        (units.size_bytes, "1.25 MB", 1_250_000),
        (units.size_bytes, "64", 64),
        (units.flops_per_s, "362 TFLOP/s", 362 * 10**12),
        (units.flops_per_s, "1.024 TFLOPS", 1_024_000_000_000),
        (units.frequency_hz, "2 GHz", 2 * 10**9),
    ],
)
def test_parses_exactly(parse, text, expected):
    value = parse(text)
    assert value == expected and type(value) is int


@settings(max_examples=60, derandomize=True)
@given(st.decimals(min_value=Decimal("0.001"), max_value=Decimal("9999"), places=3))
def test_every_short_decimal_is_exact(number):
    assert units.time_ps(f"{number} ns") == number * 1000
    assert units.bandwidth_bytes_per_s(f"{number} GB/s") == number * 10**9


@pytest.mark.parametrize(
    "wrong",
    [
        "fast", "", "GB/s", "50 GB", "50 ns", "50 Gb/s", "50 Gbit/s", "-5 GB/s", "nan", "nan B/s", "inf B/s",
        "1e400 B/s", "1,5 GB/s", "50 k", "5 B/s/s", "12 min", "0x10 B/s", "1.2.3 GB/s", "50 GB/s extra",
        math.nan, math.inf, -1, True, None, [1], 1j,
    ],
)  # fmt: skip
def test_what_is_not_a_bandwidth_is_refused_by_key(wrong):
    with pytest.raises(InputError, match=r"^link\.bandwidth = .* is not a bandwidth \(for example '50 GB/s'\)$"):
        units.bandwidth_bytes_per_s(wrong, key="link.bandwidth")


@pytest.mark.parametrize("zero", [0, "0 GB/s", 0.0])
def test_zero_is_a_time_but_not_a_bandwidth(zero):
    with pytest.raises(InputError, match="more than zero"):
        units.bandwidth_bytes_per_s(zero)


def test_fractions_that_round_to_nothing_and_overflow_are_refused():
    with pytest.raises(InputError, match=r"latency = '0\.1 ps' is too small"):
        units.time_ps("0.1 ps", key="latency")
    with pytest.raises(InputError, match="too large"):
        units.size_bytes("9 EB")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.format_time(24_471_520), "24.47 us"),
        (units.format_time(0), "0 s"),
        (units.format_time(500), "500 ps"),
        (units.format_time(999_960), "1 us"),
        (units.format_bytes(2**20), "1.049 MB"),
        (units.format_bytes(17), "17 B"),
        (units.format_bandwidth(900_000_000_000), "900 GB/s"),
        (units.format_flops(362_496_000_000_000), "362.5 TFLOP/s"),
        (units.format_flops(1_087_488 * 10**12), "1.087 EFLOP/s"),
    ],
)
def test_formats_with_four_digits(text, expected):
    assert text == expected


@settings(max_examples=60, derandomize=True)
@given(st.integers(1, 10**18))
def test_formatted_time_parses_back_to_four_digits(value_ps):
    assert units.time_ps(units.format_time(value_ps)) == pytest.approx(value_ps, rel=5.1e-4)
