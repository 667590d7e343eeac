"""A convolution of a small block as matrix products: for blocks that are small beside the weight that they meet.

Convolution libraries bring the weight into an order of their own in every call and its gradient back out of it, which
pays on a large input. On a mesh of many devices a weight of 512 x 512 x 3 x 3 meets blocks of a few pixels. Products
read and write it as it lies. The choice depends on the shapes of the block alone, so it is the same on any rank.

Legend: x (N, C, H, W), y (N, K, H', W'), weight (K, C, h, w). rows: (N H' W', C h w), what each output pixel sees.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

__all__ = ["Window", "pays", "product", "product_backward"]

Tensor = torch.Tensor
UNFOLDING = 4
"""What it costs to move an element between windows and rows, about, where turning one around costs 1."""
ORDERING = 2
"""What it costs to bring an element of the weight into an order of the library's own, and of its gradient back."""


@dataclass(frozen=True)
class Window:
    """Kernel, stride, padding and dilation of both spatial dims."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def is_pixel(self) -> bool:
        """Whether each output sees one pixel, and each pixel at most one output."""
        return all(k == 1 for k in self.kernel) and not any(self.padding)

    def size(self, x: Tensor) -> tuple[int, ...]:
        """H' and W'."""
        sizes = zip(x.shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)


def pays(x: Tensor, weight: Tensor, window: Window) -> bool:
    """Whether moving what a product needs of the block costs less than ordering the weight."""
    pixels = x.shape[0] * window.size(x)[0] * window.size(x)[1]
    moved = pixels * (weight[0].numel() + weight.shape[0])
    return moved * (1 if window.is_pixel else UNFOLDING) <= weight.numel() * ORDERING


def product(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    """The convolution, (N, K, H', W')."""
    rows, matrix = _rows(x, window), weight.reshape(weight.shape[0], -1).t()
    y = rows @ matrix if bias is None else torch.addmm(bias, rows, matrix)
    return y.view(x.shape[0], *window.size(x), -1).permute(0, 3, 1, 2).contiguous()


def product_backward(
    grad: Tensor, x: Tensor, weight: Tensor, window: Window, mask: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias, as far as `mask` asks for them."""
    of_y = grad.permute(0, 2, 3, 1).reshape(-1, grad.shape[1])
    of_x = _folded(of_y @ weight.reshape(weight.shape[0], -1), x, window) if mask[0] else None
    of_weight = (of_y.t() @ _rows(x, window)).view(weight.shape) if mask[1] else None
    return of_x, of_weight, of_y.sum(0) if mask[2] else None


def _rows(x: Tensor, window: Window) -> Tensor:
    if window.is_pixel:
        seen = x[:, :, :: window.stride[0], :: window.stride[1]]
        return seen.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    columns = F.unfold(x, window.kernel, window.dilation, window.padding, window.stride)
    return columns.transpose(1, 2).reshape(-1, columns.shape[1])


def _folded(rows: Tensor, x: Tensor, window: Window) -> Tensor:
    """The adjoint of `_rows`: every pixel gets the sum of what the windows have in its place."""
    if window.is_pixel and all(s == 1 for s in window.stride):
        return rows.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2).contiguous()
    columns = rows.view(x.shape[0], -1, rows.shape[1]).transpose(1, 2)
    return F.fold(columns, x.shape[2:], window.kernel, window.dilation, window.padding, window.stride)
