"""Maths of one block that ATen has no single operator for: batch norm in pieces, pooling with exact divisors, random.

Legend: N batch, C channels, S all other dims together.
"""

from dataclasses import dataclass
from typing import Any

import torch

__all__ = [
    "PoolCounts",
    "accumulator",
    "average_pool",
    "average_pool_backward",
    "bernoulli",
    "dropout",
    "mean_and_inverse",
    "merge_moments",
    "moments",
    "normalise",
    "normalise_backward",
    "normalise_backward_sums",
    "normalise_parameter_gradients",
    "running_statistics",
    "scatter_strided_window",
    "strided_window",
    "uniform",
]


Range = tuple[int, int]


def moments(x: torch.Tensor) -> torch.Tensor:
    """(count, mean, M2) of every channel of x (N, C, *S), as (C, 3); zeros for an empty block."""
    n_channels = x.shape[1]
    rows = _by_channel(x.to(accumulator(x.dtype)))
    count = rows.shape[1]
    mean = rows.mean(dim=1)
    m2 = (rows - mean[:, None]).square().sum(dim=1)
    return torch.stack([torch.full((n_channels,), float(count), dtype=rows.dtype), mean, m2], dim=1)


def merge_moments(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Moments (C, 3) of two disjoint sets together (Chan, Golub and LeVeque 1979, eq. 2.1); a set may be empty."""
    n_a, mean_a, m2_a = a.unbind(1)
    n_b, mean_b, m2_b = b.unbind(1)
    n = n_a + n_b
    weight = n_b / n.clamp(min=1)
    delta = mean_b - mean_a
    return torch.stack([n, mean_a + delta * weight, m2_a + m2_b + delta.square() * n_a * weight], dim=1)


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
    shape = (1, -1, *[1] * (x.dim() - 2))
    scale = inverse if weight is None else inverse * weight.to(inverse.dtype)
    y = (x.to(inverse.dtype) - mean.view(shape)) * scale.view(shape)
    if bias is not None:
        y = y + bias.to(inverse.dtype).view(shape)
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
    dtype = accumulator(x.dtype)
    dy, rows = _by_channel(grad.to(dtype)), _by_channel(x.to(dtype))
    return torch.stack([dy.sum(dim=1), (dy * (rows - mean[:, None])).sum(dim=1)], dim=1)


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
    shape = (1, -1, *[1] * (x.dim() - 2))
    scale = inverse if weight is None else inverse * weight.to(dtype)
    mean_dy = (sums[:, 0] / count).view(shape)
    projection = (sums[:, 1] / count * inverse.square()).view(shape)
    centred = x.to(dtype) - mean.view(shape)
    return ((grad.to(dtype) - mean_dy - centred * projection) * scale.view(shape)).to(x.dtype)


def normalise_parameter_gradients(sums: torch.Tensor, inverse: torch.Tensor, dtype: torch.dtype) -> tuple[Any, Any]:
    """Gradients of weight and bias from the sums over the whole batch."""
    return (sums[:, 1] * inverse).to(dtype), sums[:, 0].to(dtype)


def average_pool(
    window: torch.Tensor, counts: "PoolCounts", padding: list[int], ceil: bool, h: Range, w: Range
) -> torch.Tensor:
    """Average pooling of a window (N, C, H, W) that yields output rows `h` and columns `w`.

    padding: what the window does not hold yet.
    """
    total = torch.ops.aten.avg_pool2d.default(window, counts.kernel, counts.stride, padding, ceil, True, 1)
    return torch.div(total, counts.divisor(h, w).to(window.dtype))


def average_pool_backward(
    grad: torch.Tensor,
    window: torch.Tensor,
    counts: "PoolCounts",
    padding: list[int],
    ceil: bool,
    h: Range,
    w: Range,
) -> torch.Tensor:
    """Gradient of `average_pool` with respect to its window."""
    share = (grad / counts.divisor(h, w).to(grad.dtype)).contiguous()
    backward = torch.ops.aten.avg_pool2d_backward.default
    result: torch.Tensor = backward(share, window, counts.kernel, counts.stride, padding, ceil, True, 1)
    return result


@dataclass(frozen=True)
class PoolCounts:
    """How many elements each output of an average pool divides by; every field is (height, width)."""

    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    include_padding: bool
    override: int | None

    def divisor(self, h: Range, w: Range) -> torch.Tensor:
        """Divisors (rows, columns) of the outputs in rows `h` and columns `w`."""
        if self.override is not None:
            return torch.full((h[1] - h[0], w[1] - w[0]), self.override)
        return self._counts(0, h)[:, None] * self._counts(1, w)[None, :]

    def _counts(self, dim: int, outputs: Range) -> torch.Tensor:
        start = torch.arange(*outputs) * self.stride[dim] - self.padding[dim]
        stop = (start + self.kernel[dim]).clamp(max=self.size[dim] + self.padding[dim])
        if self.include_padding:
            return stop - start
        return stop.clamp(max=self.size[dim]) - start.clamp(min=0)


def strided_window(x: torch.Tensor, size: tuple[int, ...], stride: list[int], offset: int) -> torch.Tensor:
    """A strided window of x as if it were contiguous."""
    return x.contiguous().as_strided(size, stride, offset)


def scatter_strided_window(x: torch.Tensor, window: torch.Tensor, stride: list[int], offset: int) -> torch.Tensor:
    """X with a strided window replaced."""
    result = x.clone(memory_format=torch.contiguous_format)
    result.as_strided(window.shape, stride, offset).copy_(window)
    return result


def uniform(
    shape: tuple[int, ...],
    ranges: dict[int, Range],
    full: tuple[int, ...],
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Uniform numbers in [0, 1) of 24 bits: a hash of (seed, global element index), so no matter how `full` is cut.

    ranges: dim -> (lo, hi) of this block. SplitMix64's finaliser (Steele, Lea and Flood 2014) over index and seed.
    """
    index = torch.zeros(shape, dtype=torch.int64)
    stride = 1
    for dim in reversed(range(len(full))):
        lo = ranges.get(dim, (0, 0))[0]
        along = (torch.arange(shape[dim], dtype=torch.int64) + lo) * stride
        index += along.view(-1, *[1] * (len(full) - dim - 1))
        stride *= full[dim]
    bits = _mix(_mix(index + _signed(seed)) ^ _signed(seed * 0x9E3779B97F4A7C15))
    return (((bits >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-24).to(dtype)


def bernoulli(x: torch.Tensor, p: float, ranges: Any, full: tuple[int, ...], seed: int) -> torch.Tensor:
    """Ones with probability p, like x."""
    return (uniform(tuple(x.shape), ranges, full, seed) < p).to(x.dtype)


def dropout(
    x: torch.Tensor, p: float, ranges: Any, full: tuple[int, ...], seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x masked and scaled by 1 / (1 - p), mask)."""
    mask = uniform(tuple(x.shape), ranges, full, seed) >= p
    scale = 0.0 if p == 1 else 1 / (1 - p)
    return x * mask * scale, mask


def _by_channel(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(0, 1).reshape(x.shape[1], -1).contiguous()


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The number format that sums and statistics of a number format are kept in."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _mix(z: torch.Tensor) -> torch.Tensor:
    z = (z ^ _shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift_right(z, 31)


def _shift_right(z: torch.Tensor, by: int) -> torch.Tensor:
    return (z >> by) & ((1 << (64 - by)) - 1)


def _signed(bits: int) -> int:
    bits &= (1 << 64) - 1
    return bits - (1 << 64) if bits >> 63 else bits
