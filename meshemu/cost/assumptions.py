"""The simplifications that a set of durations rests on, in words: they go into the results file and the report."""

from dataclasses import dataclass

import numpy as np

from meshemu.cost.calibrated import factors
from meshemu.cost.number_formats import flops_per_s, is_supported
from meshemu.cost.op_classes import ATTENTION, MATRIX, base_name, is_listed
from meshemu.cost.options import PLAIN, CostOptions
from meshemu.hardware.device import DeviceSpec
from meshemu.program.ir import OpKind, Program

__all__ = ["Assumption", "assumptions"]


@dataclass(frozen=True)
class Assumption:
    """A key to refer to, and one sentence."""

    key: str
    sentence: str


def assumptions(device: DeviceSpec | None, program: Program, options: CostOptions = PLAIN) -> list[Assumption]:
    """The assumptions that apply to this Program on this device, in a fixed order."""
    if device is None:
        return [Assumption("no_compute_time", "The devices have no compute rates: all ops take zero time.")]
    computed = np.flatnonzero((program.kind == OpKind.COMPUTE) | (program.kind == OpKind.REDUCE))
    op_classes = [program.op_classes[i] for i in np.unique(program.op_class[computed])]
    number_formats = [program.number_formats[i] for i in np.unique(program.number_format[computed])]
    found = [*_always(device, options), *_of_shapes(device, program), *_of_device(device, program)]
    if options.calibration is not None:
        found.append(_of_calibration(device, options, op_classes))
    found += [_stand_in(device, name) for name in number_formats if not is_supported(device, name)]
    if ATTENTION.intersection(op_classes):
        found.append(Assumption(
            "causal_attention", "Attention counts every pair of query and key: a causal mask saves no arithmetic."
        ))
    unlisted = [name for name in op_classes if not is_listed(name)]
    if unlisted:
        found.append(Assumption(
            "unlisted_ops", f"Ops without a work formula count one flop per output element: {', '.join(unlisted)}."
        ))
    return found


def _always(device: DeviceSpec, options: CostOptions) -> list[Assumption]:
    """What holds for any Program."""
    fusion = (
        "a pointwise op runs within the op that makes what it alone reads: that block is neither stored nor loaded, "
        "and the op not launched"
        if options.fusion
        else "neighbouring ops are not fused"
    )
    return [
        Assumption(
            "roofline", "An op takes the longest of arithmetic, loads and stores at 100 % of their peak rates."
        ),
        Assumption(
            "memory_traffic", f"Each op reads its inputs from SRAM and writes its outputs to it once; {fusion}."
        ),
        Assumption(
            "sram_capacity",
            f"Blocks are in the {device.sram_bytes:,} bytes of SRAM of a device: a step that needs more is refused, "
            "made to fit by making activations again or by spilling them to interface processors, or let pass, as "
            "memory.when_full says.",
        ),
    ]


def _of_shapes(device: DeviceSpec, program: Program) -> list[Assumption]:
    """How shapes count."""
    if device.matrix_unit is None:
        return [Assumption("shapes", "The fit of shapes to the units of a device is not modelled.")]
    sides = " x ".join(map(str, device.matrix_unit))
    rate = device.ingest_bytes_per_s
    shared = f"are sent to them at {rate / 1e9:g} GB/s a node" if rate else "reach them in no time"
    found = [Assumption(
        "shapes",
        f"Products are cut over the nodes of a device as takes least time, and a node computes whole ones of {sides}; "
        f"operands that nodes share {shared}. Elements of other ops are dealt out in vectors of {device.vector_bytes} "
        "B.",
    )]  # fmt: skip
    products = np.array([base_name(name) in MATRIX for name in program.op_classes], np.bool_)
    unknown = (program.kind == OpKind.COMPUTE) & (program.shape < 0) & (program.flops > 0)
    unknown &= products[program.op_class] if len(products) else False
    if unknown.any():
        found.append(Assumption(
            "unknown_shapes",
            f"{int(unknown.sum()):,} products are stored without shapes, as before layout 3: they run at the peak "
            "rate.",
        ))
    return found


def _of_calibration(device: DeviceSpec, options: CostOptions, op_classes: list[str]) -> Assumption:
    """Which times are measured ones."""
    assert options.calibration is not None
    known = factors(device, options.calibration)
    used = ", ".join(f"{name} {known[name]:.3g}" for name in sorted({base_name(n) for n in op_classes} & known.keys()))
    return Assumption(
        "calibration",
        f"Ops with a row in {options.calibration} take the time measured there; others of its classes take the model's "
        f"times the median ratio of the class: {used or 'none here'}.",
    )


def _of_device(device: DeviceSpec, program: Program) -> list[Assumption]:
    """What follows from the figures of the device."""
    found = []
    if device.n_nodes > 1 and device.matrix_unit is None:
        found.append(Assumption(
            "node_spread",
            f"Each op spreads perfectly over the {device.n_nodes:,} nodes of a device, whose SRAM acts as one.",
        ))
    found.append(Assumption("op_launch", f"Starting an op costs {device.op_launch_ps:,} ps, whatever the op."))
    if np.any(program.kind == OpKind.REDUCE):
        found.append(Assumption(
            "combine",
            f"Combining a received piece costs {device.combine_ps:,} ps besides its arithmetic and memory traffic.",
        ))
    return found


def _stand_in(device: DeviceSpec, number_format: str) -> Assumption:
    """How a number format is timed that the device does not list."""
    matrix, vector = (flops_per_s(device, number_format, matrix=matrix) for matrix in (True, False))
    return Assumption(
        f"number_format_{number_format}",
        f"The device lists no rate for {number_format}: timed at {matrix / 1e12:g} TFLOP/s (matrix) and "
        f"{vector / 1e12:g} TFLOP/s (vector), those of the next wider format it lists, or of its slowest if none is.",
    )
