"""The machine that this runs on as a device of the model: rates from measured ops, and steps as Programs for it."""

from collections.abc import Sequence
from typing import Any

from meshemu.cost import Measured
from meshemu.cost.op_classes import MATRIX
from meshemu.emulator.prepare import PreparedStep, prepare
from meshemu.emulator.timed_step import TimingOptions
from meshemu.execute.host_steps import HostStep
from meshemu.hardware import DeviceSpec, System
from meshemu.runtime.local import SingleComm

__all__ = ["UNMEASURED", "core", "prepared_step", "system"]

UNMEASURED = DeviceSpec(
    name="a core of this machine",
    n_nodes=1,
    matrix_flops_per_s={"fp32": 10**11},
    vector_flops_per_s={"fp32": 10**10},
    sram_bytes=2**62,
    load_bytes_per_s=10**10,
    store_bytes_per_s=10**10,
    op_launch_ps=0,
    combine_ps=0,
)
"""A core before anything is known of it."""


def core(rows: Sequence[Measured]) -> DeviceSpec:
    """A core with the best rates that the rows show, rounded up: no op of theirs is faster than its roofline."""
    known = [row for row in rows if row.time_ps > 0 and row.number_format]

    def best(amounts: list[tuple[int, int]], least: int) -> int:
        return max((-(-amount * 10**12 // time_ps) for amount, time_ps in amounts), default=least) or least

    matrix = [(row.flops, row.time_ps) for row in known if row.op_class in MATRIX]
    vector = [(row.flops, row.time_ps) for row in known if row.op_class not in MATRIX]
    spec = UNMEASURED
    return DeviceSpec(
        **{
            **vars(spec),
            "matrix_flops_per_s": {"fp32": best(matrix, spec.matrix_flops_per_s["fp32"])},
            "vector_flops_per_s": {"fp32": best(vector, spec.vector_flops_per_s["fp32"])},
            "load_bytes_per_s": best([(row.read_bytes, row.time_ps) for row in known], spec.load_bytes_per_s),
            "store_bytes_per_s": best([(row.write_bytes, row.time_ps) for row in known], spec.store_bytes_per_s),
        }
    )


def system(device: DeviceSpec | None, n_cores: int, bandwidth_bytes_per_s: int, latency_ps: int) -> System:
    """So many cores in a row, joined by links with the measured rate and latency of messages between ranks.

    device: None for cores that only exchange messages.
    """
    return System.grid(
        rows=1, cols=n_cores, bandwidth=bandwidth_bytes_per_s, latency=f"{latency_ps} ps", device=device
    )


def prepared_step(step: HostStep, device: DeviceSpec) -> PreparedStep:
    """A step as a Program for one core."""

    def maths(call: Any, batch: Any) -> Any:
        return step.loss(call(batch[0]), batch[1])

    return prepare(
        step.model, step.batch, maths, system=system(device, 1, 1, 0), plan={"data": 1}, options=TimingOptions(),
        comm=SingleComm(), optimizer=step.optimizer,
    )  # fmt: skip
