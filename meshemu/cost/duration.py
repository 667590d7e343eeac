"""How long each op of a Program takes on a device: a roofline, then fixed costs, in whole picoseconds.

COMPUTE takes max(flops / peak, read bytes / load bandwidth, written bytes / store bandwidth), rounded up, and the
launch of one op. REDUCE takes the same on the vector unit and the fixed cost of one combination. Ops without work
(views), SEND and RECV take nothing: what messages cost is for the network to say. The roofline is that of Williams,
Waterman and Patterson, 2009, with loads and stores on ports of their own.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from meshemu.cost.number_formats import bits_of, flops_per_s
from meshemu.cost.op_classes import ALLOCATIONS, MATRIX, VIEWS, base_name
from meshemu.cost.work import Work
from meshemu.errors import InputError
from meshemu.hardware.device import DeviceSpec
from meshemu.program.ir import OpKind, Program

__all__ = ["combine_cost", "durations_ps", "work_ps"]

_PS_PER_S = 10**12

Int64Array = NDArray[np.int64]


def durations_ps(program: Program, device: DeviceSpec | None) -> Int64Array:
    """Duration of every op, int64 (n_ops,), in ps; all zero without a device (links alone are timed then).

    Raises:
        InputError: the device has a rate or bandwidth that is not positive.
    """
    durations = np.zeros(program.n_ops, dtype=np.int64)
    if device is None:
        return durations
    worked = (program.flops > 0) | (program.read_bytes > 0) | (program.write_bytes > 0)
    in_place = np.array([base_name(name) in VIEWS | ALLOCATIONS for name in program.op_classes], dtype=np.bool_)
    matrix = np.array([base_name(name) in MATRIX for name in program.op_classes], dtype=np.bool_)
    is_reduce = program.kind == OpKind.REDUCE
    is_compute = (program.kind == OpKind.COMPUTE) & worked
    if program.op_classes:
        is_compute &= ~in_place[program.op_class]
    timed = np.flatnonzero(is_compute | is_reduce)
    if not len(timed):
        return durations
    unit = (matrix[program.op_class[timed]] & ~is_reduce[timed]).astype(np.int64)
    peak = _peaks(program, timed, device)[unit, program.number_format[timed]]
    durations[timed] = _roofline_ps(
        device, program.flops[timed], peak, program.read_bytes[timed], program.write_bytes[timed]
    )
    durations[timed] += np.where(is_reduce[timed], device.combine_ps, device.op_launch_ps)
    return durations


def work_ps(device: DeviceSpec, op_class: str, number_format: str, work: Work) -> int:
    """Duration of one COMPUTE op with this work: what `durations_ps` gives it in a Program.

    Raises:
        InputError: the device has a rate or bandwidth that is not positive.
    """
    name = base_name(op_class)
    if name in VIEWS | ALLOCATIONS or work == Work(0, 0, 0):
        return 0
    peak = _positive(device, f"{number_format} flop/s", flops_per_s(device, number_format, matrix=name in MATRIX))
    flops, read_bytes, write_bytes = (np.array([n], np.int64) for n in (work.flops, work.read_bytes, work.write_bytes))
    return int(_roofline_ps(device, flops, np.array([peak]), read_bytes, write_bytes)[0]) + device.op_launch_ps


def combine_cost(device: DeviceSpec | None, number_format: str) -> Callable[[Int64Array], Int64Array]:
    """A function from sizes in bytes to the ps of adding a received piece of that size to the device's own.

    It is what `durations_ps` gives a REDUCE op with the work of "reduce_sum": one flop per element, both pieces
    read, the sum written.

    Raises:
        InputError: the device has a rate or bandwidth that is not positive.
    """
    if device is None:
        return np.zeros_like
    spec = device
    bits = bits_of(number_format)
    peak = np.array(_positive(spec, "vector flop/s", flops_per_s(spec, number_format, matrix=False)), dtype=np.int64)

    def cost_ps(size_bytes: Int64Array) -> Int64Array:
        size = np.asarray(size_bytes, dtype=np.int64)
        elements = _ceil_divide(8 * size, np.int64(bits))
        return (_roofline_ps(spec, elements, peak, 2 * size, size) + spec.combine_ps).reshape(size.shape)

    return cost_ps


def _peaks(program: Program, timed: Int64Array, device: DeviceSpec) -> Int64Array:
    """Flop/s by [unit, number format] for the formats of the timed ops; unit 0 is vector, 1 is matrix."""
    peaks = np.ones((2, len(program.number_formats)), dtype=np.int64)
    for index in np.unique(program.number_format[timed]):
        name = program.number_formats[index]
        for matrix in (False, True):
            peaks[int(matrix), index] = _positive(device, f"{name} flop/s", flops_per_s(device, name, matrix=matrix))
    return peaks


def _roofline_ps(
    device: DeviceSpec, flops: Int64Array, peak: Int64Array, read_bytes: Int64Array, write_bytes: Int64Array
) -> Int64Array:
    """The longest of arithmetic, loads and stores, rounded up to a picosecond."""
    load = np.int64(_positive(device, "load bandwidth", device.load_bytes_per_s))
    store = np.int64(_positive(device, "store bandwidth", device.store_bytes_per_s))
    longest = _time_ps(flops, peak)
    np.maximum(longest, _time_ps(read_bytes, load), out=longest)
    np.maximum(longest, _time_ps(write_bytes, store), out=longest)
    return longest


def _time_ps(amount: Int64Array, rate_per_s: Int64Array | np.int64) -> Int64Array:
    """ceil(amount * 1e12 / rate), exactly, although the product does not fit 64 bits.

    The quotient is estimated in floating point; the remainder that the estimate leaves is small, so it is exact in
    arithmetic modulo 2**64, and corrects the estimate. Holds for durations below 2**51 ps = 37 minutes an op.
    """
    rate = np.asarray(rate_per_s, dtype=np.int64)
    amount = np.atleast_1d(amount)
    estimate = (amount * (_PS_PER_S / rate)).astype(np.int64)
    remainder = amount * np.int64(_PS_PER_S) - estimate * rate
    return estimate + _ceil_divide(remainder, rate)


def _ceil_divide(numerator: Int64Array, denominator: Int64Array | np.int64) -> Int64Array:
    """Integer division rounded up, denominator > 0."""
    return -(-numerator // denominator)


def _positive(device: DeviceSpec, what: str, rate: int) -> int:
    """The rate, if it is one."""
    if rate <= 0:
        raise InputError(f"device {device.name}: {what} = {rate} must be > 0")
    return rate
