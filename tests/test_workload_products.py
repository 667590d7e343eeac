"""A convolution as a product is the convolution, and which of the two is taken depends on shapes alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models_under_test import assert_close, assert_same_step, captured, classes, images, partitioned, plain_step
from torch import nn
from torch.nn import functional as F

from meshemu.workload import convolution_kernels
from meshemu.workload.convolution_kernels import Geometry, convolution, convolution_backward
from meshemu.workload.product_kernels import Window, product, product_backward

PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(st.data(), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), PAIRS, PAIRS, PAIRS)
def test_a_product_is_the_convolution(
    data: Any, n: int, channels: int, outputs: int, kernel: Any, stride: Any, dilation: Any
) -> None:
    padding = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    reach = [d * (k - 1) + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = [data.draw(st.integers(max(1, n), 9)) for n in reach]
    x, weight, bias = images(n, channels, *size), images(outputs, channels, *kernel, seed=2), images(outputs, seed=3)
    if data.draw(st.booleans()):
        x = x.transpose(2, 3).contiguous().transpose(2, 3)
    geometry = [list(stride), list(padding), list(dilation), False, [0, 0], 1]
    window = Window(kernel, stride, padding, dilation)
    y = torch.ops.aten.convolution(x, weight, bias, *geometry)
    assert_close("y", product(x, weight, bias, window), y, 1e-12)
    assert product(x, weight, None, window).is_contiguous()
    grad = images(*y.shape, seed=4)
    mask = [data.draw(st.booleans()) for _ in range(3)]
    expected = torch.ops.aten.convolution_backward(grad, x, weight, [outputs], *geometry, [True] * 3)
    results = product_backward(grad, x, weight, window, mask)
    for name, asked, got, wanted in zip(("x", "weight", "bias"), mask, results, expected, strict=True):
        assert (got is not None) == asked
        if got is not None:
            assert_close(name, got, wanted, 1e-12)


def noted(function: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        calls.append(function.__name__)
        return function(*args)

    return call


def geometry_of(kernel: int, groups: int = 1, *, transposed: bool = False) -> Geometry:
    return Geometry((1, 1), (kernel // 2,) * 2, (1, 1), transposed, (0, 0), groups, 64)


@pytest.mark.parametrize("kernel, size, taken", [(1, 2, True), (1, 20, False), (3, 2, True), (3, 8, False)])
def test_the_weight_must_outweigh_the_block(
    kernel: int, size: int, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for function in (product, product_backward):
        monkeypatch.setattr(convolution_kernels, function.__name__, noted(function, calls))
    x, weight = images(1, 64, size, size), images(64, 64, kernel, kernel, seed=2)
    y = convolution(x, weight, None, geometry_of(kernel), {})
    assert_close("y", y, F.conv2d(x, weight, padding=kernel // 2), 1e-12)
    convolution_backward(y, x, weight, geometry_of(kernel), [True, True, False])
    assert calls == (["product", "product_backward"] if taken else [])


def test_grouped_transposed_and_other_ranks_are_left_to_the_library() -> None:
    x, weight = images(1, 64, 2, 2), images(64, 64, 1, 1, seed=2)
    assert geometry_of(1).as_product(x, weight) is not None
    assert geometry_of(1, groups=2).as_product(x, weight[:, :32]) is None
    assert geometry_of(1, transposed=True).as_product(x, weight) is None
    assert geometry_of(1).as_product(x[..., 0], weight[..., 0]) is None


@pytest.mark.parametrize("plan", ["data", "spatial"])
def test_gradients_where_products_and_convolutions_meet(plan: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 96, 3, stride=2, padding=1),
        nn.ReLU(), nn.Conv2d(96, 96, 1), nn.Conv2d(96, 96, 3, padding=1, bias=False), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(96, 5),
    ).double()  # fmt: skip
    batch = images(4, 3, 8, 6), classes(4)
    graph = captured(model, batch, F.cross_entropy)
    assert_same_step(partitioned(graph, plan, 2, 2).run(model, batch), plain_step(model, batch, F.cross_entropy))
