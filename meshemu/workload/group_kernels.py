"""Maths of one block of group normalisation, in pieces between which statistics are merged over devices.

Legend: N samples, G groups, C channels, S all other dims together. x and gradients are (N, C, *S), statistics (N, G).
"""

import torch

from meshemu.workload.kernels import accumulator, moments

__all__ = [
    "group_backward",
    "group_backward_sums",
    "group_mean_and_inverse",
    "group_moments",
    "group_normalise",
    "group_parameter_gradients",
]

Tensor = torch.Tensor


def group_moments(x: Tensor, groups: int) -> Tensor:
    """(count, mean, M2) of every group of every sample, as (N, G, 3)."""
    return moments(x.reshape(1, x.shape[0] * groups, -1)).view(x.shape[0], groups, 3)


def group_mean_and_inverse(total: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and inverse standard deviation from moments (N, G, 3)."""
    return total[..., 1].contiguous(), (total[..., 2] / total[..., 0] + eps).rsqrt()


def group_normalise(x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """A block normalised by statistics of whole groups."""
    y = _normalised(x, mean, inverse)
    if weight is not None:
        y = y * weight.to(y.dtype)[None, :, None]
    if bias is not None:
        y = y + bias.to(y.dtype)[None, :, None]
    return y.view(x.shape).to(x.dtype)


def group_backward_sums(grad: Tensor, x: Tensor, mean: Tensor, weight: Tensor | None) -> Tensor:
    """(sum of dy * weight, sum of dy * weight * (x - mean)) of every group, as (N, G, 2)."""
    dy, centred = _by_group(_weighted(grad, weight), mean), _by_group(x, mean) - mean[..., None]
    return torch.stack([dy.sum(dim=2), (dy * centred).sum(dim=2)], dim=2)


def group_backward(
    grad: Tensor, x: Tensor, sums: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor | None, count: int
) -> Tensor:
    """Gradient of a block's input from the sums over whole groups of `count` elements."""
    dy, centred = _by_group(_weighted(grad, weight), mean), _by_group(x, mean) - mean[..., None]
    projection = sums[..., 1] / count * inverse.square()
    result = (dy - (sums[..., 0] / count)[..., None] - centred * projection[..., None]) * inverse[..., None]
    return result.view(x.shape).to(x.dtype)


def group_parameter_gradients(grad: Tensor, x: Tensor, mean: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """The block's terms of the gradients of weight and bias, (C) each."""
    y = _normalised(x, mean, inverse)
    dy = grad.reshape(y.shape).to(y.dtype)
    return (dy * y).sum(dim=(0, 2)).to(x.dtype), dy.sum(dim=(0, 2)).to(x.dtype)


def _normalised(x: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
    """(N, C, S)."""
    y = (_by_group(x, mean) - mean[..., None]) * inverse[..., None]
    return y.view(x.shape[0], x.shape[1], -1)


def _by_group(x: Tensor, mean: Tensor) -> Tensor:
    """(N, G, C / G * S), contiguous, in the format that statistics are kept in."""
    return x.to(accumulator(x.dtype)).reshape(*mean.shape, -1).contiguous()


def _weighted(grad: Tensor, weight: Tensor | None) -> Tensor:
    return grad if weight is None else grad * weight.view(1, -1, *[1] * (grad.dim() - 2))
