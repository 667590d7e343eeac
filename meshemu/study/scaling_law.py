"""The time of a step as a law of the number of devices, fitted, with what the fit is worth.

Strong scaling: T(n) = s + p / n + c sqrt(n), where s is what does not scale (Amdahl 1967), p what does, and c sqrt(n)
what grows with the diameter of a square mesh. Weak scaling: T(n) = s + c sqrt(n), since work per device is constant
(Gustafson 1988). All terms are at least 0; relative errors are least squares.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

__all__ = ["Law", "fit_law"]

_SAMPLES = 400
_LEVEL = 90

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Law:
    """terms: name -> (value, low, high) in ps, the bounds of 90 % of bootstrap samples of the residuals. error: largest
    relative error at the points. held_out_error: relative error at the largest number of devices where that is left
    out of the fit; None where too few are left.
    """

    weak: bool
    terms: dict[str, tuple[float, float, float]]
    error: float
    held_out_error: float | None

    def time_ps(self, n_devices: int) -> float:
        """What the law says for a number of devices."""
        values = np.array([value for value, _, _ in self.terms.values()])
        return float((_basis([n_devices], self.weak) @ values)[0])


def fit_law(devices: Sequence[int], times_ps: Sequence[int], *, weak: bool) -> Law | None:
    """The law of these points; None where there are fewer points than terms plus one."""
    names = ("serial", "communication") if weak else ("serial", "parallel", "communication")
    if len(devices) <= len(names):
        return None
    basis, times = _basis(devices, weak), np.array(times_ps, np.float64)
    values = _least(basis, times)
    fitted = basis @ values
    residual = times / fitted - 1
    draw = np.random.default_rng(0)
    samples = np.array([_least(basis, fitted * (1 + draw.choice(residual, len(times)))) for _ in range(_SAMPLES)])
    low, high = np.percentile(samples, [50 - _LEVEL / 2, 50 + _LEVEL / 2], axis=0)
    terms = {name: (float(values[i]), float(low[i]), float(high[i])) for i, name in enumerate(names)}
    held_out = None
    last = int(np.argmax(devices))
    rest = np.arange(len(times)) != last
    if rest.sum() >= len(names):
        held_out = float(basis[last] @ _least(basis[rest], times[rest]) / times[last] - 1)
    return Law(weak, terms, float(np.abs(residual).max()), held_out)


def _basis(devices: Sequence[int], weak: bool) -> _Floats:
    terms = [[1.0, sqrt(n)] if weak else [1.0, 1 / n, sqrt(n)] for n in devices]
    return np.array(terms)


def _least(basis: _Floats, times: _Floats) -> _Floats:
    """Terms of at least 0 with the least squares of relative errors; columns are scaled to the same length first."""
    from scipy.optimize import nnls

    relative = basis / times[:, None]
    scale = np.linalg.norm(relative, axis=0)
    found: _Floats = nnls(relative / scale, np.ones(len(times)))[0] / scale
    return found
