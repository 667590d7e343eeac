"""Functions whose forward and backward make the ATen calls that the rule table is checked on, with small inputs.

Sizes are odd or prime where the operator allows it, so that cuts are uneven.
"""

from collections.abc import Callable
from typing import Any

import torch
from models_under_test import classes, images
from torch import Tensor
from torch.nn import functional as F

Sample = tuple[Callable[..., Any], tuple[Tensor, ...]]

ROWS, MAPS, VOLUME, TOKENS = images(4, 7), images(2, 4, 6, 5), images(2, 2, 5, 4, 3), classes(3, 5, n=11)
LABELS, LABEL_MAP = classes(4, n=7), classes(2, 6, 5, n=4)
WEIGHTS = images(7, seed=8).abs()


def on(function: Callable[..., Any], *inputs: Tensor) -> Sample:
    """A sample."""
    return function, inputs


def _statistics(x: Tensor) -> Any:
    mean = torch.var_mean(x, (0, 2), keepdim=True)[1]
    return x.var(1), x.var((0, 1)), x.std(), x.var(2, unbiased=False, keepdim=True), x.std(0), mean


STRUCTURE: dict[str, Sample] = {
    "slices": on(lambda x: (x[:, 1:3], x[..., ::2], x[:, :, 1:-1], x[:, :, 4:], x[..., 1::3], x[:1]), MAPS),
    "elements of a dim": on(lambda x: (x[:, 0], x[..., -1], x[1], *x.unbind(2)), MAPS),
    "parts": on(lambda x: (*x.split(2, 3), *x.chunk(3, 2), *x.split([1, 2, 1], 1), x.tensor_split(3, 3)[2]), MAPS),
    "joins": on(
        lambda x, y: (torch.cat([x, y, x], 1), torch.cat([x, y], 3), torch.stack([x, y], 2), torch.cat([x[:1], y])),
        MAPS,
        images(2, 4, 6, 5, seed=4),
    ),
    "rolls": on(lambda x: (x.roll(1, 3), x.roll((1, -2), (2, 3)), x.roll(3), x.roll(7, 2)), MAPS),
    "flips": on(lambda x: (x.flip(3), x.flip((0, 2)), x.fliplr()), MAPS),
    "repeats": on(lambda x: (x.repeat(1, 2, 1, 3), x.repeat(2, 1, 1, 1, 1), x.repeat_interleave(2, 1)), MAPS),
    "constant padding": on(
        lambda x: (F.pad(x, (1, 2, 0, 3), value=0.5), F.pad(x, (-1, 2, 1, -2)), F.pad(x, (3, 0))), MAPS
    ),
    "other padding": on(
        lambda x: (
            F.pad(x, (2, 1, 1, 3), mode="reflect"),
            F.pad(x, (2, 1, 1, 3), mode="replicate"),
            F.pad(x, (2, 1, 1, 3), mode="circular"),
        ),
        MAPS,
    ),
    "padding of rows and volumes": on(
        lambda x, y: (
            F.pad(x, (1, 2), mode="reflect"),
            F.pad(x, (1, 2), mode="replicate"),
            F.pad(y, (1, 1, 2, 0, 1, 2), mode="replicate"),
            F.pad(y, (1, 1, 2, 0, 1, 2), mode="reflect"),
        ),
        images(2, 3, 7),
        VOLUME,
    ),
    "views": on(
        lambda x: (
            x.flatten(1),
            x.flatten(2),
            x.view(-1),
            x.view(2, 2, 2, 6, 5),
            x.view(8, 6, 5),
            x.unsqueeze(1),
            x.reshape(2, 4, 3, 2, 5),
            x[:, :1].squeeze(1),
        ),
        MAPS,
    ),
    "permutations": on(lambda x: (x.permute(0, 2, 3, 1).reshape(-1, 4), x.transpose(1, 3), x.mT, x[0, 0].t()), MAPS),
    "expansions": on(lambda x: (x[:, :1].expand(-1, 3, -1, -1), x.expand(3, *x.shape), x[:, :, :1].expand_as(x)), MAPS),
    "triangles": on(lambda x: (x.tril(), x.triu(1), x.tril(-2), x.diagonal(0, 2, 3), x.diagonal(1, -1, 0)), MAPS),
    "unfolded dims": on(lambda x: (x.unfold(2, 3, 2), x.unfold(3, 2, 3), x.unfold(0, 2, 1)), MAPS),
    "pixels and channels": on(
        lambda x: (F.pixel_shuffle(x, 2), F.pixel_unshuffle(x[..., :4], 2), F.channel_shuffle(x, 2)), MAPS
    ),
    "columns": on(lambda x: (F.unfold(x, 2), F.unfold(x, (3, 2), padding=1, stride=2)), MAPS),
    "folded columns": on(lambda x: F.fold(x, (4, 5), 2), images(2, 8, 12)),
    "replaced parts": on(
        lambda x, y: (
            x.slice_scatter(y, 2, 1, 4),
            x.select_scatter(y[:, :, 0], 2, 3),
            x.slice_scatter(y[:, :, :2], 2, 0, 4, 2),
        ),
        MAPS,
        images(2, 4, 3, 5),
    ),
    "views of complex kind": on(
        lambda x: (x.movedim(1, -1), x.swapaxes(0, 3), x.unflatten(1, (2, 2)), x.ravel()), MAPS
    ),
}

REDUCTIONS: dict[str, Sample] = {
    "sums and means": on(lambda x: (x.sum(), x.sum((0, 2)), x.mean((2, 3), True), x.mean(1), x.mean()), MAPS),
    "variances": on(_statistics, MAPS),
    "norms": on(
        lambda x: [
            torch.linalg.vector_norm(x, p, dim)
            for p in (0.0, 1, 2, 3.5, float("inf"), -float("inf"))
            for dim in (2, (1, 3), None)
        ],
        MAPS,
    ),
    "norms that keep dims": on(lambda x: (x.norm(), x.norm(dim=1, keepdim=True), x.norm(p=1, dim=(0, 2))), MAPS),
    "extremes": on(
        lambda x: (
            x.amax((1, 2)),
            x.amin(3, keepdim=True),
            x.max(),
            x.min(),
            *x.max(2),
            *x.min(1, keepdim=True),
            x.argmax(3),
            x.argmin(0, keepdim=True),
            x.argmax(),
            *torch.aminmax(x, dim=2),
            *torch.aminmax(x),
        ),
        MAPS,
    ),
    "truths": on(lambda x: ((x > 0).any(2), (x > -9).all(1, keepdim=True), (x > 0).any(), (x > 2).all()), MAPS),
    "products": on(lambda x: (x.prod(2), x.prod(1, keepdim=True), x.prod()), MAPS),
    "running": on(lambda x: (x.cumsum(3), x.cumsum(0), x.cumprod(2), x.logcumsumexp(2), *x.cummax(1)), MAPS),
    "orders": on(
        lambda x: (*x.sort(3), *x.topk(2, 1), x.median(3)[0], x.kthvalue(2, 2)[0], x.median(), x.argsort(0)), MAPS
    ),
    "softmax": on(
        lambda x: (
            x.softmax(1),
            x.log_softmax(3),
            x.softmax(0),
            x.log_softmax(1),
            x.logsumexp((1, 2), True),
            x.logsumexp(3),
        ),
        MAPS,
    ),
    "softmax of impossible rows": on(
        lambda x: (torch._safe_softmax(x, 1), x.log_softmax(0), x.logsumexp(1), x.softmax(0)),
        torch.tensor([[-torch.inf] * 3, [0, -torch.inf, 1], [2, 3, -torch.inf], [5, 6, 7]], dtype=torch.float64),
    ),
    "distances": on(
        lambda x, y: (F.pairwise_distance(x, y), F.cosine_similarity(x, y), torch.cdist(x, y)),
        ROWS,
        images(4, 7, seed=5),
    ),
}

SAMPLES: dict[str, Sample] = {**STRUCTURE, **REDUCTIONS}


def _convolution(dims: int, **options: Any) -> Callable[..., Any]:
    function = getattr(F, f"conv{dims}d")
    return lambda x, w, *b: function(x, w, *b, **options)


def _transposed(dims: int, **options: Any) -> Callable[..., Any]:
    function = getattr(F, f"conv_transpose{dims}d")
    return lambda x, w, *b: function(x, w, *b, **options)


SPACE: dict[str, Sample] = {
    "convolution": on(_convolution(2, padding=1), MAPS, images(6, 4, 3, 3), images(6)),
    "strided convolution": on(_convolution(2, stride=2, padding=(2, 1), dilation=(1, 2)), MAPS, images(3, 4, 3, 2)),
    "grouped convolution": on(_convolution(2, padding=1, groups=2), MAPS, images(6, 2, 3, 3), images(6)),
    "depthwise convolution": on(_convolution(2, padding=1, groups=4), MAPS, images(4, 1, 3, 3), images(4)),
    "pointwise convolution": on(_convolution(2), MAPS, images(5, 4, 1, 1), images(5)),
    "convolution in one dim": on(_convolution(1, stride=2, padding=2), images(3, 4, 7), images(5, 4, 4), images(5)),
    "convolution in three dims": on(_convolution(3, padding=1), VOLUME, images(3, 2, 3, 3, 2), images(3)),
    "transposed convolution": on(
        _transposed(2, stride=2, padding=1, output_padding=1), MAPS, images(4, 3, 3, 3), images(3)
    ),
    "transposed, overlapping little": on(_transposed(2, stride=3), MAPS, images(4, 3, 2, 2), images(3)),
    "transposed, dilated": on(_transposed(2, padding=2, dilation=2), MAPS, images(4, 3, 3, 2)),
    "transposed, grouped": on(_transposed(2, stride=2, groups=2), MAPS, images(4, 3, 2, 2), images(6)),
    "transposed in three dims": on(_transposed(3, stride=2), VOLUME, images(2, 3, 2, 2, 2), images(3)),
    "max pools": on(
        lambda x: (F.max_pool2d(x, 3, 2, 1), F.max_pool2d(x, 2, ceil_mode=True), F.max_pool2d(x, 3, 1, 1, 2)), MAPS
    ),
    "max pools in other dims": on(
        lambda x, y: (F.max_pool1d(x, 3, 2), F.max_pool3d(y, 2, 1), F.max_pool3d(y, 3, 2, 1)), images(2, 3, 7), VOLUME
    ),
    "average pools": on(
        lambda x: (
            F.avg_pool2d(x, 3, 2, 1),
            F.avg_pool2d(x, 2, ceil_mode=True),
            F.avg_pool2d(x, 3, 1, 1, False, False),
            F.avg_pool2d(x, (3, 2), (1, 2), (1, 0), True, True, 5),
        ),
        MAPS,
    ),
    "average pools in other dims": on(
        lambda x, y: (F.avg_pool1d(x, 3, 2, 1), F.avg_pool3d(y, 2, 1, 1, True, False)), images(2, 3, 7), VOLUME
    ),
    "unbatched pools": on(lambda x: (F.max_pool2d(x, 3, 1, 1), F.avg_pool2d(x, 2)), images(3, 6, 5)),
    "unpool": on(lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2, output_size=x.shape[2:]), MAPS),
    "adaptive pools": on(
        lambda x, y: (
            F.adaptive_avg_pool2d(x, (3, 2)),
            F.adaptive_avg_pool2d(x, (1, 4)),
            F.adaptive_max_pool2d(x, (3, 2)),
            F.adaptive_avg_pool3d(y, (2, 3, 1)),
            F.adaptive_avg_pool1d(x[0], 2),
        ),
        MAPS,
        VOLUME,
    ),
    "interpolation": on(
        lambda x: (
            F.interpolate(x, scale_factor=2),
            F.interpolate(x, (9, 4)),
            F.interpolate(x, scale_factor=(1.7, 0.6)),
            F.interpolate(x, (9, 4), mode="bilinear"),
            F.interpolate(x, scale_factor=2, mode="bilinear"),
            F.interpolate(x, (4, 11), mode="bilinear", align_corners=True),
            F.interpolate(x, (9, 7), mode="bicubic"),
            F.interpolate(x, scale_factor=1.5, mode="bicubic", align_corners=True),
            F.interpolate(x, (4, 3), mode="area"),
            F.interpolate(x, (7, 8), mode="nearest-exact"),
            F.interpolate(x, (3, 2), mode="bilinear", antialias=True),
            F.interpolate(x, scale_factor=1.3, mode="bilinear", recompute_scale_factor=False),
            F.interpolate(x, (1, 1)),
        ),
        MAPS,
    ),
    "interpolation in other dims": on(
        lambda x, y: (
            F.interpolate(x, 11, mode="linear"),
            F.interpolate(x, scale_factor=2),
            F.interpolate(y, scale_factor=2),
            F.interpolate(y, (4, 3, 5), mode="trilinear", align_corners=True),
        ),
        images(2, 3, 7),
        VOLUME,
    ),
    "grid sample": on(
        lambda x, g: (F.grid_sample(x, g, align_corners=False), F.grid_sample(x, g, "nearest", "border", True)),
        MAPS,
        images(2, 3, 7, 2).tanh(),
    ),
}
SAMPLES.update(SPACE)

NORMS: dict[str, Sample] = {
    "batch norm": on(
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), MAPS, images(4), images(4, seed=3)
    ),
    "batch norm, fixed": on(
        lambda x, w, m, v: F.batch_norm(x, m.detach(), v.detach(), w, None),
        MAPS,
        images(4),
        images(4, seed=3),
        WEIGHTS[:4],
    ),
    "instance norm": on(lambda x, w, b: F.instance_norm(x, None, None, w, b), MAPS, images(4), images(4, seed=3)),
    "layer norm": on(
        lambda x, w, b, v: (F.layer_norm(x, (5,), w, b), F.layer_norm(x, (6, 5), v), F.layer_norm(x, (4, 6, 5))),
        MAPS,
        images(5),
        images(5, seed=3),
        images(6, 5),
    ),
    "group norm": on(
        lambda x, w, b: (F.group_norm(x, 2, w, b), F.group_norm(x, 4)), MAPS, images(4), images(4, seed=3)
    ),
    "rms norm": on(lambda x, w: F.rms_norm(x, (5,), w), MAPS, images(5)),
    "local response": on(lambda x: F.local_response_norm(x, 2), MAPS),
    "weight norm": on(
        lambda v, g: (
            torch._weight_norm(v, g, 0),
            torch._weight_norm(v.transpose(0, 1).contiguous(), g.view(1, -1), 1),
        ),
        images(5, 4),
        images(5, 1),
    ),
}

INDICES: dict[str, Sample] = {
    "embedding": on(
        lambda w, t: (F.embedding(t, w), F.embedding(t, w, 3), F.embedding(t, w, scale_grad_by_freq=True)),
        images(11, 6),
        TOKENS,
    ),
    "gather": on(
        lambda x, i: (x.gather(1, i), x.gather(0, i % 4), x.gather(1, i[:, :2]), x.gather(1, i[:2])),
        ROWS,
        classes(4, 6, n=7),
    ),
    "index_select": on(lambda x, i: (x.index_select(1, i), x.index_select(0, i % 2)), MAPS, classes(5, n=4)),
    "index": on(
        lambda x, i: (x[i % 2], x[:, i], x[:, i, i], x[i % 2, :, i], x[:, :, i.view(5, 1), i[:3]], x[:, -i], x[..., i]),
        MAPS,
        classes(5, n=4),
    ),
    "labels by index": on(lambda x, t: (x[torch.arange(4), t], x.log_softmax(1)[torch.arange(4), t]), ROWS, LABELS),
    "scatter": on(
        lambda x, i, y: (
            x.scatter(1, i, y),
            x.scatter(1, i[:, :3], 0.5),
            x.scatter_add(1, i, y),
            x.scatter_add(0, i % 4, y),
            x.scatter_reduce(1, i, y, "amax"),
            x.scatter_reduce(1, i, y, "mean", include_self=False),
        ),
        ROWS,
        torch.stack([torch.randperm(7, generator=torch.Generator().manual_seed(s)) for s in range(4)]),
        images(4, 7, seed=3),
    ),
    "index_add": on(
        lambda x, i, y: (
            x.index_add(1, i, y),
            x.index_copy(1, torch.tensor([3, 0]), y[:, :2]),
            x.index_fill(0, i % 2, 2.0),
        ),
        MAPS,
        classes(5, n=4),
        images(2, 5, 6, 5),
    ),
    "index_put": on(
        lambda x, i, y: (
            x.index_put((i,), y, accumulate=True),
            x.index_put((i,), y[:1], accumulate=True),
            torch.ops.aten.index_put(x, [None, i], y[0, :3], True),
            x.index_put((i, i), y[0, 0, 0], accumulate=True),
            torch.ops.aten.index_put(x, [torch.tensor([1, 0]), None, torch.tensor([3, 2])], y[:2, :, 0, :5]),
            x.index_put((x > 0.5,), y[0, 0, 0, 0]),
        ),
        MAPS,
        classes(3, n=2),
        images(3, 4, 6, 5),
    ),
    "masks": on(
        lambda x, y: (x.masked_fill(x > 0, 0.5), torch.where(x > y, x, y), x.clamp(max=y)),
        MAPS,
        images(2, 4, 6, 5, seed=5),
    ),
}

LOSSES: dict[str, Sample] = {
    "cross entropy": on(
        lambda x, t, w: (
            F.cross_entropy(x, t),
            F.cross_entropy(x, t, w.detach()),
            F.cross_entropy(x, t, reduction="sum", ignore_index=2),
            F.cross_entropy(x, t, w.detach(), reduction="none"),
            F.cross_entropy(x, t, label_smoothing=0.1),
        ),
        ROWS,
        LABELS,
        WEIGHTS,
    ),
    "cross entropy of maps": on(
        lambda x, t, w: (
            F.cross_entropy(x, t, w[:4].detach()),
            F.cross_entropy(x, t, reduction="none"),
            F.cross_entropy(x, t, ignore_index=1),
        ),
        MAPS,
        LABEL_MAP,
        WEIGHTS,
    ),
    "nll of one sample": on(lambda x, t: F.nll_loss(x.log_softmax(0), t), images(7), classes(1, n=7)[0]),
    "elementwise losses": on(
        lambda x, y: (
            F.mse_loss(x, y),
            F.l1_loss(x, y),
            F.smooth_l1_loss(x, y),
            F.huber_loss(x, y, reduction="sum"),
            F.binary_cross_entropy_with_logits(x, y.sigmoid()),
            F.binary_cross_entropy(x.sigmoid(), y.sigmoid()),
            F.soft_margin_loss(x, y.sign().detach()),
            F.kl_div(x.log_softmax(1), y.softmax(1), reduction="batchmean"),
            F.mse_loss(x, y, reduction="none"),
            F.poisson_nll_loss(x, y.abs()),
        ),
        ROWS,
        images(4, 7, seed=3),
    ),
}
SAMPLES.update({**NORMS, **INDICES, **LOSSES})


def _attention(**options: Any) -> Callable[..., Any]:
    def function(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        mask = None if mask is None else (mask > -0.7 if options.get("boolean") else mask).detach()
        rest = {name: option for name, option in options.items() if name != "boolean"}
        return F.scaled_dot_product_attention(q, k, v, mask, **rest)

    return function


QUERIES, KEYS, VALUES = images(2, 4, 7, 3), images(2, 4, 7, 3, seed=3), images(2, 4, 7, 5, seed=4)
FEW_KEYS, FEW_VALUES = images(2, 2, 7, 3, seed=3), images(2, 2, 7, 3, seed=4)
PRODUCTS: dict[str, Sample] = {
    "matrix products": on(
        lambda x, y, v: (x @ y.T, (x @ v, x[0].dot(v)), torch.outer(x[0], v)), ROWS, images(5, 7), images(7, seed=3)
    ),
    "linear": on(lambda x, w, b: F.linear(x, w, b), images(2, 3, 7), images(5, 7), images(5)),
    "sums of products": on(
        lambda b, x, y: (
            torch.baddbmm(b, x, y, beta=0.5, alpha=2),
            torch.addmm(b[0], x[0], y[0], beta=2, alpha=0.5),
            torch.addbmm(b[0], x, y),
            torch.addmv(b[0, :, 0], x[0], y[0, :, 0]),
            torch.addr(b[0], x[0, :, 0], y[0, 0]),
        ),
        images(3, 4, 5),
        images(3, 4, 6),
        images(3, 6, 5),
    ),
    "einsum": on(
        lambda x, y: (torch.einsum("nchw,ndhw->ncd", x, y), torch.einsum("nchw,kc->nkhw", x, y[0, :, 0, :4])),
        MAPS,
        images(2, 4, 6, 5, seed=5),
    ),
    "attention": on(_attention(), QUERIES, KEYS, KEYS.sin()),
    "causal attention": on(_attention(is_causal=True), QUERIES, KEYS, KEYS.sin()),
    "attention with a mask": on(_attention(boolean=True), QUERIES, KEYS, KEYS.sin(), images(7, 7)),
    "attention with a bias": on(_attention(scale=0.3), QUERIES, KEYS, KEYS.sin(), images(2, 1, 7, 7)),
    "attention of shared heads": on(_attention(enable_gqa=True), QUERIES, FEW_KEYS, FEW_VALUES),
    "causal attention of shared heads": on(_attention(enable_gqa=True, is_causal=True), QUERIES, FEW_KEYS, FEW_VALUES),
    "attention with other keys": on(_attention(), QUERIES, images(2, 4, 5, 3), images(2, 4, 5, 3, seed=6)),
}
SAMPLES.update(PRODUCTS)
