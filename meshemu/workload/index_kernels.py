"""Maths of one block where elements are read and written by global index, some of which other blocks hold."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["gather", "index", "index_add_to_zeros", "index_put", "index_select", "lookup", "scatter", "scatter_rows"]

Tensor = torch.Tensor
Range = tuple[int, int]
aten = torch.ops.aten


def _local(index: Tensor, inside: Range) -> tuple[Tensor, Tensor]:
    """(which indices lie inside, the place of each in the block; 0 for the others)."""
    held = (index >= inside[0]) & (index < inside[1])
    return held, torch.where(held, index - inside[0], 0)


def lookup(table: Tensor, indices: Tensor, inside: Range, n_rows: int) -> Tensor:
    """Rows of a table that this block holds, zeros for the others.

    Raises IndexError, as the operator does, for an index that is in no block.
    """
    if bool((indices < 0).any()) or bool((indices >= n_rows).any()):
        raise IndexError(f"index out of range in a table of {n_rows} rows")
    if inside == (0, n_rows):
        return table[indices]
    held, local = _local(indices, inside)
    return table[local].mul_(held[..., None])


def scatter_rows(grad: Tensor, indices: Tensor, inside: Range, padding: int, scale: bool) -> Tensor:
    """The rows of the gradient of a table that this block holds."""
    n = inside[1] - inside[0]
    held, local = _local(indices, inside)
    local = torch.where(held & (indices != padding), local, n)
    result: Tensor = aten.embedding_dense_backward.default(grad, local, n + 1, n, scale)
    return result[:n]


def gather(x: Tensor, dim: int, index: Tensor, inside: Range) -> Tensor:
    """torch.gather of what this block holds, zeros for the rest."""
    held, local = _local(index, inside)
    return torch.where(held, x.gather(dim, local), torch.zeros((), dtype=x.dtype))


def index_select(x: Tensor, dim: int, index: Tensor, inside: Range) -> Tensor:
    """torch.index_select of what this block holds, zeros for the rest."""
    held, local = _local(index, inside)
    return torch.where(
        held.view(-1, *[1] * (x.dim() - dim - 1)), x.index_select(dim, local), torch.zeros((), dtype=x.dtype)
    )


def scatter(
    operator: Callable[..., Tensor], x: Tensor, dim: int, inside: Range, given: Sequence[Any], kwargs: dict[str, Any]
) -> Tensor:
    """A scatter into this block: what belongs to other blocks goes into a spare element, which is dropped."""
    n = inside[1] - inside[0]
    held, local = _local(given[0], inside)
    spare = torch.cat([x, x.new_zeros([1 if d == dim else size for d, size in enumerate(x.shape)])], dim)
    return operator(spare, dim, torch.where(held, local, n), *given[1:], **kwargs).narrow(dim, 0, n).contiguous()


def _wrapped(indices: Sequence[Tensor | None], inside: Sequence[Range | None], shape: Sequence[int]) -> Any:
    """(which broadcast indices lie in the block, their places): negative ones count from the end.

    Raises IndexError, as the operator does, for an index outside the tensor.
    """
    present = [i for i in indices if i is not None]
    held = torch.ones(np.broadcast_shapes(*(i.shape for i in present)), dtype=torch.bool)
    local: list[Tensor | None] = []
    for i, bounds, size in zip(indices, inside, shape, strict=False):
        if i is None or bounds is None:
            local.append(None)
            continue
        if bool((i < -size).any()) or bool((i >= size).any()):
            raise IndexError(f"index out of bounds for a dim of size {size}")
        here, place = _local(torch.where(i < 0, i + size, i), bounds)
        held = held & here
        local.append(place)
    return held, local


def index(
    x: Tensor, indices: Sequence[Tensor | None], inside: Sequence[Range | None], shape: Sequence[int], first: int
) -> Tensor:
    """x[indices] of what this block holds, zeros for the rest; the dims of the indices begin at dim `first`."""
    held, local = _wrapped(indices, inside, shape)
    result: Tensor = aten.index.Tensor(x, local)
    return torch.where(
        held.view(*held.shape, *[1] * (result.dim() - first - held.dim())), result, torch.zeros((), dtype=x.dtype)
    )


def index_add_to_zeros(shape: Sequence[int], indices: Sequence[Tensor | None], new: Tensor) -> Tensor:
    """Values added up where indices say, in zeros of the whole shape."""
    result: Tensor = aten.index_put.default(torch.zeros(shape, dtype=new.dtype), indices, new, True)
    return result


def index_put(
    x: Tensor, indices: Sequence[Tensor | None], new: Tensor, accumulate: bool, inside: Sequence[Range | None],
    shape: Sequence[int],
) -> Tensor:  # fmt: skip
    """A block with what falls into it of x[indices] = new (or += new)."""
    held, local = _wrapped(indices, inside, shape)
    if bool(held.all()):
        result: Tensor = aten.index_put.default(x, local, new, accumulate)
        return result
    selected: Tensor = aten.index.Tensor(x, local)
    dims = [d for d, i in enumerate(indices) if i is not None]
    first = dims[0] if dims[-1] - dims[0] + 1 == len(dims) else 0
    spread = new.expand(selected.shape).movedim(list(range(first, first + held.dim())), list(range(held.dim())))
    order = [*dims, *(d for d in range(x.dim()) if d not in dims)]
    moved = x.permute(order).contiguous()
    places = [i.expand(held.shape)[held] for i in local if i is not None]
    result = aten.index_put.default(moved, places, spread[held], accumulate)
    return result.permute([order.index(d) for d in range(x.dim())]).contiguous()
