"""Convolution and its backward, of any rank, kernel, stride, padding, dilation and grouping, transposed or not.

Cut may be the batch, space (windows with halos), output channels (the weight's), input channels (terms of sums) and, of
a grouped convolution, groups. Legend: N batch, C input and K output channels.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from meshemu.workload import convolution_kernels as kernels
from meshemu.workload.layout import Layout, Split, even_ranges
from meshemu.workload.lowering import Lowering, attributes_of
from meshemu.workload.rules.channels import Channels, channel_cuts
from meshemu.workload.rules.cuts import Args, Kwargs, axes_of
from meshemu.workload.rules.halo import Sliding, output_layout, spatial_splits, window_layout
from meshemu.workload.spmd import LocalRange, Value

__all__ = ["RULES"]


def convolution(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """input, weight, bias, stride, padding, dilation, transposed, output_padding, groups."""
    source, weight, bias = low.resolve(args[0]), low.resolve(args[1]), args[2]
    transposed, groups, meta = args[6], args[8], node.meta["val"]
    sliding = _sliding(weight, args[3:6])
    channels = channel_cuts(low, groups, transposed, source, weight)
    source = low.fetch(source, channels.of_source(source))
    made = channels.of_output(output_layout(low, source, meta.shape))
    window = low.fetch(source, _window_of(source, made, sliding, transposed))
    placed_weight = low.fetch(weight, Layout(channels.weight))
    if bias is not None:
        cut = channels.output
        bias = low.fetch(low.resolve(bias), Layout(() if cut is None else (cut.moved(0),)))
    late_bias = bias is not None and bool(channels.summed)
    output = low.like(meta, Layout(made.splits, channels.summed))
    geometry = _geometry(sliding, args[7], transposed, source, groups)
    crops = _crops(window, output, sliding) if transposed else {}
    given = (window, placed_weight, None if late_bias else bias, geometry, crops)
    (result,) = low.compute(
        kernels.convolution, given, [output], op_class="convolution", attributes=attributes_of(node)
    )
    if not late_bias:
        return result
    total = low.resolve(result)
    return low.compute(kernels.add_bias, (total, bias), [low.like(meta, total.layout)], op_class="add")[0]


def _window_of(source: Value, made: Layout, sliding: Sliding, transposed: bool) -> Layout:
    """What each device needs of the input for its block of the output."""
    reach = sliding.sources if transposed else sliding.window
    space = [
        Split(s.dim, s.axes, tuple(reach(s.dim, lo, hi) for lo, hi in s.ranges)) for s in made.splits if s.dim >= 2
    ]
    kept = [s for s in source.layout.splits if s.dim < 2]
    return Layout((*kept, *space))


def _crops(window: Value, output: Value, sliding: Sliding) -> dict[int, tuple[LocalRange, LocalRange, int, int]]:
    """Dim -> (range of the window, range of the output, stride, padding), where a transposed output is cut."""
    return {
        s.dim: (LocalRange(window, s.dim), LocalRange(output, s.dim), stride, padding)
        for s in spatial_splits(output)
        for stride, padding in [(sliding.stride[s.dim - 2], sliding.padding[s.dim - 2])]
    }


def _geometry(
    sliding: Sliding, output_padding: Sequence[int], transposed: bool, source: Value, groups: int
) -> kernels.Geometry:
    """The operator's arguments on a block: cut dims have no padding, since windows hold it."""
    cut = {s.dim for s in spatial_splits(source)}
    grown = list(output_padding) * (len(sliding.kernel) if len(output_padding) == 1 else 1)
    return kernels.Geometry(
        sliding.stride, tuple(sliding.local_padding(cut)), sliding.dilation, transposed,
        tuple(0 if 2 + d in cut else p for d, p in enumerate(grown)), groups, source.shape[1],
    )  # fmt: skip


def convolution_backward(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """grad_output, input, weight, bias_sizes, stride, padding, dilation, transposed, output_padding, groups, mask."""
    grad, source, weight = (low.resolve(v) for v in args[:3])
    transposed, groups, mask = args[7], args[9], list(args[10])
    sliding = _sliding(weight, args[4:7])
    source = _cut_like(low, source, grad)
    channels = channel_cuts(low, groups, transposed, source, weight, grad)
    source = low.fetch(source, channels.of_source(source))
    made = channels.of_output(output_layout(low, source, grad.shape))
    placed_weight = low.fetch(weight, Layout(channels.weight))
    if transposed:
        held = channels.of_output(source.layout)
        window, of_source = low.fetch(grad, window_layout(held, sliding)), source
        if not spatial_splits(source):
            window = low.fetch(grad, made)
    else:
        window = low.fetch(grad, made)
        of_source = low.fetch(source, _window_of(source, made, sliding, transposed))
    shared = axes_of(source, [d for d in range(len(source.shape)) if d != 1])
    summed = () if channels.output is None or groups > 1 else channels.output.axes
    metas = node.meta["val"]
    own_bias = mask[2] and (bool(channels.summed) or (transposed and bool(spatial_splits(source))))
    outputs = [
        low.value(source.shape, source.dtype, Layout(of_source.layout.splits, summed)) if mask[0] else None,
        low.value(weight.shape, weight.dtype, Layout(channels.weight, shared)) if mask[1] else None,
        _bias_value(low, metas[2], channels, shared) if mask[2] and not own_bias else None,
    ]
    present = [o for o in outputs if o is not None]
    if present:
        geometry = _geometry(sliding, args[8], transposed, source, groups)
        given = (window, of_source, placed_weight, geometry, [o is not None for o in outputs])
        low.compute(
            kernels.convolution_backward, given, present, op_class="convolution_backward",
            attributes=attributes_of(node),
        )  # fmt: skip
    if outputs[0] is not None:
        outputs[0] = low.push_add(present[0], Layout(source.layout.splits, summed))
    if own_bias:
        of_bias = _bias_value(low, metas[2], channels, shared)
        outputs[2:] = low.compute(kernels.bias_gradient, (low.fetch(grad, made),), [of_bias], op_class="sum")
    return tuple(outputs)


def _bias_value(low: Lowering, meta: torch.Tensor, channels: Channels, shared: tuple[str, ...]) -> Value:
    cut = () if channels.output is None else (channels.output.moved(0),)
    return low.value(meta.shape, meta.dtype, Layout(cut, shared))


def _cut_like(low: Lowering, source: Value, grad: Value) -> Value:
    """An input that every device holds whole is cut as its gradient is, where there are enough elements."""
    used = set(source.layout.axes)
    more = [
        Split(s.dim, s.axes, even_ranges(source.shape[s.dim], low.plan.size(s.axes)))
        for s in grad.layout.splits
        if s.dim != 1 and source.layout.split_of(s.dim) is None and not used & set(s.axes)
        and source.shape[s.dim] >= low.plan.size(s.axes)
    ]  # fmt: skip
    return low.fetch(source, replace(source.layout, splits=(*source.layout.splits, *more)) if more else source.layout)


def _sliding(weight: Value, geometry: Sequence[Any]) -> Sliding:
    kernel = list(weight.shape[2:])
    return Sliding.of(2, len(kernel), kernel, *geometry)


RULES = {"convolution": convolution, "convolution_backward": convolution_backward}
