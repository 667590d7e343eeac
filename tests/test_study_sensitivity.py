"""How much a step depends on each figure, and what classes of ops achieve: by hand."""

import numpy as np
import pytest

from meshemu.cost.interfaces import interfaces_of
from meshemu.errors import InputError
from meshemu.hardware import DeviceSpec, System
from meshemu.program.builder import ProgramBuilder
from meshemu.program.interfaces import from_host
from meshemu.program.ir import Program
from meshemu.study.sensitivity import achieved, sensitivity

CHIP = DeviceSpec(
    name="chip", n_nodes=1, matrix_flops_per_s={"bf16": 10**13, "fp32": 10**12}, vector_flops_per_s={"fp32": 10**12},
    sram_bytes=2**20, load_bytes_per_s=10**12, store_bytes_per_s=10**12, op_launch_ps=0, combine_ps=0,
)  # fmt: skip
SYSTEM = System.grid(rows=1, cols=2, bandwidth="100 GB/s", latency="200 ns", device=CHIP)


def program() -> Program:
    """Two products of 20 and 10 us, an addition of 5 us by its loads, and a message of 1 us + 200 ns, in a row.

    Beside them, a rename and a combination, of which nothing is achieved.
    """
    builder = ProgramBuilder(2)
    last = np.array([], np.int64)
    for op_class, number_format, flops, read in (
        ("mm", "bf16", 2 * 10**8, 0), ("mm", "fp32", 10**7, 0), ("add", "fp32", 10**6, 5 * 10**6),
        ("view", "fp32", 0, 0),
    ):  # fmt: skip
        work = builder.compute(
            [0], label="x", op_class=op_class, number_format=number_format, flops=flops, read_bytes=read, write_bytes=0
        )
        builder.depend(work, last)
        last = work
    message, send, received = builder.messages([0], [1], 10**5, label="move")
    builder.depend(send, last)
    add = builder.reduce(
        [1], label="fold", op_class="add", number_format="fp32", flops=1, read_bytes=10**6, write_bytes=1,
        message=message,
    )  # fmt: skip
    builder.depend(add, received)
    return builder.build()


def test_figures_are_doubled_and_halved_each_by_itself() -> None:
    """20 + 10 + 5 + 1 + 0.2 us, and 1 us in which the second device loads what it combines."""
    keys = ["device.matrix.bf16", "device.load_bandwidth", "link.latency", "device.vector.fp32"]
    total = 37.2
    found = {row.key: row for row in sensitivity(program(), SYSTEM, keys)}
    assert list(found) == keys
    for key, faster, slower in (
        (keys[0], -10, 20), (keys[1], -2.5 - 0.5, 5 + 1), (keys[2], 0.2, -0.1), (keys[3], 0, 0),
    ):  # fmt: skip
        assert found[key].doubled == pytest.approx((total + faster) / total, rel=1e-4), key
        assert found[key].halved == pytest.approx((total + slower) / total, rel=1e-4), key
    assert (found[keys[2]].value, found[keys[2]].grade) == ("200 ns", "given")


def test_what_classes_of_ops_achieve() -> None:
    """Products are at their peaks in two formats; what loads bound is at a fifth of its vector unit."""
    products, addition = achieved(program(), CHIP)
    assert (products.op_class, products.ops, products.time_ps, products.bound) == ("mm", 2, 30_000_000, "matrix")
    assert products.of_peak == pytest.approx(1)
    assert (addition.op_class, addition.ops, addition.time_ps, addition.bound) == ("add", 1, 5_000_000, "load")
    assert addition.of_peak == pytest.approx(0.2)
    assert achieved(program(), CHIP, most=1) == [products]


def test_a_step_with_ingest() -> None:
    """What comes in over PCIe is no class that achieves anything, and hangs on the figures of interface processors."""
    system = System.preset("dojo-tile")
    builder = ProgramBuilder(25)
    work = {"label": "x", "number_format": "bf16", "read_bytes": 0, "write_bytes": 0}
    builder.compute([0], op_class="mm", flops=10**9, **work)
    from_host(builder, [0], 0, 64 * 10**6, "batch")
    (products,) = achieved(builder.build(), system.device, interfaces=interfaces_of(system))
    assert (products.op_class, products.ops) == ("mm", 1)
    (pcie,) = sensitivity(builder.build(), system, ["interface.pcie_bandwidth"])
    assert (pcie.doubled, pcie.halved) == (1, 2), "hosts make ready no more than PCIe carries"


def test_a_class_is_bound_by_what_takes_most_of_its_time() -> None:
    """Of three ops two are tiny, and bound by loads; the third takes the time."""
    builder = ProgramBuilder(1)
    for flops, read in ((10**6, 2 * 10**6), (10**8, 0), (0, 10**6)):
        builder.compute(
            [0], label="x", op_class="add", number_format="fp32", flops=flops, read_bytes=read, write_bytes=0
        )
    (row,) = achieved(builder.build(), CHIP)
    assert (row.bound, row.ops) == ("vector", 3)


def test_a_figure_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="moon"):
        sensitivity(program(), SYSTEM, ["moon"])
