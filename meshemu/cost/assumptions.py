"""The simplifications that a set of durations rests on, in words: they go into the results file and the report."""

from dataclasses import dataclass

import numpy as np

from meshemu.cost.number_formats import flops_per_s, is_supported
from meshemu.cost.op_classes import ATTENTION, is_listed
from meshemu.hardware.device import DeviceSpec
from meshemu.program.ir import OpKind, Program

__all__ = ["Assumption", "assumptions"]


@dataclass(frozen=True)
class Assumption:
    """A key to refer to, and one sentence."""

    key: str
    sentence: str


def assumptions(device: DeviceSpec | None, program: Program) -> list[Assumption]:
    """The assumptions that apply to this Program on this device, in a fixed order."""
    if device is None:
        return [Assumption("no_compute_time", "The devices have no compute rates: all ops take zero time.")]
    computed = np.flatnonzero((program.kind == OpKind.COMPUTE) | (program.kind == OpKind.REDUCE))
    op_classes = [program.op_classes[i] for i in np.unique(program.op_class[computed])]
    number_formats = [program.number_formats[i] for i in np.unique(program.number_format[computed])]
    found = [*_always(device), *_of_device(device, program)]
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


def _always(device: DeviceSpec) -> list[Assumption]:
    """What holds for any Program."""
    return [
        Assumption(
            "roofline",
            "An op takes the longest of arithmetic, loads and stores at 100 % of their peak rates; the fit of shapes "
            "to the matrix unit is not modelled.",
        ),
        Assumption(
            "memory_traffic",
            "Each op reads its inputs from SRAM and writes its outputs to it once; neighbouring ops are not fused.",
        ),
        Assumption(
            "sram_capacity",
            f"Blocks are taken to fit the {device.sram_bytes:,} bytes of SRAM of a device: spilling is not modelled.",
        ),
    ]


def _of_device(device: DeviceSpec, program: Program) -> list[Assumption]:
    """What follows from the figures of the device."""
    found = []
    if device.n_nodes > 1:
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
