"""Maths of one block of rows that are cut over devices: what each block contributes, and what follows from the sum.

A row runs along the dims that are reduced; statistics have one entry (of one to three numbers) a row.
"""

from math import prod

import torch

from meshemu.workload.kernels import accumulator, moments

__all__ = [
    "extreme",
    "log_of_sums",
    "log_sums",
    "pick_extreme",
    "powered_sums",
    "prefix",
    "reduce_block",
    "rooted",
    "row_moments",
    "softmax",
    "softmax_backward",
    "softmax_backward_sums",
    "variance",
]

Tensor = torch.Tensor
Range = tuple[int, int]
aten = torch.ops.aten


def _rows(x: Tensor, dims: list[int]) -> Tensor:
    """X with `dims` merged into a last one."""
    kept = [d for d in range(x.dim()) if d not in dims]
    return x.permute(*kept, *dims).reshape(*(x.shape[d] for d in kept), prod(x.shape[d] for d in dims))


def _spread(statistics: Tensor, dims: list[int]) -> Tensor:
    """Statistics of rows with ones in place of `dims`."""
    for dim in sorted(dims):
        statistics = statistics.unsqueeze(dim)
    return statistics


def log_sums(x: Tensor, dims: list[int]) -> Tensor:
    """(maximum, sum of exp(x - maximum)) of every row, (*rows, 2); (-inf, 0) of an empty one."""
    rows = _rows(x.to(accumulator(x.dtype)), dims)
    if not rows.shape[-1]:
        return torch.stack([rows.new_full(rows.shape[:-1], float("-inf")), rows.new_zeros(rows.shape[:-1])], -1)
    highest = rows.amax(-1)
    shift = torch.where(highest.isinf(), torch.zeros_like(highest), highest)
    return torch.stack([highest, (rows - shift[..., None]).exp().sum(-1)], -1)


def log_of_sums(total: Tensor, dims: list[int], dtype: torch.dtype) -> Tensor:
    """Logsumexp from the statistics of whole rows; dims: where to put dims of size 1."""
    highest, scaled = total.unbind(-1)
    shift = torch.where(highest.isinf(), torch.zeros_like(highest), highest)
    return _spread(scaled.log() + shift, dims).to(dtype)


def softmax(x: Tensor, total: Tensor, dim: int, name: str, dtype: torch.dtype) -> Tensor:
    """A block of _softmax, _log_softmax or _safe_softmax from the statistics of whole rows.

    Rows of -inf alone have no softmax (NaN), or zeros where it is safe.
    """
    highest, scaled = (_spread(s, [dim]) for s in total.unbind(-1))
    centred = x.to(highest.dtype) - highest
    if name == "_log_softmax":
        return (centred - scaled.log()).to(dtype)
    y = centred.exp() / scaled
    if name == "_safe_softmax":
        y = torch.where(highest == float("-inf"), torch.zeros_like(y), y)
    return y.to(dtype)


def softmax_backward_sums(grad: Tensor, output: Tensor, dim: int, logarithmic: bool) -> Tensor:
    """The sum that the gradient of a row needs: of grad, or of grad * output where `output` is no logarithm."""
    dtype = accumulator(grad.dtype)
    return (grad.to(dtype) if logarithmic else grad.to(dtype) * output.to(dtype)).sum(dim)


def softmax_backward(
    grad: Tensor, output: Tensor, total: Tensor, dim: int, logarithmic: bool, dtype: torch.dtype
) -> Tensor:
    """Gradient of a block's input from the sums of whole rows."""
    row = total.unsqueeze(dim)
    if logarithmic:
        return (grad.to(total.dtype) - output.to(total.dtype).exp() * row).to(dtype)
    return (output.to(total.dtype) * (grad.to(total.dtype) - row)).to(dtype)


def row_moments(x: Tensor, dims: list[int]) -> Tensor:
    """(count, mean, sum of squared deviations) of every row, (*rows, 3)."""
    rows = _rows(x, dims)
    return moments(rows.reshape(1, prod(rows.shape[:-1]), rows.shape[-1])).view(*rows.shape[:-1], 3)


def variance(
    total: Tensor, dims: list[int], correction: float, root: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(variance or standard deviation, mean) from the moments of whole rows; dims: where to put dims of size 1."""
    count, mean, m2 = total.unbind(-1)
    spread = m2 / (count - correction).clamp(min=0)
    return _spread(spread.sqrt() if root else spread, dims).to(dtype), _spread(mean, dims).to(dtype)


def reduce_block(x: Tensor, name: str, dims: list[int], keepdim: bool) -> Tensor:
    """Amax, amin, prod, any or all of a block over `dims`; an empty block yields what changes nothing."""
    if not all(x.shape[d] for d in dims):
        kept = [1 if d in dims else n for d, n in enumerate(x.shape) if keepdim or d not in dims]
        return torch.full(kept, _neutral(name, x.dtype), dtype=torch.bool if name in ("any", "all") else x.dtype)
    if name == "prod":
        for dim in sorted(dims, reverse=True):
            x = x.prod(dim, keepdim=keepdim, dtype=x.dtype)
        return x
    result: Tensor = getattr(torch, name)(x, dims, keepdim=keepdim)
    return result


def _neutral(name: str, dtype: torch.dtype) -> float:
    if name in ("any", "all", "prod"):
        return float(name != "any")
    if dtype == torch.bool:
        return float(name == "amin")
    if dtype.is_floating_point:
        return float("-inf" if name == "amax" else "inf")
    limits = torch.iinfo(dtype)
    return limits.min if name == "amax" else limits.max


def powered_sums(x: Tensor, order: float, dims: list[int], dtype: torch.dtype) -> Tensor:
    """Sum of |x| ** order of every row (how many differ from zero, for order 0), with dims of size 1 kept."""
    size = x.abs().to(dtype)
    powered = (size != 0).to(dtype) if order == 0 else size.square() if order == 2 else size.pow(order)
    return powered.sum(dims, keepdim=True)


def rooted(total: Tensor, order: float, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The norm from powered sums."""
    root = total if order in (0, 1) else total.sqrt() if order == 2 else total.pow(1 / order)
    return root.reshape(shape).to(dtype)


def extreme(x: Tensor, name: str, dim: int, inside: Range) -> tuple[Tensor, Tensor]:
    """(max or min of a block along `dim`, its global index), the dim kept; an empty block loses to any other."""
    if not x.shape[dim]:
        shape = [1 if d == dim else n for d, n in enumerate(x.shape)]
        worst = _neutral("amax" if name == "max" else "amin", x.dtype)
        return torch.full(shape, worst, dtype=x.dtype), torch.full(shape, inside[0])
    values, indices = getattr(torch, name)(x, dim, keepdim=True)
    return values, indices + inside[0]


def pick_extreme(values: Tensor, indices: Tensor, name: str, dim: int, keepdim: bool) -> tuple[Tensor, Tensor]:
    """The best of one candidate per block, the first of equals."""
    comparable = values.byte() if values.dtype == torch.bool else values
    winner = getattr(torch, f"arg{name}")(comparable, dim, keepdim=True)
    best, where = values.gather(dim, winner), indices.gather(dim, winner)
    return (best, where) if keepdim else (best.squeeze(dim), where.squeeze(dim))


def prefix(x: Tensor, before: Tensor, name: str, dim: int, dtype: torch.dtype) -> Tensor:
    """Cumsum or cumprod of a block along `dim`, continued from the totals of the blocks before it."""
    if name == "cumsum":
        return x.cumsum(dim, dtype=dtype) + before.sum(dim, keepdim=True, dtype=dtype)
    return x.cumprod(dim, dtype=dtype) * before.prod(dim, keepdim=True, dtype=dtype)
