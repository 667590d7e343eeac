"""Sets of small numbers as bits: the plain functions and the compiled ones both say what a search says."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from meshemu.network.compiled import kernel
from meshemu.network.credit.bits import lowest_bit, next_bit

NUMBERS = st.integers(0, 62)


@kernel
def lowest_and_next(bits, turn, found):
    """Write both into `found`: a kernel is what enters compiled code."""
    found[0] = lowest_bit(bits)
    found[1] = next_bit(bits, turn)


@settings(deadline=None)
@given(st.sets(NUMBERS, min_size=1), st.integers(0, 63))
def test_the_lowest_number_and_the_next_in_turn(numbers, turn):
    bits = sum(1 << number for number in numbers)
    expected = [min(numbers), min((n for n in numbers if n >= turn), default=min(numbers))]
    assert [lowest_bit(bits), next_bit(bits, turn)] == expected
    found = np.zeros(2, np.int64)
    lowest_and_next(bits, turn, found)
    assert found.tolist() == expected
