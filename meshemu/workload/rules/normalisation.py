"""Normalisation. Batch norm takes its statistics over all devices: one all-reduce forward, one backward."""

import string
from typing import Any

import torch
from torch import fx

from meshemu.workload import kernels
from meshemu.workload.layout import Layout
from meshemu.workload.lowering import Lowering
from meshemu.workload.spmd import Value

__all__ = ["RULES"]

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def batch_norm(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """input, weight, bias, running_mean, running_var, training, momentum, eps -> (y, mean, inverse deviation).

    In training the statistics of all devices' blocks are merged (Chan et al. 1979) and the running statistics, which
    the operator updates in place, are rebound to their new values.
    """
    source, weight, bias, running_mean, running_var, training, momentum, eps = args
    source = _whole_channels(low, low.resolve(source))
    metas = node.meta["val"]
    if not training:
        space = string.ascii_lowercase[: len(source.shape) - 2]
        x = "NC" + space
        letters = [x] + ["C"] * sum(isinstance(v, Value) for v in args[1:5])
        return low.sharded(
            node, (source, *args[1:]), kwargs, letters, [x, "Z", "Z"], free="N" + space,
            target=_evaluate, op_class="batch_norm_normalise",
        )  # fmt: skip
    statistics = torch.float32 if source.dtype in (torch.bfloat16, torch.float16) else source.dtype
    channels = source.shape[1]
    partial = Layout((), source.layout.axes)
    (local,) = low.compute(
        kernels.moments,
        (source,),
        [low.value((channels, 3), statistics, partial, "moments")],
        op_class="batch_norm_statistics",
    )
    total = low.resolve(local)
    vector = (channels,)
    mean, inverse = low.compute(
        kernels.mean_and_inverse,
        (total, eps),
        [low.value(vector, statistics), low.value(vector, statistics)],
        op_class="batch_norm_running",
    )
    (result,) = low.compute(
        kernels.normalise,
        (source, mean, inverse, weight, bias),
        [low.like(metas[0], source.layout)],
        op_class="batch_norm_normalise",
    )
    if running_mean is not None:
        updated = low.compute(
            kernels.running_statistics,
            (total, running_mean, running_var, momentum),
            [low.value(vector, running_mean.dtype), low.value(vector, running_var.dtype)],
            op_class="batch_norm_running",
        )
        low.environment.update(zip(node.all_input_nodes[-2:], updated, strict=True))
    return result, mean, inverse


def batch_norm_backward(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """grad, input, weight, running_mean, running_var, save_mean, save_inverse, training, eps, mask."""
    grad, source, weight, running_mean, running_var, mean, inverse, training, eps, mask = args
    source = _whole_channels(low, low.resolve(source))
    grad = low.fetch(grad, source.layout)
    channels = source.shape[1]
    if not training:
        mean, inverse = low.compute(
            _running_deviation,
            (running_mean, running_var, eps),
            [low.value((channels,), running_mean.dtype), low.value((channels,), running_var.dtype)],
            op_class="batch_norm_running",
        )
    count = 1
    for dim, size in enumerate(source.shape):
        count *= size if dim != 1 else 1
    partial = Layout((), source.layout.axes)
    (local,) = low.compute(
        kernels.normalise_backward_sums,
        (grad, source, mean),
        [low.value((channels, 2), inverse.dtype, partial)],
        op_class="batch_norm_backward_sums",
    )
    sums = low.resolve(local)
    results: list[Value | None] = [None, None, None]
    if mask[0]:
        (results[0],) = low.compute(
            kernels.normalise_backward if training else _scaled_gradient,
            (grad, source, sums, mean, inverse, weight, count),
            [low.value(source.shape, source.dtype, source.layout)],
            op_class="batch_norm_backward_input",
        )
    if mask[1] or mask[2]:
        dtype = weight.dtype if weight is not None else source.dtype
        results[1:] = low.compute(
            kernels.normalise_parameter_gradients,
            (sums, inverse, dtype),
            [low.value((channels,), dtype), low.value((channels,), dtype)],
            op_class="batch_norm_parameters",
        )
    return tuple(results)


def layer_norm(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """input, normalized_shape, weight, bias, eps -> (y, mean, inverse deviation); normalised dims are whole."""
    names, rows, inner = _layer_letters(args[0], args[1])
    affine = [inner] * sum(isinstance(v, Value) for v in args[2:4])
    statistics = rows + string.ascii_uppercase[: len(inner)]
    return low.sharded(node, args, kwargs, [names, *affine], [names, statistics, statistics], free=rows)


def layer_norm_backward(low: Lowering, node: fx.Node, args: Args, kwargs: Kwargs) -> Any:
    """grad, input, normalized_shape, mean, inverse, weight, bias, mask."""
    names, rows, inner = _layer_letters(args[1], args[2])
    statistics = rows + string.ascii_uppercase[: len(inner)]
    affine = [inner] * sum(isinstance(v, Value) for v in args[5:7])
    letters = [names, names, statistics, statistics, *affine]
    return low.sharded(node, args, kwargs, letters, [names, inner, inner], free=rows, summed=rows)


def _layer_letters(source: Value, normalised: list[int]) -> tuple[str, str, str]:
    names = string.ascii_lowercase[: len(source.shape)]
    n_rows = len(names) - len(normalised)
    return names, names[:n_rows], names[n_rows:]


def _whole_channels(low: Lowering, source: Value) -> Value:
    return low.fetch(source, Layout(tuple(s for s in source.layout.splits if s.dim != 1)))


def _evaluate(*args: Any) -> Any:
    return torch.ops.aten.native_batch_norm.default(*args)


def _running_deviation(
    running_mean: torch.Tensor, running_var: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return running_mean, (running_var + eps).rsqrt()


def _scaled_gradient(
    grad: torch.Tensor, x: torch.Tensor, _sums: Any, _mean: Any, inverse: torch.Tensor, weight: Any, _count: int
) -> torch.Tensor:
    """Gradient through fixed statistics."""
    scale = inverse if weight is None else inverse * weight
    return (grad * scale.view(1, -1, *[1] * (x.dim() - 2))).to(x.dtype)


RULES = {
    "native_batch_norm": batch_norm,
    "native_batch_norm_backward": batch_norm_backward,
    "native_layer_norm": layer_norm,
    "native_layer_norm_backward": layer_norm_backward,
}
