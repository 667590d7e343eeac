"""Maths of one block of pooling over windows, with indices and divisors of the whole map.

Legend: a window is (..., *S) with the spatial dims S last; every tuple has one entry per spatial dim.
"""

from dataclasses import dataclass

import torch

__all__ = ["Options", "PoolCounts", "average_pool", "average_pool_backward", "max_pool", "max_pool_backward"]

Tensor = torch.Tensor
Range = tuple[int, int]
aten = torch.ops.aten
MAX = {2: aten.max_pool2d_with_indices, 3: aten.max_pool3d_with_indices}
MAX_BACKWARD = {2: aten.max_pool2d_with_indices_backward, 3: aten.max_pool3d_with_indices_backward}
AVERAGE = {2: aten.avg_pool2d, 3: aten.avg_pool3d}
AVERAGE_BACKWARD = {2: aten.avg_pool2d_backward, 3: aten.avg_pool3d_backward}


@dataclass(frozen=True)
class Options:
    """Arguments of the operator on a window; size: of the whole map."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil: bool
    size: tuple[int, ...]

    @property
    def n_dims(self) -> int:
        """Number of spatial dims."""
        return len(self.kernel)


def max_pool(window: Tensor, options: Options, inside: list[Range]) -> tuple[Tensor, Tensor]:
    """(maxima, their flat indices in the whole map) of a window that holds `inside` of it."""
    o = options
    values, indices = MAX[o.n_dims].default(window, o.kernel, o.stride, o.padding, o.dilation, o.ceil)
    return values, _renumbered(indices, window.shape[-o.n_dims :], [-lo for lo, _ in inside], o.size)


def max_pool_backward(grad: Tensor, window: Tensor, indices: Tensor, options: Options, inside: list[Range]) -> Tensor:
    """Gradient of `max_pool` with respect to its window."""
    o = options
    local = _renumbered(indices, o.size, [lo for lo, _ in inside], window.shape[-o.n_dims :])
    result: Tensor = MAX_BACKWARD[o.n_dims].default(
        grad, window, o.kernel, o.stride, o.padding, o.dilation, o.ceil, local
    )
    return result


def _renumbered(flat: Tensor, before: tuple[int, ...], origin: list[int], after: tuple[int, ...]) -> Tensor:
    """Flat indices into a box of sizes `before` as flat indices into one of sizes `after` that begins at `origin`."""
    result, stride = torch.zeros_like(flat), 1
    for n, start, n_after in zip(reversed(before), reversed(origin), reversed(after), strict=True):
        result += (flat % n - start) * stride
        flat, stride = flat // n, stride * n_after
    return result


def average_pool(window: Tensor, counts: "PoolCounts", options: Options, outputs: list[Range]) -> Tensor:
    """Average pooling of a window that yields the outputs in the ranges `outputs`."""
    o = options
    total = AVERAGE[o.n_dims].default(window, o.kernel, o.stride, o.padding, o.ceil, True, 1)
    return torch.div(total, counts.divisor(outputs).to(window.dtype))


def average_pool_backward(
    grad: Tensor, window: Tensor, counts: "PoolCounts", options: Options, outputs: list[Range]
) -> Tensor:
    """Gradient of `average_pool` with respect to its window."""
    o = options
    share = (grad / counts.divisor(outputs).to(grad.dtype)).contiguous()
    backward = AVERAGE_BACKWARD[o.n_dims].default
    result: Tensor = backward(share, window, o.kernel, o.stride, o.padding, o.ceil, True, 1)
    return result


@dataclass(frozen=True)
class PoolCounts:
    """How many elements each output of an average pool divides by."""

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    include_padding: bool
    override: int | None

    def divisor(self, outputs: list[Range]) -> Tensor:
        """Divisors of the outputs in these ranges, one dim per range."""
        if self.override is not None:
            return torch.full([hi - lo for lo, hi in outputs], self.override)
        result = torch.ones((), dtype=torch.int64)
        for dim, inside in enumerate(outputs):
            result = result[..., None] * self._counts(dim, inside)
        return result

    def _counts(self, dim: int, outputs: Range) -> Tensor:
        start = torch.arange(*outputs) * self.stride[dim] - self.padding[dim]
        stop = (start + self.kernel[dim]).clamp(max=self.size[dim] + self.padding[dim])
        if self.include_padding:
            return stop - start
        return stop.clamp(max=self.size[dim]) - start.clamp(min=0)
