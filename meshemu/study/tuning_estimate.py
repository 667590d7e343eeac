"""About how long a step takes under each plan of a list, learned from the plans that were timed.

A step is estimated as the work of one device shared evenly, the launches that only stages share, all that as long as a
pipeline takes to fill and drain, and what each axis makes it wait: w sqrt(n) for an axis of n devices, since
collectives grow with the diameter of a mesh (`scaling_law`). The w are those that fit the plans timed so far best; of
an axis that was in none of them, that of plain data parallelism is assumed.
"""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meshemu.study.tuning_bounds import AloneTime
from meshemu.study.tuning_space import AXES, extent, n_devices

__all__ = ["Estimates"]

ASSUMED = 0.1
"""How much what is assumed of an axis counts beside one plan that was timed."""

_Floats = NDArray[np.float64]


class Estimates:
    """Estimates of the steps under `tables`, in ps."""

    def __init__(self, tables: Sequence[Mapping[str, Any]], alone: AloneTime) -> None:
        self._alone = alone
        self._shared_ps = np.array([self._shared(table) for table in tables], np.float64)
        self._across = np.array([_across(table) for table in tables], np.float64).reshape(-1, len(AXES))

    def ps(self, timed: Sequence[tuple[Mapping[str, Any], int]], assumed_ps: float) -> _Floats:
        """An estimate for each table. timed: plans with their times; assumed_ps: w of an axis about which they say
        nothing.
        """
        return self._shared_ps + self._across @ self._waits(timed, assumed_ps)

    def _waits(self, timed: Sequence[tuple[Mapping[str, Any], int]], assumed_ps: float) -> _Floats:
        """Least squares of relative errors, all w at least 0."""
        from scipy.optimize import nnls

        typical_ps = float(np.mean([step_ps for _, step_ps in timed])) if timed else 1.0
        known = [np.array(_across(table)) * typical_ps / step_ps for table, step_ps in timed]
        beyond = [(step_ps - self._shared(table)) / step_ps for table, step_ps in timed]
        matrix = np.vstack([*known, ASSUMED * np.eye(len(AXES))])
        goal = np.array([*beyond, *[ASSUMED * assumed_ps / typical_ps] * len(AXES)])
        found: _Floats = nnls(matrix, goal)[0] * typical_ps
        return found

    def _shared(self, table: Mapping[str, Any]) -> float:
        stages, parts = extent(table.get("pipeline", 1)), int(table.get("micro_batches", 1))
        busy = sum(self._alone.work_ps) / n_devices(table) + sum(self._alone.launch_ps) * parts / stages
        return busy * (parts + stages - 1) / parts


def _across(table: Mapping[str, Any]) -> list[float]:
    """Roots of the extents, by kind of axis; 0 for those that the plan has not."""
    return [sqrt(extent(table[kind])) if extent(table.get(kind, 1)) > 1 else 0.0 for kind in AXES]
