"""Maths of one block of a convolution. Legend: x (N, C, *S), y (N, K, *S), weight (K, C / G, ...) or transposed."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from meshemu.workload.product_kernels import Window, pays, product, product_backward

__all__ = ["Geometry", "add_bias", "bias_gradient", "convolution", "convolution_backward"]

Tensor = torch.Tensor
Range = tuple[int, int]
Crops = dict[int, tuple[Range, Range, int, int]]


@dataclass(frozen=True)
class Geometry:
    """The operator's arguments on a block. groups and channels are those of the whole input."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int
    channels: int

    def groups_of(self, x: Tensor) -> int:
        """Groups in a block of the input."""
        return self.groups if self.groups == 1 else self.groups * x.shape[1] // self.channels

    def as_product(self, x: Tensor, weight: Tensor) -> Window | None:
        """The window of a convolution that is better computed as a matrix product, else None."""
        if self.transposed or self.groups != 1 or x.dim() != 4:
            return None
        window = Window(tuple(weight.shape[2:]), self.stride, self.padding, self.dilation)
        return window if pays(x, weight, window) else None


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, crops: Crops) -> Tensor:
    """A block of the output. crops: where a transposed convolution of a window yields more or less than the block."""
    g = geometry
    window = g.as_product(x, weight)
    if window is not None:
        return product(x, weight, bias, window)
    y = torch.ops.aten.convolution.default(
        x, weight, None if crops else bias, g.stride, g.padding, g.dilation, g.transposed, g.output_padding,
        g.groups_of(x),
    )  # fmt: skip
    for dim, (held, block, stride, padding) in crops.items():
        before = (held[0] * stride - padding) - block[0]
        after = (block[1] - block[0]) - (y.shape[dim] + before)
        y = F.pad(y, [0, 0] * (y.dim() - 1 - dim) + [before, after])
    return add_bias(y, bias) if crops and bias is not None else y


def add_bias(y: Tensor, bias: Tensor) -> Tensor:
    """The bias of every channel added."""
    return y + bias.view(-1, *[1] * (y.dim() - 2))


def convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, mask: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of a block's input (or window of it), and the block's terms of those of weight and bias."""
    g = geometry
    window = g.as_product(x, weight)
    if window is not None:
        return product_backward(grad, x, weight, window, mask)
    result: tuple[Tensor | None, Tensor | None, Tensor | None] = torch.ops.aten.convolution_backward.default(
        grad, x, weight, [grad.shape[1]], g.stride, g.padding, g.dilation, g.transposed, g.output_padding,
        g.groups_of(x), mask,
    )  # fmt: skip
    return result


def bias_gradient(grad: Tensor) -> Tensor:
    """The block's terms of the bias's gradient."""
    return grad.sum([0, *range(2, grad.dim())])
