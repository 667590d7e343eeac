"""Every operator, on data and spatial plans with uneven and empty blocks, equals plain autograd in fp64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models_under_test import assert_same_step, captured, classes, images, partitioned, plain_step
from torch import Tensor, nn
from torch.nn import functional as F

from meshemu.errors import UnsupportedOpError

PLANS = [("data", 1, 3), ({"spatial": [2, 3]}, 2, 3), ("spatial", 5, 5)]
SIZES = [(9, 7), (17, 23)]


class After(nn.Module):
    """A convolution, whose weights get a gradient, and then what is tested."""

    def __init__(self, then: Callable[[Tensor], Tensor], kernel: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, kernel, padding=kernel // 2)
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.convolution(x))


def squares(outputs: Tensor, _targets: Any) -> Tensor:
    """A loss by hand whose gradient differs from element to element."""
    return (outputs.square() * 1.3 + outputs.sin()).sum() / outputs.shape[0]


def check(model: nn.Module, size: tuple[int, int] = (9, 7), plans: list[Any] = PLANS) -> None:
    torch.manual_seed(0)
    model, batch = model.double(), (images(5, 3, *size), classes(5))
    expected = plain_step(model, batch, squares)
    graph = captured(model, batch, squares)
    for plan, rows, cols in plans:
        assert_same_step(partitioned(graph, plan, rows, cols).run(model, batch), expected)


CONVOLUTIONS: list[dict[str, Any]] = [
    dict(kernel_size=1), dict(kernel_size=2), dict(kernel_size=5, padding=2), dict(kernel_size=7, padding=3),
    dict(kernel_size=3, stride=2, padding=1), dict(kernel_size=3, stride=3), dict(kernel_size=4, stride=2, padding=1),
    dict(kernel_size=2, stride=3), dict(kernel_size=1, stride=3, padding=2), dict(kernel_size=3, dilation=2, padding=2),
    dict(kernel_size=3, dilation=3, stride=2), dict(kernel_size=3, padding=3), dict(kernel_size=3, groups=2, padding=1),
    dict(kernel_size=3, groups=4, padding=1, bias=False), dict(kernel_size=(1, 3), padding=(0, 1), stride=(2, 1)),
    dict(kernel_size=4, padding="same"), dict(kernel_size=3, padding=1, padding_mode="reflect"),
    dict(kernel_size=3, padding=1, padding_mode="circular"),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_convolution(options: dict[str, Any], size: tuple[int, int]) -> None:
    check(After(nn.Conv2d(4, 8, **options), kernel=3), size, PLANS if size == SIZES[0] else PLANS[2:])


POOLS = [
    nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2), nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(2, 3, ceil_mode=True),
    nn.MaxPool2d(3, 1, 1, dilation=2), nn.MaxPool2d(3, 1), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(2),
    nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.AvgPool2d(3, 1, 1, divisor_override=5),
    nn.AvgPool2d((2, 3), (3, 2), ceil_mode=True), nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((3, 2)),
    nn.AdaptiveMaxPool2d((2, 3)), nn.LPPool2d(2, 3, 2),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_pooling(pool: nn.Module, size: tuple[int, int]) -> None:
    check(After(pool), size, PLANS if size == SIZES[0] else PLANS[2:])


def frozen_statistics() -> nn.Module:
    norm = nn.BatchNorm2d(4).eval()
    norm.running_mean = torch.tensor([0.1, -0.2, 0.3, 0.0])
    norm.running_var = torch.tensor([0.5, 1.0, 2.0, 1.5])
    return norm


NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(4, momentum=0.3),
    "batch, not affine": lambda: nn.BatchNorm2d(4, affine=False),
    "batch, no running statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "batch, frozen": frozen_statistics,
    "instance": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "group": lambda: nn.GroupNorm(2, 4),
    "group of one channel": lambda: nn.GroupNorm(4, 4, affine=False),
    "group of all channels": lambda: nn.GroupNorm(1, 4),
    "layer over the map": lambda: nn.LayerNorm([4, 9, 7]),
    "layer over rows": lambda: nn.LayerNorm(7),
    "rms": lambda: nn.RMSNorm(7),
    "local response": lambda: nn.LocalResponseNorm(2),
}


@pytest.mark.parametrize("name", NORMS)
def test_normalisation(name: str) -> None:
    norm = NORMS[name]()
    with torch.no_grad():
        for i, parameter in enumerate(norm.parameters()):
            parameter.copy_(torch.linspace(0.5, 1.5 + i, parameter.numel()).view_as(parameter))
    check(After(norm))


ACTIVATIONS = [
    nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Sigmoid(), nn.Hardswish(),
    nn.LeakyReLU(0.1), nn.Softplus(), nn.ELU(), nn.SELU(), nn.CELU(), nn.Tanh(), nn.Mish(), nn.Hardtanh(), nn.ReLU6(),
    nn.Hardsigmoid(), nn.LogSigmoid(), nn.PReLU(4), nn.GLU(1), nn.Softsign(), nn.Softshrink(), nn.Hardshrink(),
    nn.Softmax(1), nn.Softmax(3), nn.LogSoftmax(1),
]  # fmt: skip


def test_activations() -> None:
    """All in one model, since each is a node of its own."""

    class All(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.activations = nn.ModuleList(ACTIVATIONS)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([activation(x * 2 + 0.1) for activation in self.activations], 1)

    check(After(All()))


def grown(x: Tensor, *repeats: int) -> Tensor:
    return x.repeat(*repeats).sin()


def with_slice(x: Tensor, where: Any, value: float) -> Tensor:
    y = x.clone()
    y[where] = value
    return y * x


def coordinates(x: Tensor) -> Tensor:
    rows = torch.linspace(-1, 1, x.shape[2], dtype=x.dtype).view(1, 1, -1, 1)
    return torch.cat([x, rows.expand(x.shape[0], 1, *x.shape[2:])], 1)


ALL = slice(None)
SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    # Joins and parts: of channels, of rows and of samples.
    "cat channels": lambda x: torch.cat([x, x * 2, x.sin()], 1),
    "cat rows": lambda x: torch.cat([x, x * 2], 2),
    "cat samples": lambda x: torch.cat([x, x.sin()], 0),
    "cat with nothing": lambda x: torch.cat([x[:, :0].sin(), x], 1),
    "stack": lambda x: torch.stack([x, x * 2], 2),
    "chunk channels": lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1],
    "chunk rows": lambda x: x.chunk(3, 2)[0],
    "slices": lambda x: x[..., ::2, 1::2],
    "row": lambda x: x[:, :, 0],
    "last sample": lambda x: x[-1],
    "some samples": lambda x: x[1:3],
    "crop and pad": lambda x: F.pad(x, (1, -1, 0, 2), value=0.5),
    "reflection": lambda x: F.pad(x, (2, 1, 1, 0), mode="reflect"),
    "replication": lambda x: F.pad(x, (2, 1, 1, 0), mode="replicate"),
    # Views.
    "flatten": lambda x: x.flatten(1),
    "flatten all": lambda x: x.view(-1).sin(),
    "flatten map": lambda x: x.flatten(2).transpose(1, 2),
    "rows first": lambda x: x.permute(0, 2, 3, 1).reshape(-1, 4),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).view(-1, 4).sin(),
    "shuffle": lambda x: x.view(x.shape[0], 2, 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape).sin() * x,
    "channel shuffle": lambda x: F.channel_shuffle(x, 2) * x,
    "transposed map": lambda x: x + x.transpose(2, 3).contiguous().transpose(2, 3),
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
    "im2col": lambda x: F.unfold(x, 2),
    "expand": lambda x: x[:, :1].expand(-1, 4, -1, -1) * x,
    "expand rows": lambda x: x[:, :, :1].expand(-1, -1, 5, -1).sin(),
    "expand in front": lambda x: x.expand(2, *x.shape).sin(),
    "repeat channels": lambda x: grown(x, 1, 2, 1, 1),
    "repeat rows": lambda x: grown(x, 1, 1, 2, 1),
    "repeat samples": lambda x: grown(x, 2, 1, 1, 1),
    # Reductions over cut dims, some with a count of their own.
    "mean of the map": lambda x: x * x.mean((2, 3), keepdim=True),
    "mean of rows": lambda x: x.mean(2),
    "mean of columns": lambda x: x - x.mean(-1, keepdim=True),
    "mean of samples": lambda x: x - x.mean(0, keepdim=True),
    "mean of all": lambda x: x - x.mean(),
    "mean in another format": lambda x: x.float().mean((2, 3), dtype=torch.float64),
    "sum over a product of sizes": lambda x: x.sum((2, 3)) / (x.shape[2] * x.shape[3]),
    "var": lambda x: x * (x.var((2, 3), keepdim=True) + 1).sqrt() + x.var(),
    "std": lambda x: x / x.std(0, keepdim=True, unbiased=False) * x.std() + x.std(3, keepdim=True),
    "norms": lambda x: x / x.norm() + x / x.norm(p=1, dim=1, keepdim=True) + x.norm(dim=3, keepdim=True),
    "norm of a square map": lambda x: x[:, :, :7].norm(dim=3),
    "vector norms": lambda x: torch.linalg.vector_norm(x, 3.0, dim=(2, 3)) * torch.linalg.vector_norm(x, float("inf")),
    "normalize": lambda x: F.normalize(x, dim=1) + F.normalize(x, dim=3),
    "cosine similarity": lambda x: F.cosine_similarity(x, x.sin(), dim=3),
    "max": lambda x: x * x.max() + x.amax((2, 3), keepdim=True) + x.max(2, keepdim=True)[0] + x.min(),
    "argmax": lambda x: x * x.argmax(2, keepdim=True) + x * x.argmax(),
    "logsumexp": lambda x: x.logsumexp(3) + x.logsumexp((1, 2, 3), keepdim=True)[..., 0],
    "any and all": lambda x: x * (x > 0).any(2, keepdim=True) * (x > -9).all() / (x > 0).sum(),
    "prod": lambda x: x[:, :, :2].prod(2),
    "median": lambda x: x.median(3)[0] + x.kthvalue(2, 3)[0],
    # Positions and orders.
    "positions of columns": lambda x: x * torch.arange(x.shape[3], dtype=x.dtype),
    "positions of samples": lambda x: x * torch.arange(x.shape[0], dtype=x.dtype).view(-1, 1, 1, 1),
    "coordinates": coordinates,
    "triangle": lambda x: x.tril() + x * torch.ones(x.shape[2], x.shape[3], dtype=x.dtype).triu(),
    "cumsum": lambda x: x.cumsum(3) + x.cumsum(0) + x.cumsum(1),
    "cumprod": lambda x: (1 + 0.1 * x).cumprod(2),
    "sort": lambda x: x.sort(3)[0] + x.sort(1)[0] + x.sort(0)[0],
    "topk": lambda x: x.topk(2, dim=3)[0].sum(3, keepdim=True) + x.topk(2, dim=1)[0].sum(1, keepdim=True),
    "roll": lambda x: x.roll(1, 3) * x + x.roll((1, -2), (2, 3)) + x.roll(1, 0) + x.roll(3),
    "flip": lambda x: x.flip(3) * x + x.flip(0) + x.flip((1, 2)),
    "diff": lambda x: x.diff(dim=3),
    # Indices.
    "index channels": lambda x: x[:, [0, 2, 0]],
    "index samples": lambda x: x[[0, 2, 2]],
    "index map": lambda x: x[:, :, [0, 2], [1, 3]] + x[[0, 1], :, :, [1, 3]].mean(),
    "index_select": lambda x: x.index_select(1, torch.tensor([1, 1, 0])),
    "gather": lambda x: x.gather(1, x.argmax(1, keepdim=True)) + x.gather(3, x.argmax(3, keepdim=True)),
    "gather fewer": lambda x: x.gather(1, torch.zeros(2, 1, 4, 3, dtype=torch.int64)),
    "scatter": lambda x: torch.zeros_like(x).scatter_add(1, torch.zeros(x.shape, dtype=torch.int64), x) * x,
    "index_add": lambda x: x.index_add(1, torch.tensor([0, 0, 1, 2]), x.sin()),
    "index_fill": lambda x: x.index_fill(1, torch.tensor([0]), 0.5) * x,
    "set channel": lambda x: with_slice(x, (ALL, 0), 0.5),
    "set rows": lambda x: with_slice(x, (ALL, ALL, slice(1, 3)), 2.0),
    "set by mask": lambda x: with_slice(x, x > 0.5, 0.25),
    "set by mask of channels": lambda x: with_slice(x, (x > 0)[:, :, 0, 0], 0.25),
    "set by mask and index": lambda x: with_slice(x, (ALL, torch.tensor([True, False, True, False]), 2), 0.25),
    "set by index": lambda x: with_slice(x, (ALL, [0, 3]), 2.0),
    "where": lambda x: torch.where(x > x.mean(), x, x.mean()) + x.masked_fill(x < 0, 0.3),
    # Products.
    "products of a map": lambda x: x @ x.mT + (x.mT @ x).mean(),
    "einsum over the map": lambda x: torch.einsum("nchw,ndhw->ncd", x, x.sin()),
    "einsum over channels": lambda x: torch.einsum("nchw,kc->nkhw", x, torch.ones(2, 4, dtype=x.dtype)),
    "samples by samples": lambda x: x.flatten(1) @ x.flatten(1).T,
    "solved": lambda x: torch.linalg.solve(x @ x.mT + 2 * torch.eye(x.shape[2], dtype=x.dtype), x),
    "factored": lambda x: torch.linalg.cholesky(x @ x.mT + torch.eye(x.shape[2], dtype=x.dtype)),
    "attention": lambda x: F.scaled_dot_product_attention(*[x.flatten(2).transpose(1, 2)[:, None]] * 3),
    # Blocks of size one that broadcast, in either order.
    "pooled to one pixel": lambda x: F.avg_pool2d(x, (x.shape[2], x.shape[3])) * x,
    "pooled to one row": lambda x: F.max_pool2d(x, (x.shape[2], 1)) + x,
    "unbatched pools": lambda x: F.max_pool2d(x[:, 0], 2) + F.avg_pool2d(x[:, 1], 2),
    "unbatched adaptive pool": lambda x: F.adaptive_avg_pool2d(x[:, 0], (4, 3)),
    # Resizing.
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, size=(11, 13), mode="bilinear", align_corners=True),
    "area": lambda x: F.interpolate(x, size=(5, 5), mode="area"),
    "grid_sample": lambda x: F.grid_sample(x, x.permute(0, 2, 3, 1)[..., :2].tanh(), align_corners=False),
    # Constants and copies.
    "constants": lambda x: x * torch.ones_like(x) + torch.full_like(x, 2.0) + x.new_full((1,), 3.0) + x.detach(),
    "tensor constant": lambda x: x * torch.tensor([1.0, 2, 3, 4], dtype=x.dtype).view(1, -1, 1, 1),
    "in place": lambda x: x.add(1).mul_(2).sub_(x),
    "division": lambda x: 1 / (2 + x.abs()) + torch.div(x, 2, rounding_mode="floor") + 2**x,
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str) -> None:
    check(After(SHAPES[name]), plans=PLANS[:2])


TRANSPOSED: list[dict[str, Any]] = [
    dict(kernel_size=3, stride=2, padding=1, output_padding=1), dict(kernel_size=2, stride=2),
    dict(kernel_size=2, stride=3),
    dict(kernel_size=3, padding=2, dilation=2), dict(kernel_size=3, stride=2, groups=2, bias=False),
]  # fmt: skip


@pytest.mark.parametrize("options", TRANSPOSED, ids=str)
def test_transposed_convolution(options: dict[str, Any]) -> None:
    check(After(nn.ConvTranspose2d(4, 2, **options)))


@pytest.mark.parametrize(
    "then, named",
    [
        (lambda x: x + torch.poisson(x.abs()), r"aten\.poisson"),
        (lambda x: torch.multinomial(x.detach().abs().flatten(1), 2) * x.mean(), r"aten\.multinomial"),
        (lambda x: x.contiguous().as_strided((2, 2), (1, 2)), r"aten\.as_strided"),
    ],
    ids=["poisson", "multinomial", "as_strided"],
)
def test_an_operator_that_cannot_be_gathered_is_refused_by_name(then: Any, named: str) -> None:
    graph = captured(After(then).double(), (images(5, 3, 9, 7), classes(5)), squares)
    with pytest.raises(UnsupportedOpError, match=named) as caught:
        partitioned(graph, "spatial", 2, 3)
    assert "\n" not in str(caught.value)


def test_fourier_transforms_gather() -> None:
    check(After(lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 2).abs()))
