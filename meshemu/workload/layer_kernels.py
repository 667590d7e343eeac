"""Maths of one block of layer normalisation, in pieces between which statistics of rows are merged over devices.

x and gradients are (*rows, *inner), statistics (*rows, 1 ...) with a 1 for every inner dim, weight and bias (*inner).
"""

import torch

from meshemu.workload.kernels import accumulator

__all__ = ["backward", "backward_sums", "mean_and_inverse", "normalise", "parameter_gradients", "weight_norm",
           "weight_norm_backward"]

Tensor = torch.Tensor


def mean_and_inverse(total: Tensor, eps: float, n_inner: int) -> tuple[Tensor, Tensor]:
    """Mean and inverse standard deviation of rows from their moments (*rows, 3)."""
    count, mean, m2 = total.unbind(-1)
    shape = (*mean.shape, *[1] * n_inner)
    return mean.reshape(shape), (m2 / count + eps).rsqrt().reshape(shape)


def normalise(x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """A block normalised by the statistics of whole rows."""
    y = (x.to(mean.dtype) - mean) * inverse
    if weight is not None:
        y = y * weight.to(y.dtype)
    if bias is not None:
        y = y + bias.to(y.dtype)
    return y.to(x.dtype)


def backward_sums(
    grad: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor | None, dims: list[int]
) -> Tensor:
    """(sum of g, sum of g * normalised x) of every row, (*rows, 1 ..., 2), where g is grad * weight.

    dims: along which rows run.
    """
    g, y = _weighted(grad, weight), (x.to(mean.dtype) - mean) * inverse
    return torch.stack([g.sum(dims, keepdim=True), (g * y).sum(dims, keepdim=True)], dim=-1)


def backward(
    grad: Tensor, x: Tensor, sums: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor | None, count: int
) -> Tensor:
    """Gradient of a block's input from the sums over whole rows of `count` elements."""
    g, y = _weighted(grad, weight), (x.to(mean.dtype) - mean) * inverse
    of_grad, of_product = sums.unbind(-1)
    return ((g - of_grad / count - y * (of_product / count)) * inverse).to(x.dtype)


def parameter_gradients(
    grad: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, n_rows: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The block's terms of the gradients of weight and bias; n_rows: number of row dims."""
    g, y = grad.to(mean.dtype), (x.to(mean.dtype) - mean) * inverse
    if not n_rows:
        return (g * y).to(dtype), g.to(dtype)
    dims = list(range(n_rows))
    return (g * y).sum(dims).to(dtype), g.sum(dims).to(dtype)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """(g * v / norm of v, the norm), norms being over all dims but one; PyTorch's kernel takes blocks to be packed."""
    w, norms = torch.ops.aten._weight_norm_interface.default(v.contiguous(), g.contiguous(), dim)
    return w, norms


def weight_norm_backward(grad: Tensor, v: Tensor, g: Tensor, norms: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Gradients of v and g."""
    packed = (t.contiguous() for t in (grad, v, g, norms))
    of_v, of_g = torch.ops.aten._weight_norm_interface_backward.default(*packed, dim)
    return of_v, of_g


def _weighted(grad: Tensor, weight: Tensor | None) -> Tensor:
    grad = grad.to(accumulator(grad.dtype))
    return grad if weight is None else grad * weight.to(grad.dtype)
