"""Batch norm takes its statistics over all devices that share a channel: one all-reduce forward, one backward."""

from math import prod
from typing import Any

import torch
from torch import fx

from meshemu.workload import kernels
from meshemu.workload.layout import Layout
from meshemu.workload.lowering import Lowering
from meshemu.workload.rules.cuts import Args, Kwargs, axes_of
from meshemu.workload.spmd import Value

__all__ = ["RULES"]


def batch_norm(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """input, weight, bias, running_mean, running_var, training, momentum, eps -> (y, mean, inverse deviation).

    In training the statistics of all devices' blocks are merged (Chan et al. 1979) and the running statistics, which
    the operator updates in place, are rebound to their new values.
    """
    source, weight, bias, running_mean, running_var, training, momentum, eps = args
    source = low.resolve(source)
    vectors = _vectors(source)
    weight, bias = _placed(low, weight, vectors), _placed(low, bias, vectors)
    if not training:
        return _evaluated(low, node, source, weight, bias, running_mean, running_var, eps)
    statistics, shape = kernels.accumulator(source.dtype), (source.shape[1],)
    partial = Layout(vectors.splits, _others(source))
    (local,) = low.compute(
        kernels.moments,
        (source,),
        [low.value((*shape, 3), statistics, partial, "moments")],
        op_class="batch_norm_statistics",
    )
    total = low.resolve(local)
    mean, inverse = low.compute(
        kernels.mean_and_inverse,
        (total, eps),
        [low.value(shape, statistics, vectors), low.value(shape, statistics, vectors)],
        op_class="batch_norm_running",
    )
    if running_mean is not None:
        held = (_placed(low, running_mean, vectors), _placed(low, running_var, vectors))
        updated = low.compute(
            kernels.running_statistics,
            (total, *held, momentum),
            [low.value(shape, running_mean.dtype, vectors), low.value(shape, running_var.dtype, vectors)],
            op_class="batch_norm_running",
        )
        low.environment.update(zip(node.all_input_nodes[-2:], updated, strict=True))
    return _normalised(low, source, mean, inverse, weight, bias), mean, inverse


def _evaluated(
    low: Lowering,
    node: fx.Node,
    source: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value,
    running_var: Value,
    eps: float,
) -> tuple[Value, Value, Value]:
    """With fixed statistics nothing is merged, and no statistics are saved."""
    mean, inverse = _fixed(low, source, running_mean, running_var, eps)
    nothing = [low.like(meta) for meta in node.meta["val"][1:]]
    for value in nothing:
        low.compute(torch.zeros, [value.shape], [value], kwargs={"dtype": value.dtype}, op_class="empty")
    return _normalised(low, source, mean, inverse, weight, bias), nothing[0], nothing[1]


def _fixed(low: Lowering, source: Value, running_mean: Value, running_var: Value, eps: float) -> tuple[Value, ...]:
    """(mean, inverse deviation) from running statistics."""
    vectors, shape = _vectors(source), (source.shape[1],)
    held = (_placed(low, running_mean, vectors), _placed(low, running_var, vectors), eps)
    outputs = [low.value(shape, v.dtype, vectors) for v in (running_mean, running_var)]
    return low.compute(kernels.running_deviation, held, outputs, op_class="batch_norm_running")


def _normalised(
    low: Lowering, source: Value, mean: Value, inverse: Value, weight: Value | None, bias: Value | None
) -> Value:
    return low.compute(
        kernels.normalise,
        (source, mean, inverse, weight, bias),
        [low.value(source.shape, source.dtype, source.layout)],
        op_class="batch_norm_normalise",
    )[0]


def batch_norm_backward(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """grad, input, weight, running_mean, running_var, save_mean, save_inverse, training, eps, mask.

    With fixed statistics the gradient of the input needs nothing of other devices, and those of weight and bias are
    left as terms of sums, to be reduced with the other gradients.
    """
    grad, source, weight, running_mean, running_var, mean, inverse, training, eps, mask = args
    source = low.resolve(source)
    grad = low.fetch(grad, source.layout)
    vectors, shape = _vectors(source), (source.shape[1],)
    weight = _placed(low, weight, vectors)
    if training:
        mean, inverse = low.fetch(mean, vectors), low.fetch(inverse, vectors)
    else:
        mean, inverse = _fixed(low, source, running_mean, running_var, eps)
    count = prod(size for dim, size in enumerate(source.shape) if dim != 1)
    (local,) = low.compute(
        kernels.normalise_backward_sums,
        (grad, source, mean),
        [low.value((*shape, 2), inverse.dtype, Layout(vectors.splits, _others(source)))],
        op_class="batch_norm_backward_sums",
    )
    sums = low.resolve(local) if training else local
    results: list[Value | None] = [None, None, None]
    if mask[0]:
        (results[0],) = low.compute(
            kernels.normalise_backward if training else kernels.scaled_gradient,
            (grad, source, sums, mean, inverse, weight, count),
            [low.value(source.shape, source.dtype, source.layout)],
            op_class="batch_norm_backward_input",
        )
    if mask[1] or mask[2]:
        dtype = weight.dtype if weight is not None else source.dtype
        results[1:] = low.compute(
            kernels.normalise_parameter_gradients,
            (sums, inverse, dtype),
            [low.value(shape, dtype, Layout(vectors.splits, sums.layout.partial)) for _ in ("weight", "bias")],
            op_class="batch_norm_parameters",
        )
    return tuple(results)


def _vectors(source: Value) -> Layout:
    """Layout of what every channel has one of."""
    cut = source.layout.split_of(1)
    return Layout(() if cut is None else (cut.moved(0),))


def _others(source: Value) -> tuple[str, ...]:
    """Axes over which devices share channels."""
    return axes_of(source, [d for d in range(len(source.shape)) if d != 1])


def _placed(low: Lowering, vector: Value | None, layout: Layout) -> Value | None:
    return None if vector is None else low.fetch(vector, layout)


RULES = {"native_batch_norm": batch_norm, "native_batch_norm_backward": batch_norm_backward}
