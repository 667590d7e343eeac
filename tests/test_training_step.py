"""What a real training step has beside a loss and an optimizer: autocast, several losses, frozen and tied weights."""

import copy
import warnings
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models_under_test import assert_close, classes, grid, images, largest
from torch import Tensor, nn
from torch.nn import functional as F

import meshemu
from meshemu.errors import CaptureError, InputError
from meshemu.program.ir import OpKind
from meshemu.runtime.local import run_ranks

STEPS = 4
SYSTEM = grid(2, 2)


@pytest.fixture(autouse=True)
def strict() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class Language(nn.Module):
    """The output layer is the embedding; `unused` takes no part, and `frozen` is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.norm = nn.LayerNorm(16)
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.full((16,), 0.5))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, tokens: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.norm(F.gelu(self.frozen(self.embedding(tokens) * self.scale))))


def pictures() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.SiLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


def of_tokens(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


SUBJECTS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, Tensor], Any]] = {
    "language": (Language, (classes(8, 5, n=11), classes(8, 5, n=11, seed=3)), of_tokens),
    "pictures": (pictures, (images(8, 3, 12, 12).float(), classes(8)), F.cross_entropy),
}


def subject(name: str) -> tuple[nn.Module, tuple[Tensor, Tensor], Any]:
    make, batch, loss_fn = SUBJECTS[name]
    torch.manual_seed(0)
    return make(), batch, loss_fn


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)


def plain_training(
    model: nn.Module, batch: tuple[Tensor, Tensor], loss_fn: Any, dtype: torch.dtype | None = None, steps: int = STEPS
) -> list[float]:
    optimizer = adamw([p for p in model.parameters() if p.requires_grad])
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            loss = loss_fn(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SUBJECTS)
def test_autocast_on_one_device_equals_plain_pytorch_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    """Batch norm is done by kernels of our own, so a model that has one is equal to rounding only."""
    model, batch, loss_fn = subject(name)
    plain = copy.deepcopy(model)
    losses = plain_training(plain, batch, loss_fn, dtype)
    result = meshemu.emulate(
        model, batch, loss_fn, optimizer=adamw, autocast=dtype, system=SYSTEM, plan={"data": 1}, steps=STEPS
    )
    exact = name == "language"
    torch.testing.assert_close(result.losses, losses, rtol=0 if exact else 1e-3, atol=0)
    for key, tensor in plain.state_dict().items():
        tolerance = 0.0 if exact else 2e-2
        torch.testing.assert_close(model.state_dict()[key], tensor, rtol=tolerance, atol=tolerance)
    assert {"fp32", "bf16" if dtype == torch.bfloat16 else "fp16"} <= set(result.program.number_formats)


@pytest.mark.parametrize(("name", "plan"), [("language", "data"), ("pictures", "data"), ("pictures", "spatial")])
def test_autocast_on_several_devices_is_as_close_as_bf16_allows(name: str, plan: str) -> None:
    """Gradients of one step, relative to each tensor's largest element: bf16 keeps 8 bits, eps = 2^-8 = 0.0039."""
    model, batch, loss_fn = subject(name)
    plain, exact = copy.deepcopy(model), copy.deepcopy(model)
    (loss,) = plain_training(plain, batch, loss_fn, torch.bfloat16, steps=1)
    plain_training(exact, batch, loss_fn, steps=1)
    result = meshemu.emulate(model, batch, loss_fn, autocast=torch.bfloat16, system=SYSTEM, plan=plan)
    assert result.losses[0] == pytest.approx(loss, rel=2**-8)
    gradients = {key: p.grad for key, p in plain.named_parameters() if p.grad is not None}
    assert set(result.gradients) == set(gradients)
    floor = largest(gradients)
    for key, gradient in gradients.items():
        assert_close(key, result.gradients[key], gradient, 2**-7, floor)
    rounding = max(float((p.grad - q.grad).abs().max()) for p, q in zip(
        plain.parameters(), exact.parameters(), strict=True) if p.grad is not None and q.grad is not None)  # fmt: skip
    assert rounding > 1e-5  # autocast did round


class Careful(Language):
    """Does one product in fp32, whatever autocast says."""

    def forward(self, tokens: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            x = self.frozen(self.embedding(tokens))
        return self.head(self.norm(x))


def test_the_autocast_context_of_the_caller_counts() -> None:
    """In capture, and in nothing else: the casts are in the graph, and so is their absence."""
    _, batch, loss_fn = subject("language")
    model = Careful()
    given, ambient, none = copy.deepcopy(model), copy.deepcopy(model), copy.deepcopy(model)
    options: dict[str, Any] = {"optimizer": adamw, "system": SYSTEM, "steps": 2}
    plain = copy.deepcopy(model)
    expected = meshemu.emulate(given, batch, loss_fn, autocast=torch.bfloat16, **options).losses
    torch.testing.assert_close(expected, plain_training(plain, batch, loss_fn, torch.bfloat16, 2), rtol=2**-8, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert meshemu.emulate(ambient, batch, loss_fn, **options).losses == expected
    assert meshemu.emulate(none, batch, loss_fn, **options).losses != expected
    assert all(torch.equal(a, b) for a, b in zip(given.parameters(), ambient.parameters(), strict=True))


def test_an_autocast_that_changes_nothing_is_refused() -> None:
    model, batch, loss_fn = subject("language")
    with pytest.raises(InputError, match=r"autocast = torch.float32: must be one of torch.bfloat16, torch.float16"):
        meshemu.emulate(model, batch, loss_fn, autocast=torch.float32, system=SYSTEM)
    with pytest.raises(InputError, match="Language has no fp32 parameter"):
        meshemu.emulate(model.double(), batch, loss_fn, autocast=torch.bfloat16, system=SYSTEM)


Terms = namedtuple("Terms", ["task", "entropy"])


def terms(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    chances = outputs.softmax(-1)
    entropy = -(chances * outputs.log_softmax(-1)).sum(-1).mean()
    return {"task": F.cross_entropy(outputs.flatten(0, -2), targets.flatten()), "entropy": -0.1 * entropy}


@pytest.mark.parametrize("kind", ["dict", "tuple", "named tuple", "list"])
@pytest.mark.parametrize("plan", ["data", {"data": 1}], ids=str)
def test_several_losses_are_summed_and_told_apart(kind: str, plan: Any) -> None:
    shapes: dict[str, Callable[[dict[str, Tensor]], Any]] = {
        "dict": dict, "tuple": lambda d: tuple(d.values()), "list": lambda d: list(d.values()),
        "named tuple": lambda d: Terms(**d),
    }  # fmt: skip
    names = ["task", "entropy"] if kind in ("dict", "named tuple") else ["0", "1"]
    model, batch, _ = subject("language")
    model.double()
    plain = copy.deepcopy(model)
    result = meshemu.emulate(
        model, batch, lambda o, t: shapes[kind](terms(o, t)), optimizer=adamw, system=SYSTEM, plan=plan, steps=STEPS
    )
    losses = plain_training(plain, batch, lambda o, t: sum(terms(o, t).values()))
    torch.testing.assert_close(result.losses, losses, rtol=1e-10, atol=0)
    assert list(result.losses_by_name) == names
    first, second = result.losses_by_name.values()
    assert len(first) == STEPS
    torch.testing.assert_close([a + b for a, b in zip(first, second, strict=True)], losses, rtol=1e-12, atol=0)
    assert first[0] != second[0]
    for (key, p), q in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert_close(key, q, p, 1e-9, 1e-3)


def test_one_loss_has_no_name() -> None:
    model, batch, loss_fn = subject("language")
    assert meshemu.emulate(model, batch, loss_fn, system=SYSTEM).losses_by_name == {}


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda y: {}, "an empty dict holds no loss"),
        (lambda y: {"a": y.mean(), "b": y.mean(1)}, r"loss 'b' must be a tensor of one element, not a tensor of shape"),
        (lambda y: (y.mean(), 3.0), "loss '1' must be a tensor of one element, not float"),
        (lambda y: {"a": y.detach().mean()}, "the loss does not depend differentiably"),
        (lambda y: None, "the loss must be a tensor of one element, not NoneType"),
    ],
)
def test_what_is_no_loss_is_refused(returned: Callable[[Tensor], Any], said: str) -> None:
    with pytest.raises(CaptureError, match=said):
        meshemu.emulate(nn.Linear(6, 5), (images(4, 6).float(), classes(4)), lambda y, t: returned(y), system=SYSTEM)


@pytest.mark.parametrize("plan", ["data", "shard"])
def test_frozen_tied_and_unused_parameters_and_buffers(plan: str) -> None:
    model, batch, loss_fn = subject("language")
    model.double()
    plain, before = copy.deepcopy(model), copy.deepcopy(model)
    losses = plain_training(plain, batch, loss_fn)
    result = meshemu.emulate(model, batch, loss_fn, optimizer=adamw, system=SYSTEM, plan=plan, steps=STEPS)
    torch.testing.assert_close(result.losses, losses, rtol=1e-10, atol=0)
    assert set(result.gradients) == {"embedding.weight", "norm.weight", "norm.bias"}
    for (key, p), q in zip(plain.state_dict().items(), model.state_dict().values(), strict=True):
        assert_close(key, q, p, 1e-9)
    assert model.head.weight is model.embedding.weight  # type: ignore[union-attr]
    for name in ("frozen", "unused"):
        for p, q in zip(getattr(before, name).parameters(), getattr(model, name).parameters(), strict=True):
            assert torch.equal(p, q)
    assert int(model.calls) == STEPS  # type: ignore[arg-type]
    assert torch.equal(model.scale, before.scale)


def test_a_frozen_trunk_in_evaluation_mode_keeps_its_statistics() -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        trunk = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()).requires_grad_(False)
        head = nn.Sequential(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
        model = nn.Sequential(trunk, head).double()
        trunk.eval()
        return model

    model, plain = build(), build()
    batch = images(4, 3, 8, 8), classes(4)
    losses = plain_training(plain, batch, F.cross_entropy)
    result = meshemu.emulate(
        model, batch, F.cross_entropy, optimizer=adamw, system=SYSTEM, plan="spatial", steps=STEPS
    )
    torch.testing.assert_close(result.losses, losses, rtol=1e-10, atol=0)
    assert all(name.startswith("1.") for name in result.gradients)
    for (key, p), q in zip(plain.state_dict().items(), model.state_dict().values(), strict=True):
        assert_close(key, q, p, 1e-9, 1e-3)
    assert not model[0][1].training  # type: ignore[index]


def test_statistics_that_are_fixed_need_no_other_device() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 5),
    )  # fmt: skip
    batch = images(4, 3, 8, 8).float(), classes(4)

    def labels() -> set[str]:
        program = meshemu.emulate(model, batch, F.cross_entropy, system=SYSTEM, plan="data", execute=False).program
        return {program.labels[i] for i in program.label[program.kind == OpKind.SEND]}

    assert any("batch_norm" in label for label in labels())
    model[1].eval()
    assert not any("batch_norm" in label for label in labels())


def test_all_of_it_together_is_the_same_on_any_number_of_ranks() -> None:
    def train(comm: Any) -> Any:
        model, batch, _ = models[0 if comm is None else comm.rank], *SUBJECTS["language"][1:]
        result = meshemu.emulate(
            model, batch, terms, optimizer=adamw, schedule={"name": "linear", "warmup_steps": 1}, clip_norm=0.5,
            autocast=torch.bfloat16, system=SYSTEM, plan="data", steps=3, comm=comm,
        )  # fmt: skip
        return result.losses_by_name, result.gradient_norms, result.learning_rates, result.time_ps, model.state_dict()

    models = [subject("language")[0] for _ in range(3)]
    *alone, state = train(None)
    models = [subject("language")[0] for _ in range(3)]
    for *figures, tensors in run_ranks(3, train):
        assert figures == alone
        assert all(torch.equal(tensors[key], tensor) for key, tensor in state.items())
