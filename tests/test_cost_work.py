"""Flops against torch's own counter, op by op as autograd calls them; bytes and the other op classes by formula."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from meshemu.cost import TensorSpec, Work, op_work
from meshemu.cost.op_classes import MATRIX, MOVEMENTS, PER_INPUT_ELEMENT, PER_OUTPUT_ELEMENT, VIEWS, is_listed
from meshemu.errors import ScheduleError

ATTRIBUTE_POSITIONS = {
    "convolution": {"transposed": 6, "groups": 8},
    "convolution_backward": {"transposed": 7, "groups": 9, "output_mask": 10},
}


def spec(*shape: int, itemsize: int = 4) -> TensorSpec:
    return TensorSpec(shape, itemsize)


def specs(values: Any) -> list[TensorSpec]:
    """The tensors among operator arguments or results, in order."""
    values = values if isinstance(values, tuple | list) else (values,)
    return [TensorSpec(tuple(v.shape), v.itemsize) for v in values if isinstance(v, torch.Tensor)]


class WorkRecorder(TorchDispatchMode):
    """The work of every operator that runs, by op class."""

    def __init__(self) -> None:
        super().__init__()
        self.work: list[tuple[str, Work]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        attributes = {key: args[i] for key, i in ATTRIBUTE_POSITIONS.get(name, {}).items()}
        work = op_work(name, specs(args), specs(out), attributes)
        if name in MATRIX:
            assert sum(2 * prod(product[:4]) for product in work.shape) == work.flops, "shapes hold all arithmetic"
        self.work.append((name, work))
        return out

    def flops(self, *names: str) -> int:
        return sum(work.flops for name, work in self.work if name in names)


def counted(run: Callable[[], Any]) -> tuple[WorkRecorder, int]:
    """Our work and torch's total flops of what `run` does."""
    recorder = WorkRecorder()
    with recorder:
        run()
    with FlopCounterMode(display=False) as counter:
        run()
    return recorder, counter.get_total_flops()


def parameter(*shape: int) -> torch.Tensor:
    return torch.randn(shape, requires_grad=True)


CONVOLUTIONS = {
    "plain": ((2, 6, 9, 11), (8, 6, 3, 3), {"padding": 1}),
    "strided": ((2, 6, 9, 11), (8, 6, 3, 3), {"stride": 2, "padding": 1}),
    "dilated": ((1, 4, 12, 12), (5, 4, 3, 2), {"dilation": 2, "padding": 2}),
    "one by one": ((3, 5, 7, 7), (2, 5, 1, 1), {"stride": 2}),
    "one dim": ((2, 3, 20), (4, 3, 5), {"stride": 3}),
    "three dims": ((1, 2, 5, 6, 7), (3, 2, 3, 3, 3), {"padding": 1}),
}
TRANSPOSED = {
    "plain": ((2, 6, 5, 4), (6, 3, 3, 3), {}),
    "strided": ((2, 4, 5, 6), (4, 5, 4, 4), {"stride": 2, "padding": 1}),
    "output padding": ((1, 4, 5, 5), (4, 2, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_and_its_backward_count_as_in_torch(case: str, bias: bool) -> None:
    x_shape, w_shape, options = CONVOLUTIONS[case]
    x, w, b = parameter(*x_shape), parameter(*w_shape), parameter(w_shape[0]) if bias else None
    convolve = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[len(x_shape)]
    recorder, flops = counted(lambda: convolve(x, w, b, **options).sum().backward())
    assert flops > 0
    assert recorder.flops("convolution", "convolution_backward") == flops


@pytest.mark.parametrize("case", TRANSPOSED)
def test_transposed_convolution_and_its_backward_count_as_in_torch(case: str) -> None:
    x_shape, w_shape, options = TRANSPOSED[case]
    x, w = parameter(*x_shape), parameter(*w_shape)
    recorder, flops = counted(lambda: F.conv_transpose2d(x, w, **options).sum().backward())
    assert flops > 0
    assert recorder.flops("convolution", "convolution_backward") == flops


@pytest.mark.parametrize("groups", [2, 3, 6])
@pytest.mark.parametrize("transposed", [False, True])
def test_grouped_convolution_counts_as_in_torch_but_for_its_weight_gradient(groups: int, transposed: bool) -> None:
    w_shape = (6, 12 // groups, 3, 3) if transposed else (12, 6 // groups, 3, 3)
    x, w = parameter(2, 6, 10, 8), parameter(*w_shape)
    convolve = F.conv_transpose2d if transposed else F.conv2d
    recorder, flops = counted(lambda: convolve(x, w, groups=groups, padding=1).sum().backward())
    forward = recorder.flops("convolution")
    # Forward, input gradient and weight gradient multiply the same pairs; torch counts the last `groups` times.
    assert recorder.flops("convolution_backward") == 2 * forward
    assert flops == (2 + groups) * forward
    assert forward == 2 * 2 * (10 * 8) * (6 * 12 // groups) * 9


@pytest.mark.parametrize("wants_input, wants_weight", [(True, False), (False, True), (False, False)])
def test_masked_gradients_cost_nothing(wants_input: bool, wants_weight: bool) -> None:
    grad_out, x, w = spec(2, 8, 5, 5), spec(2, 6, 10, 10), spec(8, 6, 3, 3)
    outputs = [x] * wants_input + [w] * wants_weight
    attributes = {"transposed": False, "output_mask": [wants_input, wants_weight, False]}
    work = op_work("convolution_backward", [grad_out, x, w], outputs, attributes)
    assert op_work("convolution_backward", [grad_out, x, w], outputs, {}) == work
    forward = op_work("convolution", [x, w], [grad_out], {"transposed": False}).flops
    assert work.flops == (wants_input + wants_weight) * forward
    assert work.read_bytes == grad_out.size_bytes + wants_input * w.size_bytes + wants_weight * x.size_bytes
    assert work.write_bytes == sum(out.size_bytes for out in outputs)


def test_convolution_backward_without_input_gradient_counts_as_in_torch() -> None:
    x, w = torch.randn(2, 3, 8, 8), parameter(4, 3, 3, 3)
    recorder, flops = counted(lambda: F.conv2d(x, w).sum().backward())
    assert recorder.flops("convolution", "convolution_backward") == flops


def test_matrix_products_count_as_in_torch() -> None:
    a, b, c = parameter(5, 7), parameter(7, 3), parameter(5, 3)
    d, e, f = parameter(4, 5, 7), parameter(4, 7, 3), parameter(4, 5, 3)
    for run in (
        lambda: torch.mm(a, b).sum().backward(),
        lambda: torch.addmm(c, a, b).sum().backward(),
        lambda: torch.bmm(d, e).sum().backward(),
        lambda: torch.baddbmm(f, d, e).sum().backward(),
        lambda: F.linear(torch.randn(6, 2, 7), parameter(9, 7), parameter(9)).sum().backward(),
    ):
        recorder, flops = counted(run)
        assert flops > 0
        assert recorder.flops("mm", "addmm", "bmm", "baddbmm") == flops


def test_shapes_are_those_of_the_products() -> None:
    """By hand: a strided grouped convolution, its backward pass, attention, a product with a bias, a vector op."""
    x, w, y = spec(2, 6, 8, 8), spec(4, 3, 3, 5), spec(2, 4, 4, 4)  # two groups, 32 positions, 15 of the kernel
    (forward,) = op_work("convolution", [x, w], [y], {}).shape
    assert forward == (2, 32, 2, 3 * 15, 2 * 6 * 64, 4 * 45)
    backward = op_work("convolution_backward", [y, x, w], [x, w], {"output_mask": [True, True, False]}).shape
    assert backward == ((2, 32, 3, 2 * 15, 2 * 64, 4 * 45), (2, 2, 3 * 15, 32, 2 * 64, 2 * 6 * 64))
    wide = op_work("convolution", [spec(1, 4, 5), spec(4, 3, 2)], [spec(1, 6, 6)], {"transposed": True}).shape
    assert wide == ((2, 5, 3, 2 * 2, 20, 24),), "positions are those of the input, 6 channels in two groups"
    q, k = spec(2, 3, 5, 8), spec(2, 3, 7, 8)
    attention = op_work("_scaled_dot_product_flash_attention", [q, k, k], [q], {}).shape
    assert attention == ((6, 5, 7, 8, 240, 336), (6, 5, 8, 7, 6 * 35, 336))
    assert op_work("addmm", [spec(3), spec(5, 7), spec(7, 3)], [spec(5, 3)], {}).shape == ((1, 5, 3, 7, 35, 21),)
    assert op_work("mv", [spec(5, 7), spec(7)], [spec(5)], {}).shape == ((1, 5, 1, 7, 35, 7),)
    assert op_work("add", [spec(4, 6), spec(6)], [spec(4, 6)], {}).shape == ((24,),)
    assert op_work("sum", [spec(4, 6)], [spec()], {}).shape == ((24,),), "those of the largest tensor"
    assert op_work("mm", [spec(0, 6), spec(6, 3)], [spec(0, 3)], {}).shape == (), "nothing to multiply"


def test_matrix_vector_products_are_thin_matrix_products() -> None:
    assert op_work("mv", [spec(5, 7), spec(7)], [spec(5)], {}) == Work(2 * 5 * 7, 4 * (35 + 7), 4 * 5)
    assert op_work("addmv", [spec(5), spec(5, 7), spec(7)], [spec(5)], {}).flops == 2 * 5 * 7
    assert op_work("dot", [spec(7), spec(7)], [spec()], {}).flops == 14


@pytest.mark.parametrize("causal", [False, True])
def test_attention_counts_by_torch_formulas(causal: bool) -> None:
    q, k, v = parameter(2, 3, 5, 8), parameter(2, 3, 7, 8), parameter(2, 3, 7, 8)
    recorder, _ = counted(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal).sum().backward())
    name = "_scaled_dot_product_flash_attention_for_cpu"
    shapes = (q.shape, k.shape, v.shape)
    assert recorder.flops(name) == sdpa_flop_count(*shapes) > 0
    assert recorder.flops(f"{name}_backward") == sdpa_backward_flop_count(q.shape, *shapes) > 0


@given(
    heads=st.integers(1, 4), shared=st.integers(1, 3), queries=st.integers(1, 9), keys=st.integers(1, 9),
    width=st.integers(1, 9), value_width=st.integers(1, 9),
)
@settings(max_examples=30, derandomize=True)
def test_attention_of_any_shape(heads: int, shared: int, queries: int, keys: int, width: int, value_width: int) -> None:
    q, k, v = (2, heads * shared, queries, width), (2, heads, keys, width), (2, heads, keys, value_width)
    out = (2, heads * shared, queries, value_width)
    name = "_scaled_dot_product_flash_attention"
    forward = op_work(name, [spec(*q), spec(*k), spec(*v)], [spec(*out)], {})
    backward = op_work(
        f"{name}_backward", [spec(*s) for s in (out, q, k, v, out)], [spec(*q), spec(*k), spec(*v)], {}
    )
    assert forward.flops == sdpa_flop_count(q, k, v)
    assert backward.flops == sdpa_backward_flop_count(out, q, k, v)


@given(rows=st.lists(st.integers(0, 6), min_size=1, max_size=5))
@settings(max_examples=30, derandomize=True)
def test_blocks_of_a_convolution_add_up_to_the_whole(rows: Sequence[int]) -> None:
    """Output rows split any way over devices: no flops appear or vanish."""
    weight = spec(8, 4, 3, 3)

    def flops(n_rows: int, op_class: str) -> int:
        x, y = spec(2, 4, n_rows + 2, 12), spec(2, 8, n_rows, 10)
        if op_class == "convolution":
            return op_work(op_class, [x, weight], [y], {"transposed": False}).flops
        return op_work(op_class, [y, x, weight], [x, weight], {"output_mask": (True, True, False)}).flops

    for op_class in ("convolution", "convolution_backward"):
        assert sum(flops(n, op_class) for n in rows) == flops(sum(rows), op_class)


def test_views_and_allocations_are_free() -> None:
    for name in ("view", "t", "transpose", "permute", "expand", "detach", "slice", "getitem", "empty_like"):
        assert op_work(name, [spec(4, 6)], [spec(6, 4)], {}) == Work(0, 0, 0)


def test_movements_are_bytes_only() -> None:
    assert op_work("clone", [spec(4, 6)], [spec(4, 6)], {}) == Work(0, 96, 96)
    assert op_work("cat", [spec(4, 6), spec(2, 6)], [spec(6, 6)], {}) == Work(0, 144, 144)
    assert op_work("zeros_like", [], [spec(4, 6)], {}) == Work(0, 0, 96)
    assert op_work("_to_copy", [spec(8)], [spec(8, itemsize=2)], {}) == Work(0, 32, 16)


def test_pointwise_and_unknown_ops_cost_one_flop_per_output() -> None:
    expected = Work(24, 2 * 96, 96)
    assert op_work("add", [spec(4, 6), spec(4, 6)], [spec(4, 6)], {}) == expected
    assert op_work("my_own_op", [spec(4, 6), spec(4, 6)], [spec(4, 6)], {}) == expected
    assert is_listed("add") and is_listed("add_") and not is_listed("my_own_op")


def test_in_place_variants_cost_the_same() -> None:
    for name in ("add", "exp", "copy", "relu"):
        arguments = [spec(3, 5)], [spec(3, 5)], {}
        assert op_work(f"{name}_", *arguments) == op_work(name, *arguments)


def test_transcendental_functions_cost_more_than_additions() -> None:
    flops = {n: op_work(n, [spec(10)], [spec(10)], {}).flops for n in ("add", "div", "exp", "gelu", "silu", "pow")}
    assert flops["add"] == 10 < flops["div"] < flops["exp"] < flops["silu"] < flops["gelu"]
    assert op_work("pow", [spec(10)], [spec(10)], {"exponent": 2}).flops == 10
    assert op_work("pow", [spec(10)], [spec(10)], {"exponent": 3.0}).flops == 20
    assert op_work("pow", [spec(10)], [spec(10)], {"exponent": 0.5}).flops == flops["pow"]


def test_reductions_count_their_input() -> None:
    assert op_work("mean", [spec(4, 6)], [spec(4)], {}) == Work(24, 96, 16)
    assert op_work("amax", [spec(4, 6)], [spec(4)], {}).flops == 24
    assert op_work("var", [spec(4, 6)], [spec(4)], {}).flops == 4 * 24


def test_batch_norm_pieces() -> None:
    x, channel = spec(2, 3, 4, 5), spec(3)
    n = 120
    assert op_work("batch_norm_statistics", [x], [channel, channel], {}) == Work(4 * n, 4 * n, 24)
    assert op_work("batch_norm_normalise", [x, channel, channel], [x], {}) == Work(2 * n, 4 * n + 24, 4 * n)
    assert op_work("batch_norm_backward_sums", [x, x, channel], [channel, channel], {}).flops == 4 * n
    assert op_work("batch_norm_backward_input", [x, x, channel], [x], {}) == Work(5 * n, 8 * n + 12, 4 * n)


def test_layer_norm_and_softmax_families() -> None:
    x = spec(4, 6)
    assert op_work("native_layer_norm", [x, spec(6), spec(6)], [x, spec(4), spec(4)], {}).flops == 8 * 24
    assert op_work("native_layer_norm_backward", [x, x], [x], {}).flops == 12 * 24
    assert op_work("_log_softmax", [x], [x], {}) == Work(12 * 24, 96, 96)
    assert op_work("_softmax", [x], [x], {}).flops == 12 * 24
    assert op_work("_log_softmax_backward_data", [x, x], [x], {}).flops == 11 * 24


def test_pooling_counts_its_windows() -> None:
    x, y, indices = spec(2, 3, 8, 8), spec(2, 3, 4, 4), spec(2, 3, 4, 4, itemsize=8)
    forward = op_work("max_pool2d_with_indices", [x], [y, indices], {"kernel_size": [3, 2]})
    assert forward == Work(96 * 6, x.size_bytes, y.size_bytes + indices.size_bytes)
    assert op_work("avg_pool2d", [x], [y], {"kernel_size": 3}).flops == 96 * 9
    assert op_work("avg_pool2d", [x], [y], {"kernel_size": [3]}).flops == 96 * 9
    backward = op_work("max_pool2d_with_indices_backward", [y, x, indices], [x], {"kernel_size": [3, 3]})
    assert backward == Work(96, y.size_bytes + indices.size_bytes, x.size_bytes)
    assert op_work("avg_pool2d_backward", [y, x], [x], {"kernel_size": [2, 2]}) == Work(
        96 * 4, y.size_bytes, x.size_bytes
    )
    assert op_work("avg_pool2d", [x], [y], {}).flops == x.n_elements
    volume = spec(1, 1, 4, 4, 4), spec(1, 1, 2, 2, 2)
    assert op_work("avg_pool3d", [volume[0]], [volume[1]], {"kernel_size": [2]}).flops == 8 * 8


def test_embedding_reads_only_the_rows_asked_for() -> None:
    table, indices, rows = spec(1000, 16), spec(2, 5, itemsize=8), spec(2, 5, 16)
    assert op_work("embedding", [table, indices], [rows], {}) == Work(0, 80 + 640, 640)
    assert op_work("embedding_dense_backward", [rows, indices], [table], {}) == Work(160, 720, 64000)
    assert op_work("index_select", [table, spec(3, itemsize=8)], [spec(3, 16)], {}) == Work(0, 24 + 192, 192)


def test_nll_loss_touches_one_element_per_target() -> None:
    logits, targets, scalar = spec(50, 10), spec(50, itemsize=8), spec()
    assert op_work("nll_loss_forward", [logits, targets], [scalar, scalar], {}) == Work(50, 400 + 200, 8)
    backward = op_work("nll_loss_backward", [scalar, logits, targets, scalar], [logits], {})
    assert backward == Work(50, 4 + 400, 2000)


def test_optimizer_steps_per_parameter() -> None:
    p = spec(3, 4)
    assert op_work("sgd", [p, p], [p], {}) == Work(2 * 12, 96, 48)
    assert op_work("sgd_momentum", [p, p, p], [p, p], {"weight_decay": 5e-4}) == Work(6 * 12, 144, 96)
    assert op_work("adamw", [p] * 4, [p] * 3, {}) == Work(19 * 12, 192, 144)
    assert op_work("adam", [p] * 4, [p] * 3, {"weight_decay": 0.1}).flops == 21 * 12
    with pytest.raises(ScheduleError, match="adamw has 4 inputs and 3 outputs"):
        op_work("adamw", [p, p], [p], {})


def test_combinations_per_element() -> None:
    piece = spec(6, itemsize=8)
    assert op_work("reduce_sum", [piece, piece], [piece], {}) == Work(6, 96, 48)
    assert op_work("reduce_moments", [piece, piece], [piece], {}) == Work(30, 96, 48)


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ScheduleError, match=r"mm: the shapes \[\(5, 7\), \(8, 3\)\] -> .*7 columns meet 8 rows"):
        op_work("mm", [spec(5, 7), spec(8, 3)], [spec(5, 3)], {})
    with pytest.raises(ScheduleError, match="convolution"):
        op_work("convolution", [spec(5, 7, 3, 3)], [spec(5, 3)], {})


def test_the_tables_do_not_contradict_each_other() -> None:
    tables = [MATRIX, VIEWS, MOVEMENTS, PER_INPUT_ELEMENT, PER_OUTPUT_ELEMENT]
    names = [name for table in tables for name in table]
    assert len(names) == len(set(names))
