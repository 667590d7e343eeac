"""Pooling. Max pooling pads with -inf and numbers its indices in the whole map; average pooling divides exactly."""

import re
from collections.abc import Sequence
from typing import Any

from torch import fx

from meshemu.workload import pool_kernels as kernels
from meshemu.workload.lowering import Lowering, attributes_of, base_name
from meshemu.workload.rules.cuts import Args, Kwargs
from meshemu.workload.rules.halo import Sliding, output_layout, spatial_splits, window_layout
from meshemu.workload.rules.pointwise import tensor_values
from meshemu.workload.spmd import LocalRange, Value

__all__ = ["RULES", "independent"]

LOWEST = float("-inf")
SPATIAL_DIMS = re.compile(r"(\d)d")


def max_pool(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """input, kernel, stride, padding, dilation, ceil_mode -> (values, indices)."""
    kernel, stride, padding, dilation, ceil = _with_defaults(args[1:], (None, [], [0], [1], False))
    source, n = low.resolve(args[0]), _n_dims(node)
    lead = len(source.shape) - n
    if not spatial_splits(source, lead):
        return independent(low, node, (source, *args[1:]), kwargs)
    sliding = Sliding.of(lead, n, kernel, stride, padding, dilation)
    values, indices = node.meta["val"]
    layout = output_layout(low, source, values.shape, lead)
    window = low.fetch(source, window_layout(layout, sliding), LOWEST)
    return low.compute(
        kernels.max_pool,
        (window, _options(source, sliding, ceil), _ranges(window, lead)),
        [low.like(values, layout), low.like(indices, layout)],
        op_class=base_name(node),
        attributes=attributes_of(node),
    )


def max_pool_backward(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """grad, input, kernel, stride, padding, dilation, ceil_mode, indices."""
    grad, source, kernel, stride, padding, dilation, ceil, indices = args
    source, n = low.resolve(source), _n_dims(node)
    lead = len(source.shape) - n
    if not spatial_splits(source, lead):
        return independent(low, node, (grad, source, *args[2:]), kwargs)
    sliding = Sliding.of(lead, n, kernel, stride, padding, dilation)
    layout = output_layout(low, source, grad.shape, lead)
    window = low.fetch(source, window_layout(layout, sliding), LOWEST)
    placed = (low.fetch(grad, layout), window, low.fetch(indices, layout), _options(source, sliding, ceil),
              _ranges(window, lead))  # fmt: skip
    (result,) = low.compute(
        kernels.max_pool_backward,
        placed,
        [low.value(source.shape, source.dtype, window.layout)],
        op_class=base_name(node),
        attributes=attributes_of(node),
    )
    return low.push_add(result, source.layout)


def average_pool(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """input, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override."""
    kernel, stride, padding, ceil, include, override = _with_defaults(args[1:], (None, [], [0], False, True, None))
    source, n = low.resolve(args[0]), _n_dims(node)
    lead = len(source.shape) - n
    if not spatial_splits(source, lead):
        return independent(low, node, (source, *args[1:]), kwargs)
    sliding = Sliding.of(lead, n, kernel, stride, padding, [1])
    meta = node.meta["val"]
    layout = output_layout(low, source, meta.shape, lead)
    window = low.fetch(source, window_layout(layout, sliding))
    output = low.like(meta, layout)
    counts = _counts(source, sliding, include, override)
    low.compute(
        kernels.average_pool,
        (window, counts, _options(source, sliding, ceil), _ranges(output, lead)),
        [output],
        op_class=base_name(node),
        attributes=attributes_of(node),
    )
    return output


def average_pool_backward(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """grad, input, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override."""
    grad, source, kernel, stride, padding, ceil, include, override = args
    source, n = low.resolve(source), _n_dims(node)
    lead = len(source.shape) - n
    if not spatial_splits(source, lead):
        return independent(low, node, (grad, source, *args[2:]), kwargs)
    sliding = Sliding.of(lead, n, kernel, stride, padding, [1])
    layout = output_layout(low, source, grad.shape, lead)
    window = low.fetch(source, window_layout(layout, sliding))
    placed = low.fetch(grad, layout)
    result = low.value(source.shape, source.dtype, window.layout)
    counts = _counts(source, sliding, include, override)
    low.compute(
        kernels.average_pool_backward,
        (placed, window, counts, _options(source, sliding, ceil), _ranges(placed, lead)),
        [result],
        op_class=base_name(node),
        attributes=attributes_of(node),
    )
    return low.push_add(result, source.layout)


def independent(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """Operators on ([N,] C, *S) of independent images and channels; the dims S, which their names count, are whole."""
    metas = node.meta["val"] if isinstance(node.meta["val"], tuple | list) else [node.meta["val"]]
    lead = "nc"[: metas[0].dim() - _n_dims(node)]
    names = lead + "S" * _n_dims(node)
    return low.sharded(node, args, kwargs, [names] * len(tensor_values(args, kwargs)), [names] * len(metas), free=lead)


def _n_dims(node: fx.Node) -> int:
    return int(SPATIAL_DIMS.findall(base_name(node))[0])


def _ranges(value: Value, lead: int) -> list[LocalRange]:
    return [LocalRange(value, dim) for dim in range(lead, len(value.shape))]


def _options(source: Value, sliding: Sliding, ceil: bool) -> kernels.Options:
    cut = {s.dim for s in spatial_splits(source, sliding.lead)}
    padding = tuple(sliding.local_padding(cut))
    size = source.shape[sliding.lead :]
    return kernels.Options(sliding.kernel, sliding.stride, padding, sliding.dilation, ceil, size)


def _counts(source: Value, sliding: Sliding, include_padding: bool, override: int | None) -> kernels.PoolCounts:
    size = source.shape[sliding.lead :]
    return kernels.PoolCounts(size, sliding.kernel, sliding.stride, sliding.padding, include_padding, override)


def _with_defaults(args: Args, defaults: Sequence[Any]) -> tuple[Any, ...]:
    return (*args, *defaults[len(args) :])


RULES = {
    **{f"max_pool{n}d_with_indices": max_pool for n in (2, 3)},
    **{f"max_pool{n}d_with_indices_backward": max_pool_backward for n in (2, 3)},
    **{f"avg_pool{n}d": average_pool for n in (2, 3)},
    **{f"avg_pool{n}d_backward": average_pool_backward for n in (2, 3)},
    **{f"adaptive_max_pool{n}d{end}": independent for n in (2, 3) for end in ("", "_backward")},
    **{f"max_unpool{n}d": independent for n in (2, 3)},
}
