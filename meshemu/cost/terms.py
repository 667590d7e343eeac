"""The parts of an op's duration: arithmetic, loads, stores, and what it costs whatever its size.

A matrix product whose shape is known takes what `cost.spread` says. Another op takes its flops at the peak of the
vector unit (a product at that of the matrix unit), its bytes at the bandwidths of the SRAM. If its elements are known,
they are dealt out in vectors of L lanes, and the node with most of them decides: all three grow by what

    ceil(ceil(elements / L) / nodes) L nodes / elements

is above 1. Devices without figures of their units keep peak rates for all shapes. A combination of received pieces does
too: its fixed cost covers how it spreads over nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.cost.exact import ceil_divide, scaled, time_ps
from meshemu.cost.number_formats import flops_per_s
from meshemu.cost.op_classes import MATRIX, base_name
from meshemu.cost.spread import ProductTime, lanes, product_time
from meshemu.errors import InputError
from meshemu.hardware.device import DeviceSpec
from meshemu.program.ir import Shape

__all__ = ["BROADCAST", "MATRIX_UNIT", "VECTOR_UNIT", "Ops", "Terms", "positive", "terms"]

Int64Array = NDArray[np.int64]

MATRIX_UNIT, VECTOR_UNIT, BROADCAST = 0, 1, 2
"""What the compute term of an op is, most of it."""


@dataclass(frozen=True, eq=False)
class Ops:
    """Ops with work: columns of a Program and its tables. is_reduce: REDUCE ops. launched: False if part of another."""

    op_class: NDArray[np.int16]
    number_format: NDArray[np.int8]
    shape: NDArray[np.int32]
    is_reduce: NDArray[np.bool_]
    launched: NDArray[np.bool_]
    flops: Int64Array
    read_bytes: Int64Array
    write_bytes: Int64Array
    op_classes: Sequence[str]
    number_formats: Sequence[str]
    shapes: Sequence[Shape]


@dataclass(frozen=True, eq=False)
class Terms:
    """int64[n] each, in ps: an op takes the longest of the first three, then fixed_ps. unit: int8[n], of compute_ps."""

    compute_ps: Int64Array
    load_ps: Int64Array
    store_ps: Int64Array
    fixed_ps: Int64Array
    unit: NDArray[np.int8]

    @property
    def total_ps(self) -> Int64Array:
        """Durations."""
        return np.maximum(np.maximum(self.compute_ps, self.load_ps), self.store_ps) + self.fixed_ps


def terms(ops: Ops, device: DeviceSpec) -> Terms:
    """The terms of every op. Raises InputError if the device has a rate or bandwidth that is not positive."""
    load = positive(device, "load bandwidth", device.load_bytes_per_s)
    store = positive(device, "store bandwidth", device.store_bytes_per_s)
    is_matrix = np.array([base_name(name) in MATRIX for name in ops.op_classes], dtype=np.bool_)
    on_matrix = is_matrix[ops.op_class] & ~ops.is_reduce
    elements = _elements(ops.shapes)[ops.shape] if ops.shapes else np.zeros(len(ops.shape), np.int64)
    flops, read_bytes, write_bytes = ops.flops, ops.read_bytes, ops.write_bytes
    if device.vector_bytes:
        dealt = np.flatnonzero((ops.shape >= 0) & (elements > 0) & ~ops.is_reduce)
        if len(dealt):
            wide = np.array([lanes(device, name) if name else 1 for name in ops.number_formats], np.int64)
            number, most = elements[dealt], wide[ops.number_format[dealt]] * device.n_nodes
            padded = ceil_divide(number, most) * most
            flops, read_bytes, write_bytes = (
                _with(amount, dealt, scaled(amount[dealt], padded, number))
                for amount in (flops, read_bytes, write_bytes)
            )
    unit = np.where(on_matrix, MATRIX_UNIT, VECTOR_UNIT).astype(np.int8)
    compute_ps = time_ps(flops, _peaks(ops, device)[on_matrix.astype(np.int64), ops.number_format])
    if device.matrix_unit is not None:
        _place_products(ops, device, np.flatnonzero(on_matrix & (ops.shape >= 0)), compute_ps, unit)
    return Terms(
        compute_ps=compute_ps,
        load_ps=time_ps(read_bytes, load),
        store_ps=time_ps(write_bytes, store),
        fixed_ps=np.where(ops.is_reduce, device.combine_ps, device.op_launch_ps * ops.launched),
        unit=unit,
    )


def positive(device: DeviceSpec, what: str, rate: int) -> int:
    """The rate, if it is one."""
    if rate <= 0:
        raise InputError(f"device {device.name}: {what} = {rate} must be > 0")
    return rate


def _place_products(
    ops: Ops, device: DeviceSpec, chosen: Int64Array, compute_ps: Int64Array, unit: NDArray[np.int8]
) -> None:
    """Write the times of the matrix products of the chosen ops, and what they are bound by."""
    n_formats = len(ops.number_formats)
    key = ops.shape[chosen].astype(np.int64) * n_formats + ops.number_format[chosen]
    distinct, which = np.unique(key, return_inverse=True)
    known: dict[tuple[str, tuple[int, ...]], ProductTime] = {}
    found = np.zeros((2, len(distinct)), np.int64)
    for at, (shape, number_format) in enumerate(divmod(number, n_formats) for number in distinct.tolist()):
        name = ops.number_formats[number_format]
        times = []
        for product in ops.shapes[shape]:
            if (name, product) not in known:
                known[name, product] = product_time(device, name, product)
            times.append(known[name, product])
        found[:, at] = sum(time.total_ps for time in times), _unit_of(times)
    compute_ps[chosen], unit[chosen] = found[:, which]


def _unit_of(times: Sequence[ProductTime]) -> int:
    """The unit, or the on-die network, that decides most of the time."""
    spent = [0, 0, 0]
    for time in times:
        waits = time.ingest_ps > time.arithmetic_ps
        spent[BROADCAST if waits else MATRIX_UNIT if time.matrix else VECTOR_UNIT] += time.total_ps - time.exchange_ps
        spent[BROADCAST] += time.exchange_ps
    return spent.index(max(spent))


def _elements(shapes: Sequence[Shape]) -> Int64Array:
    """Elements of every shape that is that of a vector op, 0 of matrix products."""
    return np.array([shape[0][0] if len(shape[0]) == 1 else 0 for shape in shapes], np.int64)


def _with(amount: Int64Array, at: Int64Array, values: Int64Array) -> Int64Array:
    changed = amount.copy()
    changed[at] = values
    return changed


def _peaks(ops: Ops, device: DeviceSpec) -> Int64Array:
    """Flop/s by [unit, number format] for the formats of the ops; unit 0 is vector, 1 is matrix."""
    peaks = np.ones((2, len(ops.number_formats)), dtype=np.int64)
    for index in np.unique(ops.number_format):
        name = ops.number_formats[index]
        for matrix in (False, True):
            peaks[int(matrix), index] = positive(device, f"{name} flop/s", flops_per_s(device, name, matrix=matrix))
    return peaks
