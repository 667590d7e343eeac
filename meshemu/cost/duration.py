"""How long each op of a Program takes on a device, in whole picoseconds, and what bounds it.

COMPUTE takes the longest of its arithmetic, its loads and its stores (`cost.terms`), rounded up, and the launch of one
op. REDUCE takes the same on the vector unit and the fixed cost of one combination. INTERFACE takes what
`cost.interfaces` says. Ops without work (views), SEND and RECV take nothing: what messages cost is for the network to
say. The roofline is that of Williams, Waterman and Patterson, 2009, with loads and stores on ports of their own.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from meshemu.cost.calibrated import calibrated
from meshemu.cost.exact import ceil_divide, time_ps
from meshemu.cost.fusion import Costs, fused, separate
from meshemu.cost.interfaces import InterfaceRates, interface_durations_ps
from meshemu.cost.number_formats import bits_of, flops_per_s
from meshemu.cost.op_classes import ALLOCATIONS, VIEWS, base_name
from meshemu.cost.options import PLAIN, CostOptions
from meshemu.cost.terms import BROADCAST, MATRIX_UNIT, Ops, positive, terms
from meshemu.hardware.device import DeviceSpec
from meshemu.program.ir import OpKind, Program

__all__ = ["BOUNDS", "bounds", "combine_cost", "durations_ps"]

BOUNDS = ("none", "matrix", "vector", "load", "store", "broadcast", "launch", "combine")
"""What an op can be bound by: nothing (it takes no time), the matrix unit, the vector unit, loads, stores, the on-die
network that carries operands to nodes, or the fixed cost of a launch or of a combination.
"""

Int64Array = NDArray[np.int64]


def durations_ps(
    program: Program,
    device: DeviceSpec | None,
    options: CostOptions = PLAIN,
    interfaces: InterfaceRates | None = None,
) -> Int64Array:
    """Duration of every op, int64 (n_ops,), in ps; without a device only of those at interface processors, since links
    alone are timed then.

    Raises:
        InputError: the device has a rate or bandwidth that is not positive; the Program has ops of interface
            processors, and there are none.
    """
    durations = interface_durations_ps(program, interfaces)
    timed, ops, costs = _timed(program, device, options)
    if device is None or not len(timed):
        return durations
    durations[timed] = terms(ops, device).total_ps
    if options.calibration is not None:
        durations[timed] = calibrated(durations[timed], ops, ~costs.changed[timed], device, options.calibration)
    return durations


def bounds(program: Program, device: DeviceSpec | None, options: CostOptions = PLAIN) -> NDArray[np.int8]:
    """What bounds every op by the model, int8 (n_ops,): indices of BOUNDS. Calibration leaves them as they are."""
    codes = np.zeros(program.n_ops, np.int8)
    timed, ops, _ = _timed(program, device, options)
    if device is None or not len(timed):
        return codes
    found = terms(ops, device)
    unit = np.where(found.unit == BROADCAST, 5, np.where(found.unit == MATRIX_UNIT, 1, 2))
    parts = np.stack((found.compute_ps, found.load_ps, found.store_ps, found.fixed_ps))
    of_part = np.stack((unit, np.full_like(unit, 3), np.full_like(unit, 4), np.where(ops.is_reduce, 7, 6)))
    code = np.take_along_axis(of_part, parts.argmax(axis=0)[None], axis=0)[0]
    codes[timed] = np.where(found.total_ps > 0, code, 0)
    return codes


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
    peak = positive(spec, "vector flop/s", flops_per_s(spec, number_format, matrix=False))
    load = positive(spec, "load bandwidth", spec.load_bytes_per_s)
    store = positive(spec, "store bandwidth", spec.store_bytes_per_s)

    def cost_ps(size_bytes: Int64Array) -> Int64Array:
        size = np.asarray(size_bytes, dtype=np.int64)
        elements = ceil_divide(8 * size, np.int64(bits))
        longest = np.maximum(np.maximum(time_ps(elements, peak), time_ps(2 * size, load)), time_ps(size, store))
        return (longest + spec.combine_ps).reshape(size.shape)

    return cost_ps


def _timed(program: Program, device: DeviceSpec | None, options: CostOptions) -> tuple[Int64Array, Ops, Costs]:
    """Ids of the ops that take time, what they ask of the device, and what all ops cost after fusion."""
    costs = fused(program) if options.fusion else separate(program)
    worked = (program.flops > 0) | (program.read_bytes > 0) | (program.write_bytes > 0)
    in_place = np.array([base_name(name) in VIEWS | ALLOCATIONS for name in program.op_classes], dtype=np.bool_)
    is_reduce = program.kind == OpKind.REDUCE
    is_compute = (program.kind == OpKind.COMPUTE) & worked
    if program.op_classes:
        is_compute &= ~in_place[program.op_class]
    timed = np.flatnonzero(is_compute | is_reduce) if device is not None else np.zeros(0, np.int64)
    ops = Ops(
        op_class=program.op_class[timed],
        number_format=program.number_format[timed],
        shape=program.shape[timed],
        is_reduce=is_reduce[timed],
        launched=costs.launched[timed],
        flops=program.flops[timed],
        read_bytes=costs.read_bytes[timed],
        write_bytes=costs.write_bytes[timed],
        op_classes=program.op_classes,
        number_formats=program.number_formats,
        shapes=program.shapes,
    )
    return timed, ops, costs
