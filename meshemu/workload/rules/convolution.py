"""Convolution and its backward, of any rank, kernel, stride, padding, dilation and grouping, cut in batch and space."""

from typing import Any

from torch import fx

from meshemu.workload.layout import Layout
from meshemu.workload.lowering import Lowering, attributes_of, operator_of
from meshemu.workload.rules.halo import Sliding, output_layout, spatial_splits, window_layout
from meshemu.workload.spmd import Value

__all__ = ["RULES"]

SPACE = "uvwxyz"


def convolution(low: Lowering, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """input, weight, bias, stride, padding, dilation, transposed, output_padding, groups."""
    source, weight = low.resolve(args[0]), args[1]
    transposed = args[6]
    args = (source, *args[1:])
    if not spatial_splits(source):
        n = len(source.shape) - 2
        letters = ["nc" + SPACE[:n], "oi" + SPACE[:n].upper()] + (["o"] if args[2] is not None else [])
        out = "no" + SPACE[:n].upper()
        return low.sharded(node, args, kwargs, letters, [out], free="n")
    if transposed:
        raise low.refuse(node, [source])
    meta = node.meta["val"]
    source = _drop_channel_cut(low, source)
    sliding = _sliding(weight, args)
    layout = output_layout(low, source, tuple(meta.shape))
    window = low.fetch(source, window_layout(source, layout, sliding))
    padding = sliding.local_padding({s.dim - 2 for s in spatial_splits(source)})
    local = (window, low.replicate(weight), args[2], args[3], padding, *args[5:])
    return low.compute(
        operator_of(node), local, [low.like(meta, layout)], op_class="convolution", attributes=attributes_of(node)
    )[0]


def convolution_backward(low: Lowering, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """grad_output, input, weight, bias_sizes, stride, padding, dilation, transposed, output_padding, groups, mask."""
    grad, source, weight = low.resolve(args[0]), low.resolve(args[1]), args[2]
    transposed, mask = args[7], args[10]
    n = len(source.shape) - 2
    if not spatial_splits(source) and not spatial_splits(grad):
        space, kernel = SPACE[:n], SPACE[:n].upper()
        letters = ["no" + kernel, "nc" + space, "oi" + kernel]
        outs = ["nc" + space, "oi" + kernel, "o"]
        return low.sharded(
            node, (grad, source, *args[2:]), kwargs, letters, outs, free="", summed="n"
        )
    if transposed:
        raise low.refuse(node, [source, grad])
    source = _drop_channel_cut(low, source)
    sliding = _sliding(weight, (*args[1:3], None, *args[4:]))
    layout = output_layout(low, source, grad.shape)
    grad = low.fetch(grad, layout)
    windows = window_layout(source, layout, sliding)
    window = low.fetch(source, windows)
    padding = sliding.local_padding({s.dim - 2 for s in spatial_splits(source)})
    axes = layout.axes
    metas = node.meta["val"]
    outputs = [
        low.value(window.shape, window.dtype, windows) if mask[0] else None,
        low.value(weight.shape, weight.dtype, Layout((), axes)) if mask[1] else None,
        low.value(metas[2].shape, metas[2].dtype, Layout((), axes)) if mask[2] else None,
    ]
    low.compute(
        operator_of(node),
        (grad, window, low.replicate(weight), args[3], args[4], padding, *args[6:]),
        [o for o in outputs if o is not None],
        op_class="convolution_backward",
        attributes=attributes_of(node),
    )
    if outputs[0] is not None:
        outputs[0] = low.push_add(outputs[0], source.layout)
    return tuple(outputs)


def _sliding(weight: Value, args: tuple[Any, ...]) -> Sliding:
    kernel = list(weight.shape[2:])
    return Sliding.of(len(kernel), kernel, args[3], args[4], args[5])


def _drop_channel_cut(low: Lowering, source: Value) -> Value:
    kept = tuple(s for s in source.layout.splits if s.dim != 1)
    return low.fetch(source, Layout(kept))


RULES = {"convolution": convolution, "convolution_backward": convolution_backward}
