"""Integer time arithmetic: exact rates, ceilings, refusal before overflow, cut-through times."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshemu.collectives import closed_form_ps, collective_program
from meshemu.errors import InputError
from meshemu.hardware import System
from meshemu.mesh import flatten, link_rates, message_ps, rate, routes, serialisation_ps
from meshemu.network import Router, simulate_messages, time_program


@settings(max_examples=80, derandomize=True)
@given(st.integers(1, 999_999), st.integers(0, 12))
def test_rate_is_exact_for_six_digits(digits, zeros):
    num, den = rate(digits * 10**zeros)
    assert Fraction(num, den) == Fraction(10**12, digits * 10**zeros) and den <= 10**6


@settings(max_examples=80, derandomize=True)
@given(st.integers(1, 10**18))
def test_rate_is_close_for_any_bandwidth(bandwidth):
    num, den = rate(bandwidth)
    assert abs(Fraction(num, den) * bandwidth / 10**12 - 1) < Fraction(1, 10**6) and den <= 10**6


@pytest.mark.parametrize("bandwidth", [0, -1, 10**19])
def test_rates_that_cannot_be_timed(bandwidth):
    with pytest.raises(InputError):
        rate(bandwidth)


@settings(max_examples=200, derandomize=True)
@given(st.integers(0, 10**12), st.integers(10**6, 10**14))
def test_serialisation_is_the_exact_ceiling(size, bandwidth):
    num, den = rate(bandwidth)
    exact = -(-size * num // den)
    if exact <= 2**61:
        assert serialisation_ps(size, num, den) == exact
    elif exact > 2**62 + 2**12:
        with pytest.raises(InputError, match=r"2\*\*62 ps"):
            serialisation_ps(size, num, den)


def test_serialisation_refuses_negative_sizes_and_broadcasts():
    assert serialisation_ps([[1], [3]], [1, 1], [1, 2]).tolist() == [[1, 1], [3, 2]]
    with pytest.raises(InputError, match="-5 bytes"):
        serialisation_ps([1, -5], 1, 1)


@pytest.mark.parametrize(
    ("figure", "value", "said"),
    [
        ("bandwidth_bytes_per_s", 0, "bandwidth_bytes_per_s = 0 must be at least 1"),
        ("bandwidth_bytes_per_s", -3, "bandwidth_bytes_per_s = -3 must be at least 1"),
        ("bandwidth_bytes_per_s", 10**18 + 1, f"bandwidth_bytes_per_s = {10**18 + 1} must be at most {10**18}"),
        ("latency_ps", -1, "latency_ps = -1 must be at least 0"),
    ],
)
def test_a_link_that_cannot_be_timed_is_named(figure, value, said):
    """Wherever a mesh made by hand is timed."""
    mesh = flatten(System.grid(rows=2, cols=3, bandwidth="1 GB/s", latency="1 ns"))
    link = int(mesh.out_link[4, 3])
    values = getattr(mesh, figure).copy()
    values[link] = value
    wrong = replace(mesh, **{figure: values})
    program = collective_program("all_reduce", "ring", mesh, 600)
    grid = np.arange(6).reshape(2, 3)
    for use in (
        lambda: link_rates(wrong),
        lambda: message_ps(wrong, routes(wrong, [0], [1]), 8),
        lambda: simulate_messages(wrong, [0], [1], [8]),
        lambda: simulate_messages(wrong, [0], [1], [8], router=Router()),
        lambda: time_program(program, wrong, np.zeros(program.n_ops, np.int64)),
        lambda: closed_form_ps("all_reduce", "tree", wrong, grid, 600, 4, lambda size: size),
    ):
        with pytest.raises(InputError, match=rf"^link {link} \(device 4 -> device 3\): {said}$"):
            use()


def test_lone_message_of_reference_case_1():
    mesh = flatten(System.grid(rows=1, cols=8, bandwidth="50 GB/s", latency="500 ns"))
    assert message_ps(mesh, routes(mesh, [0], [7]), 2**20).tolist() == [24_471_520]


def test_message_takes_all_latencies_and_its_slowest_link():
    mesh = flatten(System.preset("dojo-tray"))
    found = routes(mesh, [0, 5, 0, 0], [4, 4, 1, 5])
    times = message_ps(mesh, found, [10**6, 10**6, 0, 9 * 10**5])
    # 4 die hops at 2 TB/s; 1 tile hop at 0.9 TB/s; nothing but latency; 4 die hops and 1 tile hop
    assert times.tolist() == [900_000 - 500_000 + 500_000, 200_000 + 1_111_112, 100_000, 600_000 + 1_000_000]
    zero = flatten(System.grid(rows=2, cols=2, bandwidth="1 TB/s", latency=0))
    assert message_ps(zero, routes(zero, [0], [3]), 17).tolist() == [17]
    assert message_ps(zero, routes(zero, [], []), 5).size == 0


def test_link_rates_are_the_rates_of_the_links():
    mesh = flatten(System.preset("dojo-tile", "node"))
    num, den = link_rates(mesh)
    assert num.shape == den.shape == (mesh.n_links,)
    for link in (0, mesh.n_links // 2, int(np.argmin(mesh.bandwidth_bytes_per_s)), mesh.n_links - 1):
        assert (num[link], den[link]) == rate(int(mesh.bandwidth_bytes_per_s[link]))
