"""Layer norm: rows are independent; where rows themselves are cut, their moments are merged over devices.

Weight normalisation, whose rows are those of one dim of a weight, is here too.
"""

import string
from math import prod
from typing import Any

from torch import fx

from meshemu.workload import layer_kernels as kernels
from meshemu.workload.kernels import accumulator
from meshemu.workload.layout import Layout
from meshemu.workload.lowering import Lowering
from meshemu.workload.rules.cuts import Args, Kwargs, argument, axes_of, rows_layout, rows_shape
from meshemu.workload.rules.statistics import moments_of
from meshemu.workload.spmd import Value

__all__ = ["RULES"]


def layer_norm(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """input, normalized_shape, weight, bias, eps -> (y, mean, inverse deviation)."""
    source = low.resolve(args[0])
    dims = _dims(source, args[1])
    if not axes_of(source, dims):
        names, rows, inner, statistics = _letters(source, args[1])
        affine = [inner] * sum(isinstance(v, Value) for v in args[2:4])
        return low.sharded(
            node, (source, *args[1:]), kwargs, [names, *affine], [names, statistics, statistics], free=rows
        )
    kept = rows_layout(source, dims, keepdim=True, partial=False)
    vector = (rows_shape(source, dims, keepdim=True), accumulator(source.dtype), kept)
    mean, inverse = low.compute(
        kernels.mean_and_inverse,
        (moments_of(low, source, dims), args[4], len(dims)),
        [low.value(*vector), low.value(*vector)],
        op_class="batch_norm_running",
    )
    weight, bias = (_affine(low, source, dims, v) for v in args[2:4])
    (result,) = low.compute(
        kernels.normalise,
        (source, mean, inverse, weight, bias),
        [low.value(source.shape, source.dtype, source.layout)],
        op_class="batch_norm_normalise",
    )
    return result, mean, inverse


def layer_norm_backward(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """grad, input, normalized_shape, mean, inverse, weight, bias, mask."""
    source = low.resolve(args[1])
    dims = _dims(source, args[2])
    if not axes_of(source, dims):
        names, rows, inner, statistics = _letters(source, args[2])
        affine = [inner] * sum(isinstance(v, Value) for v in args[5:7])
        letters = [names, names, statistics, statistics, *affine]
        given = (args[0], source, *args[2:])
        return low.sharded(node, given, kwargs, letters, [names, inner, inner], free=rows, summed=rows)
    grad = low.fetch(args[0], source.layout)
    kept = rows_layout(source, dims, keepdim=True, partial=False)
    mean, inverse, mask = low.fetch(args[3], kept), low.fetch(args[4], kept), args[7]
    weight = _affine(low, source, dims, args[5])
    results: list[Value | None] = [None, None, None]
    if mask[0]:
        shape = (*rows_shape(source, dims, keepdim=True), 2)
        sums = low.value(shape, inverse.dtype, Layout(kept.splits, axes_of(source, dims)))
        (local,) = low.compute(
            kernels.backward_sums, (grad, source, mean, inverse, weight, dims), [sums],
            op_class="batch_norm_backward_sums",
        )  # fmt: skip
        (results[0],) = low.compute(
            kernels.backward,
            (grad, source, low.resolve(local), mean, inverse, weight, prod(args[2])),
            [low.value(source.shape, source.dtype, source.layout)],
            op_class="batch_norm_backward_input",
        )
    if mask[1] or mask[2]:
        outer = [d for d in range(len(source.shape)) if d not in dims]
        dtype = args[5].dtype if args[5] is not None else source.dtype
        shape, layout = rows_shape(source, outer), rows_layout(source, outer)
        results[1:] = low.compute(
            kernels.parameter_gradients,
            (grad, source, mean, inverse, len(outer), dtype),
            [low.value(shape, dtype, layout), low.value(shape, dtype, layout)],
            op_class="batch_norm_backward_sums",
        )
    return tuple(results)


def _dims(source: Value, normalised: list[int]) -> list[int]:
    """The normalised dims, the last ones."""
    return list(range(len(source.shape) - len(normalised), len(source.shape)))


def _affine(low: Lowering, source: Value, dims: list[int], vector: Value | None) -> Value | None:
    """Weight or bias, cut as the dims are that it belongs to."""
    if vector is None:
        return None
    outer = [d for d in range(len(source.shape)) if d not in dims]
    return low.fetch(vector, rows_layout(source, outer, partial=False))


def _letters(source: Value, normalised: list[int]) -> tuple[str, str, str, str]:
    """(letters of the input, of its rows, of the normalised dims, of the statistics)."""
    names = string.ascii_lowercase[: len(source.shape)]
    n_rows = len(names) - len(normalised)
    return names, names[:n_rows], names[n_rows:], names[:n_rows] + string.ascii_uppercase[: len(normalised)]


def weight_norm(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """_weight_norm_interface: v, g, dim -> (w, norms); rows are those of `dim`."""
    dim = argument(args, kwargs, 2, "dim", 0)
    v, g = _weight_letters(args[0], dim)
    return low.sharded(node, args, kwargs, [v, g], [v, g], free=v[dim], target=kernels.weight_norm)


def weight_norm_backward(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """grad, v, g, norms, dim -> gradients of v and g."""
    v, g = _weight_letters(args[1], args[4])
    return low.sharded(
        node, args, kwargs, [v, v, g, g], [v, g], free=v[args[4]], target=kernels.weight_norm_backward
    )


def _weight_letters(weight: Value, dim: int) -> tuple[str, str]:
    names = string.ascii_lowercase[: len(weight.shape)]
    return names, "".join(c if d == dim else c.upper() for d, c in enumerate(names))


RULES = {
    "native_layer_norm": layer_norm,
    "native_layer_norm_backward": layer_norm_backward,
    "_weight_norm_interface": weight_norm,
    "_weight_norm_interface_backward": weight_norm_backward,
}
