"""Maths of one block of batch normalisation, in pieces between which statistics are merged; windows of strides.

Legend: N batch, C channels, S all other dims together.
"""

from typing import Any

import torch

__all__ = [
    "accumulator",
    "mean_and_inverse",
    "moments",
    "normalise",
    "normalise_backward",
    "normalise_backward_sums",
    "normalise_parameter_gradients",
    "running_deviation",
    "running_statistics",
    "scaled_gradient",
    "scatter_strided_window",
    "strided_window",
]



def moments(x: torch.Tensor) -> torch.Tensor:
    """(count, mean, M2) of every channel of x (N, C, *S), as (C, 3); zeros for an empty block."""
    x = _packed(x)
    dims, n_channels = _others(x), x.shape[1]
    if not x.numel():
        return x.new_zeros(n_channels, 3)
    mean = x.mean(dims)
    centred = x - _spread(mean, x)
    m2 = centred.mul_(centred).sum(dims)
    return torch.stack([torch.full_like(mean, x.numel() // n_channels), mean, m2], dim=1)


def mean_and_inverse(total: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (C) and inverse standard deviation (C) from moments (C, 3)."""
    return total[:, 1].contiguous(), (total[:, 2] / total[:, 0] + eps).rsqrt()


def normalise(
    x: torch.Tensor,
    mean: torch.Tensor,
    inverse: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Batch norm of a block (N, C, *S) by statistics (C) of the whole batch."""
    scale = inverse if weight is None else inverse * weight.to(inverse.dtype)
    y = x.to(inverse.dtype) - _spread(mean, x)
    if bias is None:
        y.mul_(_spread(scale, x))
    else:
        torch.addcmul(_spread(bias.to(inverse.dtype), x), y, _spread(scale, x), out=y)
    return y.to(x.dtype)


def running_statistics(
    total: torch.Tensor, running_mean: torch.Tensor, running_var: torch.Tensor, momentum: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Running mean and (unbiased) variance after a batch with moments `total`."""
    n, mean, m2 = total.unbind(1)
    variance = m2 / (n - 1).clamp(min=1)
    return (
        (running_mean * (1 - momentum) + mean * momentum).to(running_mean.dtype),
        (running_var * (1 - momentum) + variance * momentum).to(running_var.dtype),
    )


def normalise_backward_sums(grad: torch.Tensor, x: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """(sum of dy, sum of dy * (x - mean)) of every channel, as (C, 2)."""
    dy, x = _packed(grad), _packed(x)
    product = (x - _spread(mean, x)).mul_(dy)
    return torch.stack([dy.sum(_others(x)), product.sum(_others(x))], dim=1)


def normalise_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    sums: torch.Tensor,
    mean: torch.Tensor,
    inverse: torch.Tensor,
    weight: torch.Tensor | None,
    count: int,
) -> torch.Tensor:
    """Gradient of a block's input from the sums over the whole batch of `count` elements a channel."""
    dtype = accumulator(x.dtype)
    scale = inverse if weight is None else inverse * weight.to(dtype)
    offset = _spread(-scale * sums[:, 0] / count, x)
    projection = _spread(-scale * sums[:, 1] / count * inverse.square(), x)
    result = x.to(dtype) - _spread(mean, x)
    torch.addcmul(offset, result, projection, out=result)
    return result.addcmul_(grad.to(dtype), _spread(scale, x)).to(x.dtype)


def running_deviation(running_mean: torch.Tensor, running_var: torch.Tensor, eps: float) -> tuple[Any, Any]:
    """Mean and inverse standard deviation of fixed statistics."""
    return running_mean, (running_var + eps).rsqrt()


def scaled_gradient(
    grad: torch.Tensor, x: torch.Tensor, _sums: Any, _mean: Any, inverse: torch.Tensor, weight: Any, _count: int
) -> torch.Tensor:
    """Gradient of a block's input through fixed statistics."""
    scale = inverse if weight is None else inverse * weight
    return (grad * _spread(scale, x)).to(x.dtype)


def normalise_parameter_gradients(sums: torch.Tensor, inverse: torch.Tensor, dtype: torch.dtype) -> tuple[Any, Any]:
    """Gradients of weight and bias from the sums over the whole batch."""
    return (sums[:, 1] * inverse).to(dtype), sums[:, 0].to(dtype)


def strided_window(x: torch.Tensor, size: tuple[int, ...], stride: list[int], offset: int) -> torch.Tensor:
    """A strided window of x as if it were contiguous; x may itself lie anywhere in its storage."""
    x = x.contiguous()
    return x.as_strided(size, stride, x.storage_offset() + offset)


def scatter_strided_window(x: torch.Tensor, window: torch.Tensor, stride: list[int], offset: int) -> torch.Tensor:
    """X with a strided window replaced."""
    result = x.clone(memory_format=torch.contiguous_format)
    result.as_strided(window.shape, stride, offset).copy_(window)
    return result


def _packed(x: torch.Tensor) -> torch.Tensor:
    """X as statistics are made of it: sums of the same numbers in other strides may differ in their last bits."""
    return x.to(accumulator(x.dtype)).contiguous()


def _others(x: torch.Tensor) -> list[int]:
    """The dims of x but for its channels."""
    return [0, *range(2, x.dim())]


def _spread(vector: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A number for each channel, as it broadcasts over x."""
    return vector.view(-1, *[1] * (x.dim() - 2))


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The number format that sums and statistics of a number format are kept in."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
