"""Models whose path depends on values train as in plain PyTorch, on any plan and any number of ranks."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models_under_test import assert_close, classes, grid, images
from torch import Tensor, nn
from torch.nn import functional as F

import meshemu
from meshemu.emulator.recaptured import PreparedSteps
from meshemu.errors import CaptureError, DataDependentError, InputError, UnsupportedOpError
from meshemu.record.reader import open_run
from meshemu.runtime.local import run_ranks

STEPS = 3
Batches = Callable[[int], Any]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


class Layers(nn.Module):
    """Two linear layers with something between them that asks for values."""

    def __init__(self, between: Callable[[Tensor], Tensor], n_in: int = 6) -> None:
        super().__init__()
        self.first = nn.Linear(n_in, 6)
        self.last = nn.Linear(6, 5)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


def early_exit(x: Tensor) -> Tensor:
    for _ in range(3):
        if x.abs().mean() > 0.45:
            return x
        x = 1.5 * x
    return x.sin()


def halting(x: Tensor) -> Tensor:
    """Adaptive computation: rows halt one by one, and the loop ends with the last."""
    running = torch.ones(len(x), dtype=torch.bool)
    rounds = 0
    while running.any():
        x = torch.where(running[:, None], 0.7 * x.tanh(), x)
        running = running & (x.abs().amax(dim=1) > 0.2)
        rounds += 1
    return x / rounds


class Experts(nn.Module):
    """Top-2 of four experts; the gate is such that some get no token."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 4)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.last = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = (6 * self.gate(x)).softmax(-1).topk(2)
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == e)
            if token.numel() == 0:
                continue
            y = y.index_add(0, token, expert(x[token]) * weights[token, slot, None])
        return self.last(y)


class Running(nn.Module):
    """Statistics that are updated in one branch only, and a layer that some steps do not use."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.often, self.seldom = nn.Linear(6, 5), nn.Linear(6, 5)
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("peak", torch.zeros(6, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:
            self.count += 1
            self.peak = torch.maximum(self.peak, x.detach().amax(0))
            return self.often(self.norm(x))
        return self.seldom(x)


class Words(nn.Module):
    """A masked language model whose head sees masked positions only."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11)

    def forward(self, tokens: Tensor, masked: Tensor) -> Tensor:
        x = self.words(tokens.masked_fill(masked, 10))
        x = x + self.mix(x).tanh().mean(dim=1, keepdim=True)
        return self.head(x[masked])


class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.deep = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        while x.std() < 1:
            x = 2 * self.deep(x)
        return self.last(x.mean(dim=(2, 3)))


def numbers(step: int) -> Any:
    shift = 1.5 if step % 2 else -0.5
    return images(8, 6, seed=step) + shift, classes(8, seed=step)


def pictures(step: int) -> Any:
    return images(2, 1, 9, 10, seed=step), classes(2, seed=step)


def sentences(step: int) -> Any:
    tokens = classes(4, 6, n=10, seed=step)
    masked = torch.rand(4, 6, generator=torch.Generator().manual_seed(step)) < 0.3
    return {"tokens": tokens, "masked": masked}


def words_loss(logits: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(logits, batch["tokens"][batch["masked"]])


def guarded(logits: Tensor, targets: Tensor) -> Tensor:
    loss = F.cross_entropy(logits / (targets[0] != 3).double(), targets)
    return loss if torch.isfinite(loss) else 0.1 * torch.nan_to_num(logits, posinf=0.0, neginf=0.0).square().mean()


def parts(x: Tensor) -> Tensor:
    """Sizes from counts, in Python and in operators; rows by masks, read and written."""
    sign = (x[:, 0] > 0).long()
    sizes = torch.bincount(sign, minlength=2).tolist()
    ordered = torch.cat(torch.split(x[sign.argsort(stable=True)], sizes)[::-1])
    y = x.clone()
    y[x > 0.3] = 2 * x[x > 0.3]
    kinds = torch.unique((4 * x).round(), return_inverse=True)[1].double().mean()
    repeated = torch.repeat_interleave(x, sign + 1, dim=0).mean(0)
    return y + ordered + kinds + repeated + x.masked_select(x > 0).mean() + F.one_hot(sign).double().mean()


def differentiable_twice(x: Tensor) -> Tensor:
    return x * Clipped.apply(x)


class Clipped(torch.autograd.Function):
    """A backward pass that asks for a value itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        gradient = gradient * x.cos()
        return 0.5 * gradient if gradient.abs().max() > 0.05 else gradient


SUBJECTS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor], Batches, Any]] = {
    "early exit": (lambda: Layers(early_exit), F.cross_entropy, numbers, "data"),
    "halting": (lambda: Layers(halting), F.cross_entropy, numbers, {"shard": 4}),
    "experts": (Experts, F.cross_entropy, numbers, "data"),
    "experts in parts": (Experts, F.cross_entropy, lambda _step: numbers(0), {"data": 2, "tensor": 2}),
    "statistics": (Running, F.cross_entropy, numbers, {"shard": 4, "zero": 1}),
    "masked words": (Words, words_loss, sentences, {"data": 2, "tensor": 2}),
    "guard": (lambda: nn.Linear(6, 5), guarded, numbers, "data"),
    "sizes": (lambda: Layers(parts), F.cross_entropy, numbers, "data"),
    "backward": (lambda: Layers(differentiable_twice), F.cross_entropy, numbers, "data"),
    "pictures": (Pictures, F.cross_entropy, pictures, "spatial"),
}


def built(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(4)
    return make().double()


def emulated(name: str, model: nn.Module, **others: Any) -> meshemu.EmulationResult:
    _, loss, batches, plan = SUBJECTS[name]
    return meshemu.emulate(
        model, batches, loss, optimizer=sgd, system=grid(2, 2), steps=STEPS, **{"plan": plan, **others}
    )


def trained_plainly(model: nn.Module, loss_fn: Callable[..., Tensor], batches: Batches) -> list[float]:
    optimizer, losses = sgd(model.parameters()), []
    for step in range(STEPS):
        batch = batches(step)
        optimizer.zero_grad()
        output = model(**batch) if isinstance(batch, dict) else model(batch[0])
        loss = loss_fn(output, batch if isinstance(batch, dict) else batch[1])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def assert_same_state(got: nn.Module, wanted: nn.Module, tolerance: float = 1e-10) -> None:
    for name, tensor in wanted.state_dict().items():
        assert_close(name, got.state_dict()[name], tensor, tolerance, floor=1e-3)


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_model_that_decides_on_values_trains_as_in_plain_pytorch(name: str) -> None:
    make, loss, batches, _ = SUBJECTS[name]
    model = built(make)
    plain = copy.deepcopy(model)
    result = emulated(name, model)
    assert isinstance(result.prepared, PreparedSteps)
    for got, wanted in zip(result.losses, trained_plainly(plain, loss, batches), strict=True):
        assert got == pytest.approx(wanted, rel=1e-10)
    assert_same_state(model, plain)


def test_what_a_step_does_not_use_has_no_gradient_and_is_not_updated() -> None:
    model = built(Running)
    before = copy.deepcopy(model)
    result = meshemu.emulate(
        model, numbers, F.cross_entropy, optimizer=sgd, system=grid(1, 2), steps=1
    )
    assert set(result.gradients) == {"seldom.weight", "seldom.bias"}
    assert model.often.weight.grad is None
    torch.testing.assert_close(model.often.weight, before.often.weight, rtol=0, atol=0)
    assert int(model.count) == 0
    assert int(model.norm.num_batches_tracked) == 0


def sorted_rows(x: Tensor) -> Tensor:
    x = F.dropout(x, 0.3)
    return torch.cat([2 * x[x[:, 0] > 0], x[x[:, 0] <= 0]])


class Sorted(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(sorted_rows(x))


def test_any_number_of_ranks_gives_the_same_file(tmp_path: Any) -> None:
    def trained(n: int) -> Any:
        path = tmp_path / f"{n}.h5"
        model = built(lambda: Sorted(6, 5))
        models = [copy.deepcopy(model) for _ in range(n)]
        run_ranks(
            n,
            lambda comm: meshemu.emulate(
                models[comm.rank], lambda _step: numbers(0), F.cross_entropy, optimizer=sgd, system=grid(2, 2), steps=2,
                output=path, comm=comm,
            ),
        )  # fmt: skip
        return path

    assert meshemu.compare(trained(1), trained(3)) is None


class Random(nn.Module):
    """Dropout, noise, statistics and a mask: capture by shapes alone takes it, unless it also asks a question."""

    def __init__(self, asks: bool) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 5)
        self.asks = asks

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.norm(self.first(x)), 0.4)
        if self.asks and not x.isfinite().all():
            return self.last(x)
        return self.last(x.masked_fill(x > 1, 0.5) + torch.rand_like(x))


def test_a_model_that_captures_gives_the_same_bits_either_way() -> None:
    models = [built(lambda asks=asks: Random(asks)) for asks in (False, True)]
    results = [
        meshemu.emulate(model, numbers, F.cross_entropy, optimizer=sgd, system=grid(2, 2), steps=STEPS, seed=7)
        for model in models
    ]
    assert [isinstance(result.prepared, PreparedSteps) for result in results] == [False, True]
    assert results[0].losses == results[1].losses
    for name, tensor in models[0].state_dict().items():
        torch.testing.assert_close(models[1].state_dict()[name], tensor, rtol=0, atol=0)


class Draws(nn.Module):
    """The sum of random numbers minus the number that Python was told it is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        drawn = (
            F.dropout(x, 0.5), torch.rand_like(x), torch.randn(4, 3), torch.bernoulli(x.sigmoid()),
            x.clone().uniform_(-1, 2), x.clone().normal_(3.0), x.clone().exponential_(2.0), x.clone().bernoulli_(),
            torch.randint(2, 9, (5,)), torch.randperm(7)[:3], F.rrelu(x, training=True), torch.normal(x, 1.0),
        )  # fmt: skip
        return tuple(d.double().sum() - d.double().sum().item() for d in drawn)


def test_decisions_see_the_random_numbers_of_the_devices() -> None:
    result = meshemu.evaluate(Draws().double(), numbers(1), lambda outputs, _t: outputs, system=grid(2, 2), seed=5)
    assert len(result.metrics) == 12
    for name, difference in result.metrics.items():
        assert abs(float(difference)) < 1e-12, name


def test_every_step_has_its_own_time_and_the_file_says_so(tmp_path: Any) -> None:
    def deeper(x: Tensor) -> Tensor:
        for _ in range(0 if x.mean() > 0 else 4):
            x = (x - x.mean(0)).tanh()
        return x

    path = tmp_path / "run.h5"
    model = built(lambda: Layers(deeper))
    nn.init.constant_(model.first.bias, 0)
    nn.init.eye_(model.first.weight)
    meshemu.emulate(
        model, lambda step: (images(8, 6).abs() * (-1) ** step, classes(8)), F.cross_entropy, system=grid(1, 2),
        steps=4, output=path,
    )  # fmt: skip
    times = open_run(path).steps["time_ps"].tolist()
    assert times[0] == times[2] < times[1] == times[3]
    (remark,) = [text for text in open_run(path).assumptions if text.startswith("captured:")]
    assert "aten._local_scalar_dense.default" in remark
    meshemu.retime(path, ["system.link.bandwidth=1 GB/s"], tmp_path / "slow.h5")
    slow = open_run(tmp_path / "slow.h5")
    assert slow.n_steps == 1
    assert slow.steps["time_ps"].tolist()[0] > times[0]
    assert any(text.startswith("captured:") for text in slow.assumptions)


def through_numpy(x: Tensor) -> Tensor:
    return x if x.sum() > 1e9 else x + float(x.detach().numpy().sum())


def drawing(x: Tensor) -> Tensor:
    return x + torch.poisson(x.abs()) if x.sum() < 1e9 else x


def failing(x: Tensor) -> Tensor:
    if x.sum() < 1e9:
        raise ValueError("no\nsuch value")
    return x


def branching(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], dict[str, Any], type[Exception], str]] = {
    "only timed": (branching, {"execute": False}, DataDependentError, "without values it has no step to time"),
    "micro-batches": (branching, {"micro_batches": 2}, DataDependentError, "one graph must serve all micro-batches"),
    "strict": (sorted_rows, {"strict": True}, UnsupportedOpError, "operator aten.nonzero.default .* dim 0 over data"),
    "out of sight": (through_numpy, {}, CaptureError, "cannot be captured as one graph: .*numpy"),
    "no rule for chance": (drawing, {}, UnsupportedOpError, "operator aten.poisson.default"),
    "exception": (failing, {}, CaptureError, "Layers fails in step 0: ValueError: no such value"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    between, others, kind, said = REFUSED[name]
    with pytest.raises(kind, match=said) as caught:
        meshemu.emulate(
            built(lambda: Layers(between)), numbers, F.cross_entropy, optimizer=sgd, system=grid(1, 2), **others
        )
    assert isinstance(caught.value, InputError)
    assert "\n" not in str(caught.value)


def test_a_buffer_that_changes_its_shape_is_refused() -> None:
    class Growing(Running):
        def forward(self, x: Tensor) -> Tensor:
            self.peak = x.amax(1)
            return self.often(x)

    with pytest.raises(CaptureError, match=r"the buffer peak of shape \(8,\), it was of shape \(6,\)"):
        meshemu.emulate(built(Growing), numbers, F.cross_entropy, system=grid(1, 2))


CONFIG = """
plan = "data"
[system]
grid = { rows = 1, cols = 2, bandwidth = "50 GB/s", latency = "500 ns" }
[model]
build = "model.py:Branching"
dtype = "fp64"
[data]
name = "digits"
batch_size = 4
args = { image_size = 8 }
[training]
steps = 2
optimizer = { name = "sgd", lr = 0.1 }
"""
MODEL = """
import torch
from torch import nn
class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 10)
        for p in self.parameters():  # the same on ranks that are threads and share torch's generator
            p.data = torch.linspace(-1, 1, p.numel()).sin().reshape(p.shape)
    def forward(self, x):
        x = self.linear(x.mean(dim=(1, 2)))
        return x if x.sum() > 0 else x[x[:, 0] > -1e9].sin()
"""


def test_a_run_says_once_that_it_captures_every_step(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text(CONFIG)
    (tmp_path / "model.py").write_text(MODEL)
    run_ranks(2, lambda comm: meshemu.run("config.toml", "two.h5", comm=comm).path)
    assert capsys.readouterr().err.count("meshemu: captured: Branching cannot be captured as one graph") == 1
    meshemu.run("config.toml", "one.h5")
    assert meshemu.compare(tmp_path / "one.h5", tmp_path / "two.h5") is None
    with pytest.raises(DataDependentError, match="without values it has no step to time"):
        meshemu.run("config.toml", tmp_path / "no.h5", execute=False)
    assert not (tmp_path / "no.h5").exists()
