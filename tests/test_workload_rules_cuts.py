"""Every ATen call of many functions and their backward, on blocks, equals the plain call in fp64.

Here each call is cut a few ways; scripts/check_operators.py tries many more.
"""

import random
from functools import cache
from itertools import islice

import pytest
import torch
from operator_samples import SAMPLES
from operators_under_test import Call, assert_same_call, calls_of, layouts_of, plan_of, run_cut, single_cuts

from meshemu.errors import InputError
from meshemu.workload.layout import Layout, Split, even_ranges
from meshemu.workload.spmd import PushAdd

LOSS = {"sin", "pow", "cos", "mul", "stack", "add", "sum", "ones_like", "detach", "expand", "t", "sub", "div", "select"}
"""Operators of the loss that every sample's gradient is taken of."""


@cache
def own_calls(name: str) -> list[Call]:
    """The calls of a sample that are about what it shows and may be repeated."""
    calls = calls_of(*((function := SAMPLES[name])[0], *function[1]))
    found = []
    for call in calls:
        random_ = torch.Tag.nondeterministic_seeded in call.target.tags and "scaled_dot" not in str(call.target)
        if call.tensors and call.target._opname not in LOSS and not random_:
            found.append(call)
    return found


@pytest.mark.parametrize("name", SAMPLES)
def test_calls_on_blocks_equal_whole_calls(name: str) -> None:
    one, two = plan_of(3), plan_of(2, 3)
    for call in own_calls(name):
        cuts = list(single_cuts(call, one))
        random.Random(str(call)).shuffle(cuts)
        for layouts in cuts[:1]:
            assert_same_call(call, layouts, one)
        for layouts in layouts_of(call, two, 1, 0):
            assert_same_call(call, layouts, two)


def cut(dim: int, size: int, parts: int = 3, axis: str = "x") -> Layout:
    return Layout((Split(dim, (axis,), even_ranges(size, parts)),))


WITHOUT_GATHER = [
    # sample, operator, dims of the first tensor that may be cut
    ("slices", "slice", (0, 1, 2, 3)), ("parts", "split", (0, 1, 2, 3)), ("joins", "cat", (0, 1, 2, 3)),
    ("rolls", "roll", (2, 3)), ("flips", "flip", (0, 1, 2, 3)), ("constant padding", "constant_pad_nd", (1, 2, 3)),
    ("other padding", "reflection_pad2d", (1, 2, 3)), ("other padding", "replication_pad2d_backward", (1, 2, 3)),
    ("repeats", "repeat", (1, 2, 3)), ("replaced parts", "slice_scatter", (0, 1, 2, 3)), ("triangles", "tril", (2, 3)),
    ("interpolation", "upsample_bilinear2d", (1, 2, 3)), ("interpolation", "upsample_bicubic2d_backward", (1, 2, 3)),
    ("adaptive pools", "_adaptive_avg_pool2d", (1, 2, 3)), ("unfolded dims", "unfold", (2, 3)),
    ("convolution", "convolution", (0, 1, 2, 3)), ("depthwise convolution", "convolution", (0, 1, 2, 3)),
    ("transposed convolution", "convolution", (0, 1, 2, 3)), ("transposed convolution", "convolution_backward", (2, 3)),
    ("max pools", "max_pool2d_with_indices", (0, 1, 2, 3)), ("average pools in other dims", "avg_pool3d", (1, 2, 3)),
    ("softmax", "_softmax", (0, 1, 2, 3)), ("softmax", "_log_softmax_backward_data", (0, 1, 2, 3)),
    ("softmax", "logsumexp", (1, 2, 3)), ("layer norm", "native_layer_norm", (0, 1, 2, 3)),
    ("layer norm", "native_layer_norm_backward", (1, 2, 3)), ("batch norm", "native_batch_norm", (0, 1, 2, 3)),
    ("cross entropy", "nll_loss_forward", (0, 1)), ("cross entropy", "nll_loss_backward", ()),
    ("embedding", "embedding", (0, 1)), ("index_select", "index_select", (1, 2, 3)),
    ("labels by index", "index", (0, 1)), ("index_add", "index_add", (1, 2)),
    ("variances", "var", (0, 1, 2)), ("norms", "linalg_vector_norm", (1, 2, 3)), ("extremes", "amax", (1, 2, 3)),
    ("running", "cumsum", (0, 2, 3)),
    ("attention", "_scaled_dot_product_flash_attention_for_cpu", (0, 1, 2)),
]  # fmt: skip


@pytest.mark.parametrize("name, operator, dims", WITHOUT_GATHER, ids=lambda value: str(value))
def test_what_is_cut_stays_cut(name: str, operator: str, dims: tuple[int, ...]) -> None:
    calls = [call for call in own_calls(name) if call.target._opname == operator]
    assert calls
    for call in calls[:2]:
        first = call.tensors[0]
        for dim in dims:
            layouts = [cut(dim, first.shape[dim], 2) if t.shape == first.shape else Layout() for t in call.tensors]
            assert run_cut(call, layouts, plan_of(2)).gathers == [], f"{call} cut along dim {dim}"


def test_a_ring_of_keys_passes_from_neighbour_to_neighbour() -> None:
    """Three devices in a row: whatever goes round goes to the next one, and the queries stay."""
    for call in own_calls("causal attention"):
        if "scaled_dot" not in str(call.target):
            continue
        layouts = [cut(2, 7) if t.dim() == 4 or t.shape[-1] == 7 else Layout() for t in call.tensors]
        outcome = assert_same_call(call, layouts, plan_of(3))
        assert not outcome.gathers
        program = outcome.program
        steps = {(int(b) - int(a)) % 3 for a, b in zip(program.src, program.dst, strict=True)}
        assert 1 in steps
        assert not any(isinstance(i, PushAdd) for i in outcome.instructions)


def test_heads_that_share_keys_meet_them_on_their_devices() -> None:
    """Four heads on four devices, two heads of keys: each device holds both heads, and gradients are terms of sums."""
    calls = [c for c in own_calls("attention of shared heads") if "scaled_dot" in str(c.target)]
    assert len(calls) == 2
    for call in calls:
        layouts = [cut(1, 4, 4) if t.shape[1] == 4 else Layout() for t in call.tensors]
        outcome = assert_same_call(call, layouts, plan_of(4))
        assert not outcome.gathers
    of_query, of_key, _ = outcome.layouts
    assert of_query is not None and of_query.axes == ("x",)
    assert of_key is not None and of_key.partial == ("x",)


@pytest.mark.parametrize(
    "name, operator, error",
    [("cross entropy", "nll_loss_forward", "none of 7 classes"), ("embedding", "embedding", "table of 11 rows")],
)
def test_an_index_that_no_device_holds_is_an_error(name: str, operator: str, error: str) -> None:
    call = next(c for c in own_calls(name) if c.target._opname == operator)
    wrong = Call(call.target, (call.args[0], call.args[1] + 11, *call.args[2:]), call.kwargs, call.result)
    layouts = [cut(1 if "nll" in operator else 0, call.args[0].shape[1 if "nll" in operator else 0], 2)]
    layouts += [Layout()] * (len(call.tensors) - 1)
    with pytest.raises(InputError, match=f"IndexError: .*{error}"):
        run_cut(wrong, layouts, plan_of(2))


def test_many_ways_to_cut_are_tried() -> None:
    """The generator of layouts does what the tests above rely on: all dims, both kinds of plans, empty blocks."""
    call = next(c for c in own_calls("matrix products") if c.target._opname == "mm")
    single = list(single_cuts(call, plan_of(3)))
    assert {s.dim for layouts in single for layout in layouts for s in layout.splits} == {0, 1}
    both = list(islice(layouts_of(call, plan_of(2, 3), 200, 0), 200))
    joint = [s for layouts in both for layout in layouts for s in layout.splits if len(s.axes) == 2]
    assert joint
    assert any(layout.partial for layouts in both for layout in layouts)
    assert any(lo == hi for layouts in single for layout in layouts for s in layout.splits for lo, hi in s.ranges)
