"""Products cut over nodes, against all cuts by brute force and numbers by hand; vectors dealt out; bounds; fusion."""

from fractions import Fraction
from itertools import product as every
from math import ceil, prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshemu.cost import BOUNDS, CostOptions, TensorSpec, Work, bounds, durations_ps, op_work, work_ps
from meshemu.cost.fusion import fused, separate
from meshemu.cost.spread import product_time
from meshemu.errors import ScheduleError
from meshemu.hardware import DeviceSpec, System
from meshemu.program.arrays import arrays, equal, from_arrays, tables
from meshemu.program.builder import ProgramBuilder
from meshemu.program.ir import Program
from meshemu.program.text import from_text, to_text
from meshemu.program.verify import verify

NODE = 1_024_000_000_000  # flop/s of the matrix unit of a node, 2 x 8 x 8 x 4 at 2 GHz


def chip(n_nodes: int, **changes: Any) -> DeviceSpec:
    """So many nodes of a D1, without fixed costs."""
    figures: dict[str, Any] = {
        "name": "chip", "n_nodes": n_nodes, "matrix_flops_per_s": {"bf16": n_nodes * NODE},
        "vector_flops_per_s": {"bf16": n_nodes * NODE // 8, "fp32": n_nodes * NODE // 16},
        "sram_bytes": 10**9, "load_bytes_per_s": n_nodes * 400 * 10**9, "store_bytes_per_s": n_nodes * 270 * 10**9,
        "op_launch_ps": 0, "combine_ps": 0, "matrix_unit": (8, 8, 4), "vector_bytes": 64,
        "ingest_bytes_per_s": 128 * 10**9,
    }  # fmt: skip
    return DeviceSpec(**{**figures, **changes})


def time_of(spec: DeviceSpec, *dims: int) -> int:
    batch, m, n, k = dims
    return product_time(spec, "bf16", (batch, m, n, k, batch * m * k, batch * k * n)).total_ps


def brute_force(n_nodes: int, batch: int, m: int, n: int, k: int) -> int:
    """Least time over every cut whatsoever, pipe by pipe, from the rules as docs/cost-model.md states them."""
    least = None
    pipes = (((8, 8, 4), 500), ((32, 1, 1), 500), ((1, 32, 1), 500))  # ps of one whole product on a node
    for (sides, step_ps), pb, pm, pn, pk in every(pipes, *(range(1, n_nodes + 1),) * 4):
        if pb * pm * pn * pk > n_nodes or pk & (pk - 1):
            continue
        whole = (batch, ceil(m / sides[0]), ceil(n / sides[1]), ceil(k / sides[2]))
        parts = [ceil(length / p) for length, p in zip(whole, (pb, pm, pn, pk), strict=True)]
        rows, cols, terms = (min(q * a, z) for q, a, z in zip(parts[1:], sides, (m, n, k), strict=True))
        taken = (pn > 1) * parts[0] * rows * terms + (pm > 1) * parts[0] * cols * terms
        moved = Fraction(parts[0] * rows * cols * (pk - 1), pk)
        ingest = Fraction(2 * taken * 10**12, 128 * 10**9)
        exchange = ceil(moved) * (Fraction(4 * 10**12, 128 * 10**9) + Fraction(16 * 10**12, NODE))
        time = max(Fraction(prod(parts) * step_ps), ingest) + exchange
        least = time if least is None else min(least, time)
    assert least is not None
    return ceil(least)


dims = st.integers(1, 70)


@given(st.integers(1, 12), st.integers(1, 5), dims, dims, dims)
@settings(max_examples=12, derandomize=True, deadline=None)
def test_no_cut_is_faster(n_nodes: int, batch: int, m: int, n: int, k: int) -> None:
    difference = time_of(chip(n_nodes), batch, m, n, k) - brute_force(n_nodes, batch, m, n, k)
    assert abs(difference) <= 3, "each part rounds up"


def test_products_by_hand() -> None:
    one = chip(1)
    assert time_of(one, 1, 8, 8, 4) == 500, "one whole product is one clock of 2 GHz"
    assert time_of(one, 1, 9, 8, 4) == 1000, "a ninth row starts another"
    assert time_of(one, 3, 16, 8, 5) == 3 * 2 * 2 * 500
    assert time_of(one, 1, 64, 1, 1) == 2 * 500, "two vectors of 32 lanes, where the matrix unit would take 8 clocks"
    four = chip(4)
    # 32 rows of 8 columns: four nodes of 8 rows each, which all need the 8 x 4096 weights, 64 KiB at 128 GB/s.
    assert time_of(four, 1, 32, 8, 4096) == max(1024 * 500, 65536 * 10**12 // (128 * 10**9))
    # A batch of four: each node has its own operands and nothing moves.
    assert time_of(four, 4, 8, 8, 4096) == 1024 * 500
    # Four nodes of 1,024 rows (or columns) each, 64 ns, while 8 x 4 elements that all need come in: 64 B at 0.5 GB/s.
    slow = chip(4, ingest_bytes_per_s=5 * 10**8)
    assert time_of(slow, 1, 4096, 8, 4) == time_of(slow, 1, 8, 4096, 4) == 128_000
    assert time_of(slow, 2, 8, 4096, 4) == 128_000, "of two products each node takes in its own one's"
    # As below, and 48 partial sums of 4 B come in at 128 GB/s.
    assert time_of(four, 1, 8, 8, 4096) == 256 * 500 + 48 * 4 * 10**12 // (128 * 10**9) + 48 * 10**12 // (NODE // 16)
    free = chip(4, ingest_bytes_per_s=0)
    # The sum over K cut in four: 256 clocks, then each node adds 3/4 of the 64 partial sums at 64 GFLOP/s of fp32.
    assert time_of(free, 1, 8, 8, 4096) == 256 * 500 + 48 * 10**12 // (NODE // 16)
    # 8 x 8 nodes, one clock each, while 8 x 4 elements of either operand come in: 128 B.
    small = product_time(chip(64), "bf16", (1, 64, 64, 4, 256, 256))
    assert (small.arithmetic_ps, small.ingest_ps, small.exchange_ps, small.total_ps) == (500, 1000, 0, 1000)
    assert small.matrix and not product_time(one, "bf16", (1, 64, 1, 1, 64, 1)).matrix


def test_shapes_that_fit_run_at_the_peak_and_others_lose() -> None:
    spec = chip(16, ingest_bytes_per_s=0)
    for m, as_long_as in ((512, 512), (513, 520), (8, 8), (5, 8)):  # nodes side by side along the 64 columns of units
        work = op_work("mm", [TensorSpec((m, 512), 2), TensorSpec((512, 512), 2)], [TensorSpec((m, 512), 2)], {})
        assert work_ps(spec, "mm", "bf16", work) == Fraction(2 * as_long_as * 512 * 512 * 10**12, 16 * NODE)


@given(st.integers(1, 400), st.integers(1, 4), *(st.integers(1, 3000),) * 3, st.integers(0, 3), st.integers(1, 40))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_more_takes_no_less_and_two_halves_no_less_than_the_whole(
    n_nodes: int, batch: int, m: int, n: int, k: int, which: int, more: int
) -> None:
    spec, size = chip(n_nodes), [batch, m, n, k]
    larger, double = list(size), list(size)
    larger[which] += more
    double[which] *= 2
    time = time_of(spec, *size)
    assert time <= time_of(spec, *larger)
    assert time_of(spec, *double) <= 2 * time + 3
    assert time >= 2 * prod(size) * 10**12 // (n_nodes * NODE), "never above the peak"


@given(st.integers(1, 100_000), st.integers(1, 400))
@settings(max_examples=80, derandomize=True)
def test_vectors_are_dealt_out(elements: int, n_nodes: int) -> None:
    block = TensorSpec((elements,), 2)
    work = op_work("add", [block, block], [block], {})
    rounds = ceil(ceil(elements / 32) / n_nodes)
    each = rounds * 32  # elements of the busiest node
    arithmetic, load, store = (
        Fraction(each * 10**12, NODE // 8), Fraction(4 * each * 10**12, 400 * 10**9),
        Fraction(2 * each * 10**12, 270 * 10**9),
    )  # fmt: skip
    assert work_ps(chip(n_nodes), "add", "bf16", work) == ceil(max(arithmetic, load, store))
    assert work_ps(chip(n_nodes), "add", "bf16", Work(work.flops, work.read_bytes, work.write_bytes)) <= ceil(
        max(arithmetic, load, store)
    ), "without a shape, all nodes share evenly"


def test_devices_without_units_keep_the_roofline() -> None:
    plain = chip(16, matrix_unit=None, vector_bytes=0)
    a, b, c = (TensorSpec(shape, 2) for shape in ((9, 5), (5, 3), (9, 3)))
    assert work_ps(plain, "mm", "bf16", op_work("mm", [a, b], [c], {})) == ceil(Fraction(120 * 10**12, 6400 * 10**9))
    assert work_ps(plain, "add", "bf16", op_work("add", [c, c], [c], {})) == ceil(Fraction(108 * 10**12, 6400 * 10**9))
    grid = System.grid(rows=2, cols=2, bandwidth="1 GB/s", latency="1 ns", device=plain)
    assert grid.device is not None and grid.device.matrix_unit is None
    known = System.grid(rows=2, cols=2, bandwidth="1 GB/s", latency="1 ns", device=chip(16)).device
    assert known is not None and (known.matrix_unit, known.vector_bytes) == ((8, 8, 4), 64)
    assert known.ingest_bytes_per_s == 128 * 10**9


def test_presets_have_units_that_a_configuration_replaces() -> None:
    for name, sides, width in (("dojo-tile", (8, 8, 4), 64), ("a100-8", (32, 16, 16), 256), ("wse2-die", (1, 4, 1), 8)):
        spec = System.preset(name).device
        assert spec is not None and (spec.matrix_unit, spec.vector_bytes) == (sides, width)
    changed = System.preset("dojo-tile").override({"node.matrix_unit.m": 16, "node.ingest_bandwidth": "1 TB/s"}).device
    assert changed is not None and changed.matrix_unit == (16, 8, 4) and changed.ingest_bytes_per_s == 10**12


def chain() -> Program:
    """mm -> relu -> mul (which reads another block too) -> sum, and an op beside them, on one device."""
    builder, block = ProgramBuilder(1), TensorSpec((64, 64), 2)

    def add(name: str, inputs: list[TensorSpec], outputs: list[TensorSpec], producer: int = -1) -> None:
        work = op_work(name, inputs, outputs, {})
        builder.compute(
            0, label=name, op_class=name, number_format="bf16", flops=work.flops, read_bytes=work.read_bytes,
            write_bytes=work.write_bytes, shape=builder.shape(work.shape), producer=producer,
            producer_bytes=block.size_bytes if producer >= 0 else 0,
        )  # fmt: skip

    add("mm", [block, block], [block])
    add("relu", [block], [block], producer=0)
    add("mul", [block, block], [block], producer=1)
    add("sum", [block], [TensorSpec((), 2)])
    add("add", [block, block], [block])
    return builder.build()


def test_a_chain_is_fused_as_by_hand() -> None:
    spec, size = chip(1, op_launch_ps=1000), 64 * 64 * 2
    load, store = Fraction(10**12, 400 * 10**9), Fraction(10**12, 270 * 10**9)
    apart, together = (durations_ps(chain(), spec, CostOptions(fusion=on)).tolist() for on in (False, True))
    flops_ps = 64 * 64 * 10**12 // (NODE // 8)
    assert flops_ps > size * store > size * load
    assert apart == [
        8 * 8 * 16 * 500 + 1000, flops_ps + 1000, ceil(2 * size * load) + 1000, flops_ps + 1000,
        ceil(2 * size * load) + 1000,
    ]  # fmt: skip
    assert together == [
        8 * 8 * 16 * 500 + 1000,  # the product is bound by its arithmetic, stored or not
        flops_ps,  # relu neither loads nor stores
        flops_ps,  # mul loads one input in place of two, and stores the end of the chain
        *apart[3:],  # a sum is not pointwise; the op beside is as it was
    ]


def test_bytes_of_a_fused_chain_by_hand() -> None:
    size, program = 64 * 64 * 2, chain()
    before, apart, together = arrays(program), separate(program), fused(program)
    assert apart.read_bytes.tolist() == [2 * size, size, 2 * size, size, 2 * size]
    assert apart.launched.all() and not apart.changed.any()
    assert together.read_bytes.tolist() == [2 * size, 0, size, size, 2 * size]
    assert together.write_bytes.tolist() == [0, 0, size, 2, size]
    assert together.launched.tolist() == [True, False, False, True, True]
    assert together.changed.tolist() == [True, True, True, False, False]
    assert all(np.array_equal(column, before[name]) for name, column in arrays(program).items()), "it stays as it is"
    builder = ProgramBuilder(1)
    for name, written, producer in (("split", 300, -1), ("relu", 100, 0), ("tanh", 150, 0)):
        builder.compute(
            0, label=name, op_class=name, number_format="bf16", flops=1, read_bytes=300, write_bytes=written,
            producer=producer, producer_bytes=written if producer >= 0 else 0,
        )  # fmt: skip
    assert fused(builder.build()).write_bytes.tolist() == [50, 100, 150], "two blocks that two ops read"


def test_what_is_fused_is_what_the_file_says() -> None:
    program = chain()
    verify(program)
    assert equal(from_text(to_text(program)), program)
    assert equal(from_arrays(arrays(program), tables(program)), program)
    for wrong in (1, 4):  # itself; a later op
        program.producer[1] = wrong
        with pytest.raises(ScheduleError, match="cannot alone read 8192 bytes"):
            verify(program)
    program.producer[1] = 0
    program.producer[2] = 0
    with pytest.raises(ScheduleError, match="cannot alone read 8192 bytes"):
        verify(program)


def test_bounds_name_the_longest_part() -> None:
    def bound_of(name: str, inputs: list[TensorSpec], output: TensorSpec, spec: DeviceSpec) -> str:
        builder, work = ProgramBuilder(1), op_work(name, inputs, [output], {})
        amounts = {"flops": work.flops, "read_bytes": work.read_bytes, "write_bytes": work.write_bytes}
        builder.compute(
            0, label="op", op_class=name, number_format="bf16", shape=builder.shape(work.shape), **amounts
        )  # fmt: skip
        return BOUNDS[bounds(builder.build(), spec)[0]]

    square, tall, flat = TensorSpec((512, 512), 2), TensorSpec((64, 4), 2), TensorSpec((4, 64), 2)
    assert bound_of("mm", [square, square], square, chip(4)) == "matrix"
    assert bound_of("mm", [tall, flat], TensorSpec((64, 64), 2), chip(64)) == "broadcast"
    assert bound_of("tanh", [square], square, chip(4)) == "vector"
    assert bound_of("add", [square, square], square, chip(4)) == "load"
    assert bound_of("copy", [square], square, chip(4)) == "store"
    assert bound_of("relu", [square], square, chip(4, op_launch_ps=10**9)) == "launch"
    assert bound_of("view", [square], square, chip(4)) == "none"
    builder = ProgramBuilder(1)
    work = op_work("halo_add", [square, square], [square], {})
    builder.reduce(
        0, label="halo", op_class="halo_add", number_format="bf16", flops=work.flops, read_bytes=work.read_bytes,
        write_bytes=work.write_bytes,
    )  # fmt: skip
    assert BOUNDS[bounds(builder.build(), chip(4, combine_ps=10**9))[0]] == "combine"
    assert bounds(builder.build(), None).tolist() == [0] and bounds(builder.build(), chip(4)).dtype == np.int8
