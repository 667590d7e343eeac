"""Statistics of rows that are cut over devices: extremes, products, variances, norms and running sums.

Each block contributes a few numbers a row, which one small all-reduce combines; running sums and the places of
extremes fetch the numbers of other blocks one by one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from meshemu.workload import row_kernels
from meshemu.workload.kernels import accumulator
from meshemu.workload.layout import Layout, Split
from meshemu.workload.lowering import Lowering, base_name
from meshemu.workload.rules.cuts import Args, Kwargs, argument, rows_layout, rows_shape, with_dim
from meshemu.workload.rules.reduction import along, gathered, reduced_dims
from meshemu.workload.spmd import LocalRange, LocalShape, Value

__all__ = ["RULES", "moments_of"]

COMBINES = {"amax": "max", "amin": "min", "max": "max", "min": "min", "any": "max", "all": "min", "prod": "product"}


def _whole(source: Value, dims: list[int]) -> bool:
    return not any(source.layout.split_of(d) for d in dims)


def _unreduced(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs, position: int = 1) -> Any:
    """Rows are whole: every device reduces its own."""
    return gathered(position)(low, node, args, kwargs)


def combined(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """Amax, amin, any, all, prod, and max and min of everything: input, dims, keepdim."""
    source = low.resolve(args[0])
    args = (source, *args[1:])
    has_dims = "dim" in str(node.target) or base_name(node) in ("amax", "amin")
    dims = reduced_dims(len(source.shape), argument(args, kwargs, 1, "dim", None) if has_dims else None)
    if _whole(source, dims):
        return _unreduced(low, node, args, kwargs)
    keepdim = bool(argument(args, kwargs, 2, "keepdim", False)) if has_dims else False
    return _combined(low, node, base_name(node), source, dims, keepdim, node.meta["val"].dtype)


def _combined(
    low: Lowering, node: fx.Node, name: str, source: Value, dims: list[int], keepdim: bool, dtype: torch.dtype
) -> Value:
    if name == "prod" and source.dtype != dtype:
        converted = low.value(source.shape, dtype, source.layout)
        (source,) = low.compute(torch.Tensor.to, [source, dtype], [converted], op_class="_to_copy")
    layout = rows_layout(source, dims, keepdim=keepdim)
    output = low.value(rows_shape(source, dims, keepdim=keepdim), dtype, layout, COMBINES[name])
    kernel_name = {"max": "amax", "min": "amin"}.get(name, name)
    placed = [source, kernel_name, dims, keepdim]
    return low.compute(row_kernels.reduce_block, placed, [output], op_class=kernel_name, takes_empty=True)[0]


def aminmax(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """Input, dim, keepdim (by name) -> (minimum, maximum)."""
    source = low.resolve(args[0])
    dims = reduced_dims(len(source.shape), kwargs.get("dim"))
    if _whole(source, dims):
        return _unreduced(low, node, (source,), kwargs)
    keepdim = bool(kwargs.get("keepdim", False))
    return tuple(_combined(low, node, name, source, dims, keepdim, source.dtype) for name in ("amin", "amax"))


def extreme(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """max.dim, min.dim, argmax, argmin: input, dim, keepdim. Every block sends its own extreme and where it lies."""
    source = low.resolve(args[0])
    args = (source, *args[1:])
    dim = argument(args, kwargs, 1, "dim", None)
    if dim is None or not source.shape or source.layout.split_of(dim % len(source.shape)) is None:
        return _unreduced(low, node, args, kwargs)
    dim = dim % len(source.shape)
    name, keepdim = base_name(node).removeprefix("arg"), bool(argument(args, kwargs, 2, "keepdim", False))
    shape, layout = _one_per_block(low, source, dim)
    candidates = low.compute(
        row_kernels.extreme,
        (source, name, dim, LocalRange(source, dim)),
        [low.value(shape, source.dtype, layout), low.value(shape, torch.int64, layout)],
        op_class=name,
        takes_empty=True,
    )
    gathered_values, gathered_places = (low.fetch(v, with_dim(layout, None, dim)) for v in candidates)
    rows = rows_layout(source, [dim], keepdim=keepdim, partial=False)
    out_shape = rows_shape(source, [dim], keepdim=keepdim)
    outputs = [low.value(out_shape, source.dtype, rows), low.value(out_shape, torch.int64, rows)]
    low.compute(
        row_kernels.pick_extreme, (gathered_values, gathered_places, name, dim, keepdim), outputs, op_class=name
    )
    return outputs[1] if "arg" in base_name(node) else tuple(outputs)


def _one_per_block(low: Lowering, source: Value, dim: int) -> tuple[tuple[int, ...], Layout]:
    """(shape, layout) of what every block along a cut dim has one of."""
    cut = source.layout.split_of(dim)
    assert cut is not None
    n = low.plan.size(cut.axes)
    shape = (*source.shape[:dim], n, *source.shape[dim + 1 :])
    return shape, with_dim(source.layout, Split(dim, cut.axes, tuple((i, i + 1) for i in range(n))), dim)


def running(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """Cumsum and cumprod: input, dim. A block adds the totals of the blocks before it."""
    source = low.resolve(args[0])
    dim = args[1] % max(len(source.shape), 1)
    cut = source.layout.split_of(dim)
    if cut is None:
        return along(1)(low, node, (source, *args[1:]), kwargs)
    name, dtype = base_name(node), node.meta["val"].dtype
    shape, layout = _one_per_block(low, source, dim)
    reduce = torch.sum if name == "cumsum" else torch.prod
    (totals,) = low.compute(
        reduce, (source, dim, True), [low.value(shape, dtype, layout)], kwargs={"dtype": dtype}, op_class="sum",
        takes_empty=True,
    )  # fmt: skip
    before = Split(dim, cut.axes, tuple((0, i) for i in range(shape[dim])))
    placed = (source, low.fetch(totals, with_dim(layout, before, dim)), name, dim, dtype)
    output = low.value(source.shape, dtype, source.layout)
    return low.compute(row_kernels.prefix, placed, [output], op_class=name, takes_empty=True)[0]


def moments_of(low: Lowering, source: Value, dims: list[int]) -> Value:
    """(count, mean, M2) of every row along `dims`, of shape (*rows, 3), merged over devices."""
    output = low.value(
        (*rows_shape(source, dims), 3), accumulator(source.dtype), rows_layout(source, dims), "moments"
    )
    return low.resolve(low.compute(row_kernels.row_moments, (source, dims), [output], op_class="var")[0])


def variance(root: bool, with_mean: bool) -> Callable[..., Any]:
    """A rule for var, std, var_mean and std_mean: input, dims, correction, keepdim."""

    def rule(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
        source = low.resolve(args[0])
        args = (source, *args[1:])
        by_correction = "correction" in str(node.target)
        has_dims = by_correction or "dim" in str(node.target)
        dims = reduced_dims(len(source.shape), argument(args, kwargs, 1, "dim", None) if has_dims else None)
        if _whole(source, dims) or source.dtype.is_complex:
            return _unreduced(low, node, args, kwargs)
        if by_correction:
            correction = kwargs.get("correction")
            correction = 1.0 if correction is None else float(correction)
        else:
            correction = float(argument(args, kwargs, 2 if has_dims else 1, "unbiased", True))
        keepdim = bool(kwargs.get("keepdim", argument(args, kwargs, 3, "keepdim", False))) if has_dims else False
        total = moments_of(low, source, dims)
        layout = rows_layout(source, dims, keepdim=keepdim, partial=False)
        shape = rows_shape(source, dims, keepdim=keepdim)
        outputs = [low.value(shape, source.dtype, layout), low.value(shape, source.dtype, layout)]
        placed = (total, dims if keepdim else [], correction, root, source.dtype)
        low.compute(row_kernels.variance, placed, outputs, op_class="batch_norm_running")
        return tuple(outputs) if with_mean else outputs[0]

    return rule


def vector_norm(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """linalg_vector_norm: input, order, dims, keepdim, dtype."""
    source = low.resolve(args[0])
    order = float(argument(args, kwargs, 1, "ord", 2))
    dims = reduced_dims(len(source.shape), argument(args, kwargs, 2, "dim", None))
    if _whole(source, dims) or source.dtype.is_complex:
        return _unreduced(low, node, (source, *args[1:]), kwargs, 2)
    keepdim, meta = bool(argument(args, kwargs, 3, "keepdim", False)), node.meta["val"]
    if order in (float("inf"), float("-inf")):
        size = low.value(source.shape, meta.dtype, source.layout)
        (size,) = low.compute(torch.abs, [source], [size], op_class="abs")
        return _combined(low, node, "amax" if order > 0 else "amin", size, dims, keepdim, meta.dtype)
    statistics = accumulator(meta.dtype)
    sums = low.value(rows_shape(source, dims, keepdim=True), statistics, rows_layout(source, dims, keepdim=True))
    (local,) = low.compute(
        row_kernels.powered_sums, (source, order, dims, statistics), [sums], op_class="linalg_vector_norm"
    )
    total = low.resolve(local)
    output = low.like(meta, rows_layout(source, dims, keepdim=keepdim, partial=False))
    placed = (total, order, LocalShape(output), meta.dtype)
    return low.compute(row_kernels.rooted, placed, [output], op_class="sqrt")[0]


RULES = {
    **{name: combined for name in ("amax", "amin", "any", "all", "prod", "max.default", "min.default")},
    "aminmax": aminmax,
    **{name: extreme for name in ("max.dim", "min.dim", "argmax", "argmin")},
    **{name: running for name in ("cumsum", "cumprod")},
    **{f"{kind}{end}": variance(kind == "std", end == "_mean") for kind in ("var", "std") for end in ("", "_mean")},
    "linalg_vector_norm": vector_norm,
}  # fmt: skip
