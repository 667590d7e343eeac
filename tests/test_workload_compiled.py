"""What torch.compile was applied to is captured as what it was made from."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models_under_test import classes, grid, images
from torch import Tensor, nn
from torch.nn import functional as F

import meshemu
from meshemu.runtime.local import run_ranks

compiled: Callable[..., Any] = torch.compile(backend="eager")


class Branching(nn.Module):
    """Takes the way that its values say."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y * 2 if y.sum() > 0 else y * 3


def of_a_part() -> nn.Module:
    model = Branching()
    model.body[0] = compiled(model.body[0])
    return model


def in_place() -> nn.Module:
    model = Branching()
    model.compile(backend="eager")
    return model


def by_a_function() -> nn.Module:
    model = Branching()
    model.forward = compiled(model.forward)  # type: ignore[method-assign]
    return model


WAYS: list[Callable[[], nn.Module]] = [lambda: compiled(Branching()), of_a_part, in_place, by_a_function]
IDS = ["model", "part", "in place", "function"]


def made(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def trained(model: nn.Module, comm: Any = None) -> tuple[list[float], list[list[float]], int]:
    result = meshemu.emulate(
        model, (images(6, 6).float(), classes(6)), F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        system=grid(2, 3), plan={"data": 3, "tensor": 2}, steps=3, comm=comm,
    )  # fmt: skip
    return result.losses, [t.flatten().tolist() for t in model.state_dict().values()], result.time_ps


@pytest.mark.parametrize("make", WAYS, ids=IDS)
def test_a_compiled_model_is_trained_as_the_plain_one(make: Callable[[], nn.Module]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trained(made(make)) == trained(made(Branching))


def test_threads_capture_a_compiled_model() -> None:
    """One thread may decide on values while another traces."""
    models = [made(in_place) for _ in range(3)]
    alone = trained(models[2])
    assert run_ranks(2, lambda comm: trained(models[comm.rank], comm)) == [alone] * 2


def test_a_compiled_model_is_evaluated() -> None:
    torch.manual_seed(0)
    model = Branching()
    batch = images(6, 6).float(), classes(6)
    plain = meshemu.evaluate(model, batch, F.cross_entropy, system=grid(2, 3), plan="data")
    again = meshemu.evaluate(compiled(model), batch, F.cross_entropy, system=grid(2, 3), plan="data")
    assert again.metrics["metric"] == plain.metrics["metric"]
    assert again.time_ps == plain.time_ps
