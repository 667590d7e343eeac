"""Group normalisation: statistics of each sample's groups, merged over the devices that share the sample."""

from math import prod
from typing import Any

from torch import fx

from meshemu.workload import group_kernels
from meshemu.workload.kernels import accumulator
from meshemu.workload.layout import Layout
from meshemu.workload.lowering import Lowering
from meshemu.workload.spmd import Value

__all__ = ["RULES"]

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def group_norm(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """Input (N, C, *S), weight, bias, N, C, size of S, groups, eps -> (y, mean (N, groups), inverse deviation)."""
    weight, bias = (None if v is None else low.replicate(v) for v in args[1:3])
    groups, eps = args[6], args[7]
    source = _whole_channels(low, args[0])
    rows, shared = _rows(source)
    vector = (source.shape[0], groups)
    statistics = accumulator(source.dtype)
    (local,) = low.compute(
        group_kernels.group_moments,
        (source, groups),
        [low.value((*vector, 3), statistics, Layout(rows.splits, shared), "moments")],
        op_class="batch_norm_statistics",
    )
    mean, inverse = low.compute(
        group_kernels.group_mean_and_inverse,
        (low.resolve(local), eps),
        [low.value(vector, statistics, rows), low.value(vector, statistics, rows)],
        op_class="batch_norm_running",
    )
    (result,) = low.compute(
        group_kernels.group_normalise,
        (source, mean, inverse, weight, bias),
        [low.value(source.shape, source.dtype, source.layout)],
        op_class="batch_norm_normalise",
    )
    return result, mean, inverse


def group_norm_backward(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """grad, input, mean, inverse deviation, weight, N, C, size of S, groups, mask."""
    source = _whole_channels(low, args[1])
    grad = low.fetch(args[0], source.layout)
    weight, mask = None if args[4] is None else low.replicate(args[4]), args[9]
    rows, shared = _rows(source)
    mean, inverse = low.fetch(args[2], rows), low.fetch(args[3], rows)
    results: list[Value | None] = [None, None, None]
    if mask[0]:
        (local,) = low.compute(
            group_kernels.group_backward_sums,
            (grad, source, mean, weight),
            [low.value((*mean.shape, 2), mean.dtype, Layout(rows.splits, shared))],
            op_class="batch_norm_backward_sums",
        )
        count = _count(source, args[8])
        results[:1] = low.compute(
            group_kernels.group_backward,
            (grad, source, low.resolve(local), mean, inverse, weight, count),
            [low.value(source.shape, source.dtype, source.layout)],
            op_class="batch_norm_backward_input",
        )
    if mask[1] or mask[2]:
        partial = Layout((), source.layout.axes)
        shape = (source.shape[1],)
        results[1:] = low.compute(
            group_kernels.group_parameter_gradients,
            (grad, source, mean, inverse),
            [low.value(shape, source.dtype, partial), low.value(shape, source.dtype, partial)],
            op_class="batch_norm_backward_sums",
        )
    return tuple(results)


def _count(source: Value, groups: int) -> int:
    """Elements of one group of one sample."""
    return prod(source.shape[1:]) // groups


def _rows(source: Value) -> tuple[Layout, tuple[str, ...]]:
    """(layout of what every sample has its own of, axes over which devices share samples)."""
    batch = tuple(s for s in source.layout.splits if s.dim == 0)
    return Layout(batch), tuple(axis for s in source.layout.splits if s.dim != 0 for axis in s.axes)


def _whole_channels(low: Lowering, source: Value) -> Value:
    source = low.resolve(source)
    return low.fetch(source, Layout(tuple(s for s in source.layout.splits if s.dim != 1)))


RULES = {"native_group_norm": group_norm, "native_group_norm_backward": group_norm_backward}
