"""Durations with a table of measured times: exact matches, and a factor for each op class that the table has."""

from collections import defaultdict
from collections.abc import Mapping
from statistics import median

import numpy as np
from numpy.typing import NDArray

from meshemu.cost.calibration import Calibration
from meshemu.cost.op_classes import base_name
from meshemu.cost.single import work_ps
from meshemu.cost.terms import Ops
from meshemu.cost.work import Work
from meshemu.hardware.device import DeviceSpec

__all__ = ["calibrated", "factors"]

Int64Array = NDArray[np.int64]


def factors(device: DeviceSpec, calibration: Calibration) -> Mapping[str, float]:
    """Op class -> median of measured over modelled time, of classes to which the model gives some."""
    ratios: defaultdict[str, list[float]] = defaultdict(list)
    for row in calibration.rows:
        work = Work(row.flops, row.read_bytes, row.write_bytes, row.shape)
        model_ps = work_ps(device, row.op_class, row.number_format, work) if row.number_format else 0
        if model_ps:
            ratios[base_name(row.op_class)].append(row.time_ps / model_ps)
    return {name: median(values) for name, values in ratios.items()}


def calibrated(
    model_ps: Int64Array, ops: Ops, whole: NDArray[np.bool_], device: DeviceSpec, calibration: Calibration
) -> Int64Array:
    """Durations of ops after calibration, int64 (n,).

    model_ps: those by the model. whole: ops that fusion has not changed; only they can match a row. Combinations of
    received pieces (REDUCE) keep the model's time.
    """
    of_class = factors(device, calibration)
    by_class = np.array([of_class.get(base_name(name), 1.0) for name in ops.op_classes])
    factor = np.where(ops.is_reduce, 1.0, by_class[ops.op_class])
    durations = np.rint(model_ps * factor).astype(np.int64)
    measured = {(base_name(str(row.key[0])), *row.key[1:]): row.time_ps for row in calibration.rows}
    at = np.flatnonzero(whole & ~ops.is_reduce)
    columns = ops.op_class, ops.number_format, ops.shape, ops.flops, ops.read_bytes, ops.write_bytes
    keys = np.stack([column[at].astype(np.int64) for column in columns], axis=1)
    distinct, which = np.unique(keys, axis=0, return_inverse=True)
    times = np.full(len(distinct), -1, np.int64)
    for row, (op_class, number_format, shape, *amounts) in enumerate(distinct.tolist()):
        over = ops.shapes[shape] if shape >= 0 else ()
        key = base_name(ops.op_classes[op_class]), ops.number_formats[number_format], over, *amounts
        times[row] = measured.get(key, -1)
    matched = times[which.ravel()]
    durations[at] = np.where(matched >= 0, matched, durations[at])
    return durations
