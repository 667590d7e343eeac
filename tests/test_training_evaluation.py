"""Steps of evaluation: forward only, in evaluation mode, equal to plain PyTorch, and timed."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models_under_test import assert_close, classes, grid, images
from shared_captures import Captures
from torch import Tensor, nn
from torch.nn import functional as F

import meshemu
from meshemu.errors import CaptureError, InputError
from meshemu.execute.evaluation import held_out
from meshemu.program.ir import OpKind
from meshemu.runtime.local import run_ranks

CAPTURES = Captures()
TILE = meshemu.System.preset("dojo-tile")


def network() -> nn.Module:
    """Statistics to use and not to update, noise to leave out, and a part that stays in evaluation mode."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(6, 6, 3, stride=2),
        nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5),
    ).double()  # fmt: skip
    for _ in range(3):
        model(images(8, 3, 12, 12, seed=7) * 2 + 1)
    model[5].eval()
    return model


BATCH = images(8, 3, 13, 12), classes(8)


def metrics(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    predicted = outputs.argmax(1)
    return {
        "loss": F.cross_entropy(outputs, targets), "right": (predicted == targets).sum(), "predicted": predicted,
        "share": (predicted == targets).double().mean(), "chances": outputs.softmax(1), "targets": targets,
    }  # fmt: skip


def plain(model: nn.Module, batch: tuple[Any, Any] = BATCH) -> Tensor:
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        return model(batch[0])  # type: ignore[no-any-return]


@pytest.mark.parametrize("plan", ["data", "spatial", {"data": 1}, {"shard": 4}], ids=str)
def test_metrics_equal_plain_pytorch(plan: Any) -> None:
    model = network()
    before = copy.deepcopy(model)
    expected = metrics(plain(model), BATCH[1])
    with CAPTURES.of(metrics):
        result = meshemu.evaluate(model, BATCH, metrics, system=grid(2, 4), plan=plan)
    assert list(result.metrics) == list(expected)
    for name, wanted in expected.items():
        if wanted.is_floating_point():
            assert_close(name, result.metrics[name], wanted, 1e-10)
        else:
            assert torch.equal(result.metrics[name], wanted), name
        assert not result.metrics[name].requires_grad
    for (name, tensor), was in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(tensor, was), name
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert model.training
    assert not model[5].training  # type: ignore[index]
    assert all(p.grad is None for p in model.parameters())


def test_it_costs_a_forward_and_no_more() -> None:
    model = network().float()
    batch = BATCH[0].float(), BATCH[1]
    evaluated = meshemu.evaluate(model, batch, F.cross_entropy, system=TILE, plan={"data": 8}, execute=False)
    trained = meshemu.emulate(
        model, batch, F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), system=TILE, plan={"data": 8},
        execute=False,
    )  # fmt: skip
    assert evaluated.metrics == {}
    assert 0 < evaluated.time_ps < trained.time_ps / 2
    assert not any("backward" in name or name == "sgd" for name in evaluated.program.op_classes)
    labels = [evaluated.program.labels[i] for i in evaluated.program.label[evaluated.program.kind == OpKind.SEND]]
    assert labels
    assert not any("1:" in label for label in labels), "batch norm sends nothing in evaluation mode"
    assert evaluated.timing.end_ps == evaluated.time_ps
    peaks = (evaluated.prepared.timed.peak_memory_bytes.max(), trained.prepared.timed.peak_memory_bytes.max())
    assert peaks[0] < peaks[1]


def test_the_same_on_any_number_of_ranks() -> None:
    def run(comm: Any) -> Any:
        with CAPTURES.of(metrics):
            result = meshemu.evaluate(models[comm.rank], BATCH, metrics, system=grid(2, 3), plan="spatial", comm=comm)
        return result.metrics, result.time_ps

    models = [network() for _ in range(4)]
    ((alone, time_ps),) = run_ranks(1, run)
    for n_ranks in (2, 4):
        for found, found_ps in run_ranks(n_ranks, run):
            assert found_ps == time_ps
            assert all(torch.equal(found[name], tensor) for name, tensor in alone.items())


def test_without_a_metric_the_outputs_come_back() -> None:
    model = network()
    result = meshemu.evaluate(model, BATCH, system=grid(2, 2), plan="data")
    assert_close("outputs", result.metrics["metric"], plain(model), 1e-10)
    result = meshemu.evaluate(model, BATCH, lambda o, t: (o.mean(), t), system=grid(2, 2), plan="data")
    assert list(result.metrics) == ["0", "1"]
    assert torch.equal(result.metrics["1"], BATCH[1])


class Named(nn.Module):
    """Keyword arguments in, a mapping out."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 5).double()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        y = self.inner(x)
        return {"loss": F.cross_entropy(y, labels), "logits": y}


def test_a_dict_batch() -> None:
    model, batch = Named(), {"x": images(4, 6), "labels": classes(4)}
    expected = model(**batch)
    result = meshemu.evaluate(model, batch, system=grid(2, 2))
    assert_close("loss", result.metrics["loss"], expected["loss"].detach(), 1e-12)
    assert_close("logits", result.metrics["logits"], expected["logits"].detach(), 1e-12)
    result = meshemu.evaluate(
        model, batch, lambda o, b: (o["logits"].argmax(1) == b["labels"]).sum(), system=grid(2, 2)
    )
    assert int(result.metrics["metric"]) == int((expected["logits"].argmax(1) == batch["labels"]).sum())


def test_a_model_with_nothing_to_train_can_be_evaluated() -> None:
    model = network().requires_grad_(False)
    result = meshemu.evaluate(model, BATCH, F.cross_entropy, system=grid(2, 2))
    assert_close("loss", result.metrics["metric"], F.cross_entropy(plain(model), BATCH[1]), 1e-10)


def test_autocast_is_that_of_plain_pytorch() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 5))
    x = images(4, 6).float()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        expected = model(x)
    result = meshemu.evaluate(
        model, (x, classes(4)), system=grid(1, 2), plan={"data": 1}, autocast=torch.bfloat16
    )
    assert torch.equal(result.metrics["metric"], expected)
    assert expected.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("batch", "metric", "error", "said"),
    [
        (BATCH, lambda o, t: 3.0, CaptureError, "metric 'metric' must be a tensor, not float"),
        (BATCH, lambda o, t: {"a": o.mean().item()}, CaptureError, "metric 'a' must be a tensor, not float"),
        (BATCH, lambda o, t: [], CaptureError, "an empty list holds no metric"),
        (BATCH[0], F.cross_entropy, InputError, r"batch must be \(inputs, targets\) or a dict"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(batch: Any, metric: Callable[..., Any], error: Any, said: str) -> None:
    model = network()
    with pytest.raises(error, match=said):
        meshemu.evaluate(model, batch, metric, system=grid(2, 2))
    assert model.training, "the mode is restored after a failure too"
    assert not model[5].training  # type: ignore[index]


def test_held_out_accuracy_restores_every_module() -> None:
    model = network()
    modes = [m.training for m in model.modules()]
    scores = held_out(model, [BATCH], F.cross_entropy, torch.float64, classes=True)
    assert scores.accuracy == float((plain(model).argmax(1) == BATCH[1]).double().mean())
    assert [m.training for m in model.modules()] == modes
