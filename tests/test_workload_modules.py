"""Losses, attention, and what real modules are made of, partitioned, equal plain autograd in fp64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models_under_test import Loss, assert_same_step, captured, classes, images, partitioned, plain_step
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

DATA = [("data", 2, 2), ("data", 1, 3)]
BOTH = [("data", 1, 3), ({"spatial": [2, 3]}, 2, 3), ("spatial", 5, 5)]


def check(make: Callable[[], nn.Module], batch: tuple[Any, Any], loss_fn: Loss, plans: list[Any]) -> None:
    torch.manual_seed(0)
    model = make().double()
    expected = plain_step(model, batch, loss_fn)
    graph = captured(model, batch, loss_fn)
    for plan, rows, cols in plans:
        assert_same_step(partitioned(graph, plan, rows, cols).run(model, batch), expected)


class Composed(nn.Module):
    """Submodules by name, and forward as a function of the module and its inputs."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self._forward_function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward_function(self, *args, **kwargs)


def squares(outputs: Tensor, _targets: Any) -> Tensor:
    return (outputs.square() * 1.3 + outputs.sin()).sum() / outputs.shape[0]


WEIGHTS = torch.tensor([0.1, 0.5, 2.0, 1.0], dtype=torch.float64)


def one_hot(t: Tensor) -> Tensor:
    return F.one_hot(t, 4).double()


def nll_by_hand(y: Tensor, t: Tensor) -> Tensor:
    return -F.log_softmax(y, 1)[torch.arange(len(t)), t].mean()


def contrastive(y: Tensor, _t: Tensor) -> Tensor:
    z = F.normalize(y, dim=1)
    return F.cross_entropy(z @ z.T / 0.1, torch.arange(len(y)))


def focal(y: Tensor, t: Tensor) -> Tensor:
    each = F.cross_entropy(y, t, reduction="none")
    return ((1 - torch.exp(-each)) ** 2 * each).mean()


CLASS_LOSSES: dict[str, Loss] = {
    "cross entropy": F.cross_entropy,
    "sum": lambda y, t: F.cross_entropy(y, t, reduction="sum"),
    "weights": lambda y, t: F.cross_entropy(y, t, weight=WEIGHTS),
    "ignored class": lambda y, t: F.cross_entropy(y, t, ignore_index=1),
    "smooth labels": lambda y, t: F.cross_entropy(y, t, label_smoothing=0.1),
    "smooth, ignored": lambda y, t: F.cross_entropy(y, t, label_smoothing=0.1, ignore_index=2),
    "smooth, weights, ignored": lambda y, t: F.cross_entropy(y, t, WEIGHTS, label_smoothing=0.1, ignore_index=2),
    "none, weights": lambda y, t: (F.cross_entropy(y, t, WEIGHTS, reduction="none") * (t + 1.0)).mean(),
    "nll": lambda y, t: F.nll_loss(F.log_softmax(y, 1), t),
}
VECTOR_LOSSES: dict[str, Loss] = {
    "nll by hand": nll_by_hand,
    "nll by gather": lambda y, t: -F.log_softmax(y, 1).gather(1, t[:, None]).sum() / len(t),
    "probabilities": lambda y, t: F.cross_entropy(y, F.softmax(one_hot(t), 1), label_smoothing=0.1),
    "mse": lambda y, t: F.mse_loss(y, one_hot(t)),
    "mse sum": lambda y, t: F.mse_loss(y, one_hot(t), reduction="sum"),
    "mse none": lambda y, t: F.mse_loss(y, one_hot(t), reduction="none").sum(1).mean(),
    "l1": lambda y, t: F.l1_loss(y, one_hot(t)),
    "smooth l1": lambda y, t: F.smooth_l1_loss(y, one_hot(t), beta=0.3),
    "smooth l1 sum": lambda y, t: F.smooth_l1_loss(y, one_hot(t), reduction="sum"),
    "huber": lambda y, t: F.huber_loss(y, one_hot(t), delta=0.4),
    "bce with logits": lambda y, t: F.binary_cross_entropy_with_logits(y, one_hot(t)),
    "bce with logits, weights": lambda y, t: F.binary_cross_entropy_with_logits(
        y, one_hot(t), weight=WEIGHTS, pos_weight=WEIGHTS
    ),
    "bce": lambda y, t: F.binary_cross_entropy(y.sigmoid(), one_hot(t)),
    "bce sum": lambda y, t: F.binary_cross_entropy(y.sigmoid(), one_hot(t), reduction="sum"),
    "bce none": lambda y, t: F.binary_cross_entropy(y.sigmoid(), one_hot(t), reduction="none").mean(),
    "kl": lambda y, t: F.kl_div(F.log_softmax(y, 1), F.softmax(one_hot(t), 1), reduction="batchmean"),
    "soft margin": lambda y, t: F.soft_margin_loss(y, one_hot(t) * 2 - 1),
    "multilabel soft margin": lambda y, t: F.multilabel_soft_margin_loss(y, one_hot(t)),
    "poisson": lambda y, t: F.poisson_nll_loss(y, one_hot(t)),
    "triplet": lambda y, t: F.triplet_margin_loss(y, y.sin(), y.cos()),
    "contrastive": contrastive,
    "focal": focal,
    "spread": lambda y, t: y.var(0).sum() + y.var() + 0.1 * y.norm() + y.abs().max(),
    "gradient penalty": lambda y, t: F.cross_entropy(y, t)
    + torch.autograd.grad(F.cross_entropy(y, t), y, create_graph=True)[0].square().sum(),
    "of one element": lambda y, t: y.square().mean().reshape(1),
    "over a Python length": lambda y, t: y.square().sum() / len(y),
}


@pytest.mark.parametrize("name", [*CLASS_LOSSES, *VECTOR_LOSSES])
def test_losses_of_vectors(name: str) -> None:
    batch = images(7, 6), classes(7, n=4)
    loss = (CLASS_LOSSES | VECTOR_LOSSES)[name]
    plans = [*DATA, ({"tensor": 2, "data": 3}, 2, 3)]
    check(lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 4)), batch, loss, plans)


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_losses_of_maps(name: str) -> None:
    batch = images(3, 3, 9, 7), classes(3, 9, 7, n=4)
    model = lambda: nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.SiLU(), nn.Conv2d(5, 4, 1))  # noqa: E731
    check(model, batch, CLASS_LOSSES[name], BOTH)


def test_pixels_that_are_ignored_by_default() -> None:
    targets = classes(3, 9, 7, n=4)
    targets[0, :5], targets[:, :, 3] = -100, -100
    check(lambda: nn.Conv2d(3, 4, 3, padding=1), (images(3, 3, 9, 7), targets), F.cross_entropy, BOTH)


def dice(y: Tensor, t: Tensor) -> Tensor:
    p = y.sigmoid()
    return 1 - (2 * (p * t).sum((0, 2, 3)) / ((p + t).sum((0, 2, 3)) + 1)).mean()


@pytest.mark.parametrize(
    "loss",
    [F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.binary_cross_entropy_with_logits, dice],
    ids=lambda loss: loss.__name__,
)
def test_losses_between_maps(loss: Loss) -> None:
    check(lambda: nn.Conv2d(3, 3, 3, padding=1), (images(3, 3, 9, 7), images(3, 3, 9, 7).sigmoid()), loss, BOTH)


TOKENS, NEXT = classes(6, 5, n=11), classes(6, 5, n=11, seed=9)


def language(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1))


def split_heads(s: Any, x: Tensor) -> list[Tensor]:
    return [z.view(*x.shape, 2, 4).transpose(1, 2) for z in s.q(s.e(x)).chunk(3, -1)]


def merged(s: Any, heads: Tensor, x: Tensor) -> Tensor:
    return s.o(heads.transpose(1, 2).reshape(*x.shape, 8))  # type: ignore[no-any-return]


def masked(s: Any, x: Tensor) -> Tensor:
    causal = torch.triu(torch.full((x.shape[1], x.shape[1]), float("-inf"), dtype=torch.float64), 1)
    h = s.e(x) + s.position[: x.shape[1]]
    return s.o(s.a(h, h, h, need_weights=False, attn_mask=causal)[0])  # type: ignore[no-any-return]


def text(forward: Callable[..., Any], **parts: Any) -> nn.Module:
    """An embedding `e` of 11 tokens, `parts`, and an output layer `o`."""
    return Composed(forward, e=nn.Embedding(11, 8), o=nn.Linear(8, 11), **parts)


SEQUENCES: dict[str, Callable[[], nn.Module]] = {
    "causal attention": lambda: text(
        lambda s, x: merged(s, F.scaled_dot_product_attention(*split_heads(s, x), is_causal=True), x),
        q=nn.Linear(8, 24),
    ),
    "padding mask": lambda: text(
        lambda s, x: merged(
            s, F.scaled_dot_product_attention(*split_heads(s, x), attn_mask=(x < 9)[:, None, None, :]), x
        ),
        q=nn.Linear(8, 24),
    ),
    "positions and mask": lambda: text(
        masked, position=nn.Parameter(torch.randn(5, 8)), a=nn.MultiheadAttention(8, 2, batch_first=True)
    ),
    "attention weights": lambda: text(
        lambda s, x: s.o(s.a(s.e(x), s.e(x), s.e(x))[0]), a=nn.MultiheadAttention(8, 2, batch_first=True)
    ),
    "sequence first": lambda: text(
        lambda s, x: s.o(s.a(*[s.e(x).transpose(0, 1)] * 3)[0].transpose(0, 1)), a=nn.MultiheadAttention(8, 2)
    ),
    "encoder layer": lambda: text(
        lambda s, x: s.o(s.a(s.e(x))), a=nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True)
    ),
    "decoder layer": lambda: text(
        lambda s, x: s.o(s.a(s.e(x), s.e(x).flip(1))), a=nn.TransformerDecoderLayer(8, 2, 16, 0.0, batch_first=True)
    ),
    "recurrent": lambda: text(lambda s, x: s.o(s.a(s.e(x))[0]), a=nn.LSTM(8, 8, batch_first=True)),
    "tied embedding": lambda: Composed(
        lambda s, x: s.l(s.e(x)).tanh() @ s.e.weight.T, e=nn.Embedding(11, 8, padding_idx=0), l=nn.Linear(8, 8)
    ),
    "gradients by frequency": lambda: Composed(
        lambda s, x: s.o(s.e(x)), e=nn.Embedding(11, 8, scale_grad_by_freq=True), o=nn.Linear(8, 11)
    ),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences(name: str) -> None:
    check(SEQUENCES[name], (TOKENS, NEXT), language, DATA)


def test_attention_of_as_many_heads_as_tokens() -> None:
    """Where the two sizes are equal, the layout of the log-sum-exp cannot be told from its shape."""
    check(SEQUENCES["causal attention"], (TOKENS[:, :2], NEXT[:, :2]), language, DATA)


class Negated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


class InputAsGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (weight * x).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0], None


def partly_frozen() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model[0].requires_grad_(False)
    model[1].weight.requires_grad_(False)  # type: ignore[union-attr]
    return model


def moving_average(s: Any, x: Tensor) -> Tensor:
    s.average.mul_(0.9).add_(x.mean((0, 2, 3)) * 0.1)
    s.count.add_(1)
    return s.a(x) - s.average.view(1, 3, 1, 1) / s.count  # type: ignore[no-any-return]


def with_buffers() -> nn.Module:
    model = Composed(moving_average, a=nn.Conv2d(3, 3, 3))
    model.register_buffer("average", torch.zeros(3))
    model.register_buffer("count", torch.zeros((), dtype=torch.int64))
    return model


def squeeze_and_excite(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    return y * s.g(F.adaptive_avg_pool2d(y, 1)).sigmoid()  # type: ignore[no-any-return]


def dense(s: Any, x: Tensor) -> Tensor:
    y = torch.cat([x, s.a(x)], 1)
    return torch.cat([s.b(y), F.avg_pool2d(y, 2, ceil_mode=True)], 1)


def unet(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    up = F.interpolate(s.n(s.b(y)), size=x.shape[2:], mode="bilinear")
    return s.c(torch.cat([y, up], 1))  # type: ignore[no-any-return]


def shifted_windows(s: Any, x: Tensor) -> Tensor:
    n, h, w, c = x.shape[0], 4, 4, 3
    rolled = torch.roll(x.permute(0, 2, 3, 1)[:, :8, :4], (-1, -1), (1, 2))
    windows = rolled.view(n, 2, h, 1, w, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, h * w, c)
    return s.l(windows).view(n, 2, 1, h, w, c).permute(0, 1, 3, 2, 4, 5).reshape(n, 8, 4, c)  # type: ignore[no-any-return]


def patches(s: Any, x: Tensor) -> Tensor:
    tokens = torch.cat([s.cls.expand(x.shape[0], -1, -1), s.a(x).flatten(2).transpose(1, 2)], 1)
    return s.l(tokens)[:, 0] + s.l(tokens).mean(1)  # type: ignore[no-any-return]


def conv(stride: int = 1, channels: int = 3, out: int = 4) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, stride=stride, padding=1)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "squeeze and excite": lambda: Composed(
        squeeze_and_excite, a=conv(), g=nn.Sequential(nn.Conv2d(4, 2, 1), nn.ReLU(), nn.Conv2d(2, 4, 1))
    ),
    "dense": lambda: Composed(dense, a=conv(), b=conv(2, 7)),
    "unet": lambda: Composed(unet, a=conv(), b=conv(2, 4), n=nn.GroupNorm(2, 4), c=conv(1, 8, 2)),
    "residual": lambda: Composed(lambda s, x: s.n(s.a(x)).relu_() + x, a=conv(out=3), n=nn.BatchNorm2d(3)),
    "applied twice": lambda: Composed(lambda s, x: s.n(s.a(s.n(s.a(x)))) * x, a=conv(out=3), n=nn.BatchNorm2d(3)),
    "flatten without pooling": lambda: nn.Sequential(conv(), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 63, 5)),
    "shared weights": lambda: (lambda a: nn.Sequential(a, nn.SiLU(), a))(conv(out=3)),
    "partly frozen": partly_frozen,
    "unused": lambda: Composed(lambda s, x: s.a(x), a=conv(), unused=nn.Linear(3, 5)),
    "unused norm that counts": lambda: Composed(lambda s, x: (s.n(x), s.a(x))[1], a=conv(), n=nn.BatchNorm2d(3)),
    "buffers": with_buffers,
    "tensor that is no buffer": lambda: Composed(
        lambda s, x: s.a((x - s.k) / s.k), a=conv(), k=torch.full((3, 1, 1), 0.5, dtype=torch.float64)
    ),
    "scalar parameter": lambda: Composed(lambda s, x: s.a(x) * s.t.exp(), a=conv(), t=nn.Parameter(torch.tensor(0.3))),
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(conv()), nn.ReLU()),
    "spectral norm": lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(conv()), nn.ReLU()),
    "checkpoint": lambda: Composed(
        lambda s, x: checkpoint(lambda z: s.n(s.a(z)).relu(), x, use_reentrant=False), a=conv(), n=nn.BatchNorm2d(4)
    ),
    "shifted windows": lambda: Composed(shifted_windows, l=nn.Linear(3, 3)),
    "patches": lambda: Composed(
        patches, a=nn.Conv2d(3, 8, 2, stride=2), l=nn.Linear(8, 5), cls=nn.Parameter(torch.randn(1, 1, 8))
    ),
    "backward by hand": lambda: Composed(lambda s, x: Negated.apply(s.a(x)) * x.mean(1, keepdim=True), a=conv()),
    "input as gradient": lambda: Composed(
        lambda s, x: InputAsGradient.apply(s.w, x).view(1), w=nn.Parameter(torch.randn(5, 3, 9, 7))
    ),
    "three dims": lambda: Composed(
        lambda s, x: s.t(s.n(s.a(x.unsqueeze(2))).relu()).mean((2, 3, 4)),
        a=nn.Conv3d(3, 4, 3, padding=1), n=nn.BatchNorm3d(4), t=nn.MaxPool3d((1, 2, 2)),
    ),
    "one dim": lambda: nn.Sequential(
        nn.Flatten(2), nn.Conv1d(3, 4, 3, stride=2, padding=1), nn.BatchNorm1d(4), nn.MaxPool1d(2), nn.AvgPool1d(3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str) -> None:
    check(MODULES[name], (images(5, 3, 9, 7), classes(5)), squares, BOTH)


def test_several_heads() -> None:
    model = lambda: Composed(  # noqa: E731
        lambda s, x: (s.b(s.a(x).mean((2, 3))), s.c(s.a(x))), a=conv(), b=nn.Linear(4, 5), c=nn.Conv2d(4, 1, 1)
    )
    loss = lambda y, t: F.cross_entropy(y[0], t) + y[1].abs().mean()  # noqa: E731
    check(model, (images(5, 3, 9, 7), classes(5)), loss, BOTH)


@pytest.mark.parametrize("as_dict", [False, True])
def test_several_inputs(as_dict: bool) -> None:
    x, z = images(5, 3, 9, 7), images(5, 6)
    inputs = {"z": z, "x": x} if as_dict else (x, z)
    model = lambda: Composed(lambda s, x, z: s.a(x) * s.b(z)[:, :, None, None], a=conv(), b=nn.Linear(6, 4))  # noqa: E731
    check(model, (inputs, classes(5)), squares, BOTH)


def test_a_loss_that_reads_parameters_of_the_model() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 4).double()
    loss = lambda y, t: F.cross_entropy(y, t) + 0.1 * model.weight.square().sum()  # noqa: E731
    batch = images(7, 6), classes(7, n=4)
    expected = torch.autograd.grad(loss(model(batch[0]), batch[1]), list(model.parameters()))
    step = partitioned(captured(model, batch, loss), "data", 2, 2).run(model, batch)
    for got, wanted in zip(step.gradients.values(), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
