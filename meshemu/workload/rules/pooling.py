"""Pooling. Max pooling pads with -inf and keeps indices local to its window; average pooling divides exactly."""

import re
from typing import Any

from torch import fx

from meshemu.workload import kernels
from meshemu.workload.layout import Layout
from meshemu.workload.lowering import Lowering, attributes_of, base_name, operator_of
from meshemu.workload.rules.halo import Sliding, output_layout, spatial_splits, window_layout
from meshemu.workload.rules.pointwise import tensor_values
from meshemu.workload.spmd import LocalRange, Value

__all__ = ["RULES"]

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
LOWEST = float("-inf")
SPATIAL_DIMS = re.compile(r"(\d)d")


def max_pool(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """input, kernel, stride, padding, dilation, ceil_mode -> (values, indices)."""
    kernel, stride, padding, dilation, ceil = _with_defaults(args[1:], (None, [], [0, 0], [1, 1], False))
    source = low.resolve(args[0])
    if len(source.shape) != 4 or not spatial_splits(source):
        return independent(low, node, (source, *args[1:]), kwargs)
    sliding = Sliding.of(2, kernel, stride, padding, dilation)
    values, indices = node.meta["val"]
    layout, window, local_padding = _window(low, source, tuple(values.shape), sliding, LOWEST)
    return low.compute(
        operator_of(node),
        (window, kernel, stride, local_padding, dilation, ceil),
        [low.like(values, layout), low.like(indices, layout)],
        op_class="max_pool2d_with_indices",
        attributes=attributes_of(node),
    )


def max_pool_backward(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """grad, input, kernel, stride, padding, dilation, ceil_mode, indices."""
    grad, source, kernel, stride, padding, dilation, ceil, indices = args
    source = low.resolve(source)
    if len(source.shape) != 4 or not spatial_splits(source):
        return independent(low, node, (grad, source, *args[2:]), kwargs)
    sliding = Sliding.of(2, kernel, stride, padding, dilation)
    layout, window, local_padding = _window(low, source, grad.shape, sliding, LOWEST)
    (result,) = low.compute(
        operator_of(node),
        (low.fetch(grad, layout), window, kernel, stride, local_padding, dilation, ceil, indices),
        [low.value(source.shape, source.dtype, window.layout)],
        op_class="max_pool2d_with_indices_backward",
        attributes=attributes_of(node),
    )
    return low.push_add(result, source.layout)


def average_pool(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """input, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override."""
    options = _with_defaults(args[1:], (None, [], [0, 0], False, True, None))
    source = low.resolve(args[0])
    if len(source.shape) != 4 or not spatial_splits(source):
        return independent(low, node, (source, *args[1:]), kwargs)
    sliding = Sliding.of(2, options[0], options[1], options[2], [1])
    meta = node.meta["val"]
    layout, window, local_padding = _window(low, source, tuple(meta.shape), sliding, 0.0)
    output = low.like(meta, layout)
    counts = _counts(source, sliding, options[4], options[5])
    low.compute(
        kernels.average_pool,
        (window, counts, local_padding, options[3], LocalRange(output, 2), LocalRange(output, 3)),
        [output],
        op_class="avg_pool2d",
        attributes=attributes_of(node),
    )
    return output


def average_pool_backward(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """grad, input, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override."""
    grad, source, kernel, stride, padding, ceil, include, override = args
    source = low.resolve(source)
    if len(source.shape) != 4 or not spatial_splits(source):
        return independent(low, node, (grad, source, *args[2:]), kwargs)
    sliding = Sliding.of(2, kernel, stride, padding, [1])
    layout, window, local_padding = _window(low, source, grad.shape, sliding, 0.0)
    placed = low.fetch(grad, layout)
    result = low.value(source.shape, source.dtype, window.layout)
    counts = _counts(source, sliding, include, override)
    low.compute(
        kernels.average_pool_backward,
        (placed, window, counts, local_padding, ceil, LocalRange(placed, 2), LocalRange(placed, 3)),
        [result],
        op_class="avg_pool2d_backward",
        attributes=attributes_of(node),
    )
    return low.push_add(result, source.layout)


def independent(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """Operators on ([N,] C, *S) of independent images and channels; the dims S, which their names count, are whole."""
    metas = node.meta["val"] if isinstance(node.meta["val"], tuple | list) else [node.meta["val"]]
    n_spatial = int(SPATIAL_DIMS.findall(base_name(node))[0])
    lead = "nc"[: metas[0].dim() - n_spatial]
    names = lead + "S" * n_spatial
    return low.sharded(node, args, kwargs, [names] * len(tensor_values(args, kwargs)), [names] * len(metas), free=lead)


def resize_backward(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """grad, output_size, input_size, ...: input_size names the batch, so it is the block's own."""
    names = "nc" + "uvw"[: len(args[0].shape) - 2]
    out = "nc" + "UVW"[: len(args[0].shape) - 2]
    return low.sharded(node, args, kwargs, [names], [out], free="nc", local_shape_args=[2])


def _window(
    low: Lowering, source: Value, output_shape: tuple[int, ...], sliding: Sliding, fill: float
) -> tuple[Layout, Value, list[int]]:
    layout = output_layout(low, source, output_shape)
    source = low.fetch(source, Layout(tuple(s for s in source.layout.splits if s.dim != 1)))
    window = low.fetch(source, window_layout(source, layout, sliding), fill)
    return layout, window, sliding.local_padding({s.dim - 2 for s in spatial_splits(source)})


def _counts(source: Value, sliding: Sliding, include_padding: bool, override: int | None) -> kernels.PoolCounts:
    def pair(numbers: tuple[int, ...]) -> tuple[int, int]:
        return numbers[0], numbers[1]

    size = source.shape[2], source.shape[3]
    return kernels.PoolCounts(
        size, pair(sliding.kernel), pair(sliding.stride), pair(sliding.padding), include_padding, override
    )


def _with_defaults(args: Args, defaults: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*args, *defaults[len(args) :])


RULES = {
    "max_pool2d_with_indices": max_pool,
    "max_pool2d_with_indices_backward": max_pool_backward,
    "avg_pool2d": average_pool,
    "avg_pool2d_backward": average_pool_backward,
    **{
        name: independent
        for name in (
            "_adaptive_avg_pool2d", "_adaptive_avg_pool2d_backward", "adaptive_max_pool2d",
            "adaptive_max_pool2d_backward", "avg_pool3d", "avg_pool3d_backward", "max_pool3d_with_indices",
            "max_pool3d_with_indices_backward", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
            "upsample_nearest1d", "upsample_linear1d", "upsample_nearest3d", "upsample_trilinear3d",
            "reflection_pad2d", "reflection_pad2d_backward", "replication_pad2d", "replication_pad2d_backward",

        )
    },
    **{
        name: resize_backward
        for name in (
            "upsample_nearest2d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward",
            "upsample_nearest1d_backward", "upsample_linear1d_backward", "upsample_nearest3d_backward",
            "upsample_trilinear3d_backward",
        )
    },
}  # fmt: skip
