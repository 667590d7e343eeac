"""Durations against exact fractions, and what is timed at which rate."""

from fractions import Fraction
from math import ceil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshemu.cost import TensorSpec, assumptions, combine_cost, durations_ps, op_work
from meshemu.cost.number_formats import bits_of, flops_per_s
from meshemu.errors import InputError
from meshemu.hardware.device import DeviceSpec
from meshemu.program.ir import OpKind

DIE = DeviceSpec(
    name="die", n_nodes=354,
    matrix_flops_per_s={"bf16": 362_496_000_000_000, "cfp8": 362_496_000_000_000, "fp32": 22_656_000_000_000},
    vector_flops_per_s={"bf16": 45_312_000_000_000, "fp32": 22_656_000_000_000},
    sram_bytes=442_500_000, load_bytes_per_s=141_600_000_000_000, store_bytes_per_s=95_580_000_000_000,
    op_launch_ps=200_000, combine_ps=700_000,
)  # fmt: skip


def device(**changes: Any) -> DeviceSpec:
    return DeviceSpec(**{**vars(DIE), **changes})


def program(*ops: tuple[OpKind, str, str, int, int, int]) -> Any:
    """A Program of (kind, op class, number format, flops, read bytes, written bytes): all that durations look at."""
    kinds, classes, formats, *work = zip(*ops, strict=True) if ops else ((),) * 6
    op_classes, number_formats = tuple(sorted(set(classes))), tuple(sorted(set(formats)))
    flops, read_bytes, write_bytes = (np.array(column, dtype=np.int64) for column in work)
    return SimpleNamespace(
        n_ops=len(ops), kind=np.array(kinds, dtype=np.int8), op_classes=op_classes, number_formats=number_formats,
        op_class=np.array([op_classes.index(c) for c in classes], dtype=np.int16),
        number_format=np.array([number_formats.index(f) for f in formats], dtype=np.int8),
        flops=flops, read_bytes=read_bytes, write_bytes=write_bytes,
        shape=np.full(len(ops), -1, np.int32), shapes=(), producer=np.full(len(ops), -1, np.int64),
        producer_bytes=np.zeros(len(ops), np.int64),
    )  # fmt: skip


def exact_ps(amount: int, rate: int) -> int:
    return ceil(Fraction(amount * 10**12, rate))


def duration_ps(spec: DeviceSpec | None, op_class: str, number_format: str, *work: int) -> int:
    return int(durations_ps(program((OpKind.COMPUTE, op_class, number_format, *work)), spec)[0])


@given(
    flops=st.integers(0, 10**15), read=st.integers(0, 10**12), written=st.integers(0, 10**12),
    peak=st.integers(10**9, 10**17), load=st.integers(10**9, 10**16), store=st.integers(10**9, 10**16),
    kind=st.sampled_from([OpKind.COMPUTE, OpKind.REDUCE]),
)
@settings(max_examples=300, derandomize=True)
def test_durations_equal_exact_fractions(
    flops: int, read: int, written: int, peak: int, load: int, store: int, kind: OpKind
) -> None:
    spec = device(vector_flops_per_s={"fp32": peak}, load_bytes_per_s=load, store_bytes_per_s=store)
    expected = max(exact_ps(flops, peak), exact_ps(read, load), exact_ps(written, store))
    fixed = spec.combine_ps if kind == OpKind.REDUCE else spec.op_launch_ps * bool(flops or read or written)
    assert durations_ps(program((kind, "add", "fp32", flops, read, written)), spec)[0] == expected + fixed


def test_each_side_of_the_roofline_can_bound() -> None:
    launch = DIE.op_launch_ps
    assert duration_ps(DIE, "mm", "bf16", 362_496_000, 8, 8) == launch + 1_000_000
    assert duration_ps(DIE, "mm", "bf16", 8, 141_600_000, 8) == launch + 1_000_000
    assert duration_ps(DIE, "mm", "bf16", 8, 8, 95_580_000) == launch + 1_000_000
    assert duration_ps(DIE, "mm", "bf16", 1, 0, 0) == launch + 1, "a fraction of a picosecond is rounded up"


def test_matrix_ops_run_on_the_matrix_unit_and_reductions_never_do() -> None:
    flops = 362_496_000
    times = durations_ps(
        program(
            (OpKind.COMPUTE, "convolution", "bf16", flops, 0, 0), (OpKind.COMPUTE, "add", "bf16", flops, 0, 0),
            (OpKind.REDUCE, "mm", "bf16", flops, 0, 0),
        ), DIE,
    )  # fmt: skip
    assert times.tolist() == [1_000_000 + 200_000, 8_000_000 + 200_000, 8_000_000 + 700_000]


def test_messages_and_views_take_no_time() -> None:
    times = durations_ps(
        program(
            (OpKind.SEND, "send", "", 0, 0, 0), (OpKind.RECV, "send", "", 0, 0, 0),
            (OpKind.COMPUTE, "view", "fp32", 0, 0, 0), (OpKind.COMPUTE, "transpose", "fp32", 0, 400, 400),
            (OpKind.COMPUTE, "add_", "fp32", 100, 400, 400),
        ), DIE,
    )  # fmt: skip
    assert times.dtype == np.int64
    assert times[:4].tolist() == [0, 0, 0, 0]
    assert times[4] > DIE.op_launch_ps


def test_without_a_device_nothing_takes_time() -> None:
    assert durations_ps(program((OpKind.COMPUTE, "mm", "bf16", 10**9, 1, 1)), None).tolist() == [0]
    assert durations_ps(program(), DIE).tolist() == []
    assert combine_cost(None, "fp32")(np.array([1, 2])).tolist() == [0, 0]


@given(size=st.integers(0, 2**32), number_format=st.sampled_from(["fp32", "bf16", "fp64"]))
@settings(max_examples=60, derandomize=True)
def test_combine_cost_is_that_of_a_reduce_op(size: int, number_format: str) -> None:
    itemsize = bits_of(number_format) // 8
    size -= size % itemsize
    piece = TensorSpec((size // itemsize,), itemsize)
    work = op_work("reduce_sum", [piece, piece], [piece], {})
    op = (OpKind.REDUCE, "reduce_sum", number_format, work.flops, work.read_bytes, work.write_bytes)
    assert combine_cost(DIE, number_format)(np.array([size]))[0] == durations_ps(program(op), DIE)[0]


def test_combine_cost_keeps_the_shape_of_the_sizes() -> None:
    sizes = np.array([[4, 400_000_000], [8, 40_000]])
    cost = combine_cost(DIE, "fp32")(sizes)
    assert cost.shape == (2, 2)
    assert cost[0, 1] > cost[1, 1] > cost[0, 0] > DIE.combine_ps
    assert np.shape(combine_cost(DIE, "fp32")(np.int64(4))) == ()


def test_number_formats_without_a_rate_of_their_own() -> None:
    peak, vector_peak = DIE.matrix_flops_per_s, DIE.vector_flops_per_s
    assert flops_per_s(DIE, "fp16", matrix=True) == peak["bf16"], "of equal width"
    assert flops_per_s(DIE, "tf32", matrix=True) == peak["fp32"]
    assert flops_per_s(DIE, "bool", matrix=False) == vector_peak["bf16"], "the narrowest that is wide enough"
    assert flops_per_s(DIE, "fp64", matrix=True) == flops_per_s(DIE, "fp64", matrix=False) == vector_peak["fp32"]
    tensor_cores = device(matrix_flops_per_s={"bf16": 312 * 10**12}, vector_flops_per_s={"fp32": 19 * 10**12})
    assert flops_per_s(tensor_cores, "fp32", matrix=True) == 19 * 10**12, "too wide for the matrix unit"
    two = device(vector_flops_per_s={"bf16": 4, "fp16": 3, "fp32": 2})
    assert flops_per_s(two, "cfp16", matrix=False) == 3, "the slowest of equal width"


def test_bits_are_read_from_names() -> None:
    assert [bits_of(n) for n in ("fp32", "bf16", "cfp8", "float8_e4m3fn", "int64", "bool")] == [32, 16, 8, 8, 64, 8]
    with pytest.raises(InputError, match="'half'"):
        bits_of("half")


def test_devices_that_cannot_be_timed_are_refused() -> None:
    with pytest.raises(InputError, match="device die lists no arithmetic rate"):
        duration_ps(device(matrix_flops_per_s={}, vector_flops_per_s={}), "add", "fp32", 1, 1, 1)
    with pytest.raises(InputError, match="device die: load bandwidth = 0 must be > 0"):
        duration_ps(device(load_bytes_per_s=0), "add", "fp32", 1, 1, 1)
    with pytest.raises(InputError, match="fp32 flop/s = 0 must be > 0"):
        duration_ps(device(vector_flops_per_s={"fp32": 0}), "add", "fp32", 1, 1, 1)


def test_each_op_of_a_large_program_has_its_own_duration() -> None:
    n = 100_000
    many = program((OpKind.COMPUTE, "mm", "bf16", 0, 0, 0), (OpKind.REDUCE, "reduce_sum", "fp32", 0, 0, 0))
    for name in ("kind", "op_class", "number_format", "shape", "producer"):
        setattr(many, name, getattr(many, name)[np.arange(n) % 2])
    many.flops, many.read_bytes, many.write_bytes = np.arange(n) * 1000, np.zeros(n, int), np.zeros(n, int)
    many.n_ops = n
    times = durations_ps(many, DIE)
    for op in (1, 2, n - 2, n - 1):
        unit, fixed = (DIE.vector_flops_per_s["fp32"], DIE.combine_ps) if op % 2 else (
            DIE.matrix_flops_per_s["bf16"], DIE.op_launch_ps)  # fmt: skip
        assert times[op] == exact_ps(1000 * op, unit) + fixed
    assert times[0] == 0


def keys(spec: DeviceSpec | None, *ops: tuple[OpKind, str, str, int, int, int]) -> list[str]:
    found = assumptions(spec, program(*ops))
    assert all(a.sentence.endswith(".") and "\n" not in a.sentence for a in found)
    return [a.key for a in found]


def test_assumptions_name_what_applies() -> None:
    add = (OpKind.COMPUTE, "add", "fp32", 1, 1, 1)
    always = ["roofline", "memory_traffic", "sram_capacity", "shapes"]
    assert keys(None, add) == ["no_compute_time"]
    assert keys(DIE, add) == [*always, "node_spread", "op_launch"]
    assert keys(device(n_nodes=1), add) == [*always, "op_launch"]
    assert "combine" in keys(DIE, (OpKind.REDUCE, "reduce_sum", "fp32", 1, 1, 1))
    assert "number_format_fp64" in keys(DIE, (OpKind.COMPUTE, "add", "fp64", 1, 1, 1))
    attention = (OpKind.COMPUTE, "_scaled_dot_product_flash_attention_for_cpu", "fp32", 1, 1, 1)
    assert "causal_attention" in keys(DIE, attention)
    assert "unlisted_ops" in keys(DIE, (OpKind.COMPUTE, "my_own_op", "fp32", 1, 1, 1))
    message = (OpKind.SEND, "", "", 0, 0, 0)
    assert keys(DIE, add, message) == keys(DIE, add), "messages are no computation"


def test_assumptions_give_the_figures() -> None:
    found = {a.key: a.sentence for a in assumptions(DIE, program((OpKind.COMPUTE, "my_own_op", "fp64", 1, 1, 1)))}
    assert "22.656 TFLOP/s" in found["number_format_fp64"]
    assert "my_own_op" in found["unlisted_ops"]
    assert "200,000 ps" in found["op_launch"]
