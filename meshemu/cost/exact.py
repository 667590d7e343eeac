"""Whole picoseconds from amounts and rates, rounded up exactly although the products do not fit 64 bits."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["PS_PER_S", "ceil_divide", "scaled", "time_ps"]

PS_PER_S = 10**12

Int64Array = NDArray[np.int64]


def time_ps(amount: Int64Array, rate_per_s: Int64Array | int) -> Int64Array:
    """ceil(amount * 1e12 / rate), exactly. Holds for durations below 2**51 ps = 37 minutes an op."""
    return scaled(amount, np.int64(PS_PER_S), np.asarray(rate_per_s, dtype=np.int64))


def scaled(amount: Int64Array, numerator: Int64Array | np.int64, denominator: Int64Array | np.int64) -> Int64Array:
    """ceil(amount * numerator / denominator), exactly, for results below 2**51; all positive but the amount, >= 0.

    The quotient is estimated in floating point; the remainder that the estimate leaves is small, so it is exact in
    arithmetic modulo 2**64, and corrects the estimate.
    """
    amount = np.atleast_1d(amount)
    estimate = (amount * (numerator / denominator)).astype(np.int64)
    remainder = amount * numerator - estimate * denominator
    return estimate + ceil_divide(remainder, denominator)


def ceil_divide(numerator: Int64Array, denominator: Int64Array | np.int64) -> Int64Array:
    """Integer division rounded up, denominator > 0."""
    return -(-numerator // denominator)
