"""What-if of interface processors and of how shapes fit a node, on steps whose times arithmetic says."""

from typing import Any

import numpy as np
import pytest
from stored_step import stored_step
from test_study_whatif import DEVICE, GRID, a_step

from meshemu import System
from meshemu.analysis.critical_path import PARTS
from meshemu.cost import durations_ps
from meshemu.hardware import DeviceSpec
from meshemu.program import Program, ProgramBuilder, from_host, to_device
from meshemu.study.machine import machine_of, open_step, timed
from meshemu.study.parameters import parameters
from meshemu.study.whatif import whatif
from meshemu.study.whatif_report import render

GB = 10**9
TILE = System.preset("dojo-tile").override({
    "interface.host_bandwidth": "400 GB/s", "interface.pcie_bandwidth": "10 GB/s",
    "interface.memory_bandwidth": "200 GB/s", "interface.link_bandwidth": "100 GB/s",
})  # fmt: skip
SIZE = 10**6


def ps(size_bytes: int, gb_per_s: float) -> float:
    return size_bytes / gb_per_s * 1000


def bringing(copies: int) -> Program:
    """A piece over PCIe, then so many copies of it over the link, the last of which a neighbour needs."""
    builder = ProgramBuilder(25)
    there = from_host(builder, 10, 0, SIZE, "batch")
    arrived = to_device(builder, [10] * copies, 0, SIZE, "batch", [there])
    _, send, _ = builder.messages(10, 11, SIZE, label="batch")
    builder.depend(send, arrived[-1])
    return builder.build()


def test_every_figure_of_interface_processors_has_its_effect(tmp_path: Any) -> None:
    """A million bytes: 100 us over PCIe at 10 GB/s, 4 x 10 us over the link, 0.2 us of latency, 0.6 us on the mesh."""
    study = whatif(stored_step(tmp_path / "run.h5", bringing(4), TILE), scales=[2.0, 0.5, 0.04])
    base = ps(SIZE, 10) + 4 * ps(SIZE, 100) + 200_000 + 100_000 + ps(SIZE, 2000)
    assert study.baseline.time_ps == base
    assert study.baseline.parts_ps["ingest_ps"] == base - 100_000 - ps(SIZE, 2000)
    assert sum(study.baseline.parts_ps.values()) == base and set(study.baseline.parts_ps) == {f"{p}_ps" for p in PARTS}
    assert study.baseline.bound_by == "ingest (PCIe of interface processor 0)"
    rest = base - ps(SIZE, 10)
    wanted = {
        "interface.pcie_bandwidth": (ps(SIZE, 20) + rest, ps(SIZE, 5) + rest, ps(SIZE, 0.4) + rest),
        "interface.host_bandwidth": (base, base, base),  # 16 GB/s are more than PCIe takes
        "interface.memory_bandwidth": (base, base, ps(SIZE, 8) + rest + 4 * (ps(SIZE, 8) - ps(SIZE, 100))),
        "interface.link_bandwidth": (
            base - 4 * ps(SIZE, 200), base + 4 * ps(SIZE, 100), base + 4 * (ps(SIZE, 4) - ps(SIZE, 100)),
        ),
        "interface.link_latency": (base + 200_000, base - 100_000, base - 192_000),
    }  # fmt: skip
    rows = {row.name: row for row in study.rows}
    for name, times in wanted.items():
        assert [point.time_ps for point in rows[name].points.values()] == list(times), name
    assert study.rows[0].name == study.next.name == "interface.pcie_bandwidth"
    assert rows["interface.pcie_bandwidth"].elasticity == pytest.approx(-100 / 140.9, rel=0.01)
    assert study.next.point.bound_by == "ingest (PCIe of interface processor 0)"
    assert "PCIe into an interface processor" in render(study)
    assert "ingest 99." in render(study)  # of the critical path
    (dead,) = (row for row in study.events if row.name == "dead_device")  # the machine is made anew
    assert dead.point is not None and dead.point.time_ps == base


def test_a_step_without_ingest_has_no_such_parameters(tmp_path: Any) -> None:
    step = open_step(stored_step(tmp_path / "run.h5", a_step(25, flops=10**9), TILE))
    assert not any(name.startswith("interface.") for name in parameters(step.machine))
    assert timed(step, step.machine).time_ps > 0


FITTED = DeviceSpec(
    name="device", n_nodes=4, matrix_flops_per_s={"bf16": 4 * 10**12}, vector_flops_per_s={"bf16": 10**10},
    sram_bytes=2**20, load_bytes_per_s=10**13, store_bytes_per_s=10**13, op_launch_ps=0, combine_ps=0,
    matrix_unit=(8, 8, 4), vector_bytes=64, ingest_bytes_per_s=10**11,
)  # fmt: skip


def duration_ps(device: DeviceSpec, product: tuple[int, ...]) -> int:
    batch, m, n, k = product
    builder = ProgramBuilder(1)
    shape = builder.shape(((batch, m, n, k, batch * m * k, batch * k * n),))
    work = {"flops": 2 * batch * m * n * k, "read_bytes": 0, "write_bytes": 0, "shape": shape}
    builder.compute([0], label="x", op_class="bmm", number_format="bf16", **work)
    return int(durations_ps(builder.build(), device)[0])


def test_the_matrix_unit_is_scaled_side_by_side() -> None:
    """Four products, one a node: steps of 2 m n k flops at 1 TFLOP/s each, whole ones of every side."""
    machine = machine_of(System.grid(rows=1, cols=2, bandwidth="1 GB/s", latency="1 ns", device=FITTED))
    known = parameters(machine)
    product = (4, 12, 8, 10)

    def wanted(m: int, n: int, k: int) -> int:
        return -(-12 // m) * -(-8 // n) * -(-10 // k) * 2 * m * n * k

    assert duration_ps(FITTED, product) == wanted(8, 8, 4) == 2 * 1 * 3 * 512
    for name, factor, sides in (
        ("m", 2.0, (16, 8, 4)), ("m", 0.5, (4, 8, 4)), ("n", 2.0, (8, 16, 4)), ("n", 0.5, (8, 4, 4)),
        ("k", 2.0, (8, 8, 8)), ("k", 0.5, (8, 8, 2)), ("k", 0.01, (8, 8, 1)), ("m", 1.05, (8, 8, 4)),
    ):  # fmt: skip
        device = known[f"matrix_unit.{name}"].change(machine, factor).device
        assert device is not None and device.matrix_unit == sides
        assert device.matrix_flops_per_s == FITTED.matrix_flops_per_s
        assert duration_ps(device, product) == wanted(*sides)
    wider = known["vector_width"].change(machine, 2.0).device
    assert wider is not None and wider.vector_bytes == 128
    assert known["vector_width"].change(machine, 1e-6).device.vector_bytes == 1  # 0 would mean that nothing is known
    assert known["broadcast_bandwidth"].change(machine, 0.5).device.ingest_bytes_per_s == 5 * 10**10
    assert not {"matrix_unit.m", "vector_width", "broadcast_bandwidth"} & set(parameters(machine_of(GRID)))


def test_operands_that_nodes_share_take_their_bandwidth() -> None:
    """One product cut over four nodes in rows or columns: what all need is taken in at 100 GB/s, or twice that."""
    machine = machine_of(System.grid(rows=1, cols=2, bandwidth="1 GB/s", latency="1 ns", device=FITTED))
    change = parameters(machine)["broadcast_bandwidth"].change
    product = (1, 32, 8, 4096)
    slow, usual, fast = (
        duration_ps(change(machine, factor).device or DEVICE, product) for factor in (0.25, 1.0, 4.0)
    )
    assert slow > usual >= fast
    assert np.isclose(duration_ps(change(machine, 1e4).device or DEVICE, product), 32 * 8 * 4096 * 2 / 4, rtol=0.01)
