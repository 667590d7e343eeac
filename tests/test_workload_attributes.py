"""Tensors that a model keeps in plain attributes: caches are allowed, state that steps would forget is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models_under_test import classes, grid, images
from torch import Tensor, nn
from torch.nn import functional as F

import meshemu

BATCH = images(8, 6).float(), classes(8)


class Keeps(nn.Module):
    """Counts its calls in a tensor and takes another way after two of them, or keeps what it computes."""

    def __init__(self, keep: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.head = nn.Linear(6, 5)
        self.calls = torch.zeros(())
        self.table: Tensor | None = None
        self.last = torch.zeros(8, 5)
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(x)
        return y * 2 if self.keep(self, y) else y


def trained(model: nn.Module, **options: Any) -> Any:
    return meshemu.emulate(
        model, BATCH, F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), system=grid(2, 2), steps=4,
        **({"plan": "data"} | options),
    )  # fmt: skip


def replaced(model: Any, _y: Tensor) -> Any:
    model.calls = model.calls + 1
    return model.calls > 2


def listed(model: Any, _y: Tensor) -> Any:
    model.calls = torch.tensor(model.calls.tolist() + 1)
    return model.calls > 2


def updated(model: Any, _y: Tensor) -> Any:
    model.calls += 1
    return model.calls > 2


def of_data(model: Any, y: Tensor) -> Any:
    model.calls = model.calls + y.detach().mean()
    return False


@pytest.mark.parametrize("keep", [replaced, listed, updated, of_data])
def test_state_that_a_step_would_forget_is_refused(keep: Callable[[Any, Tensor], Any]) -> None:
    torch.manual_seed(0)
    with pytest.raises(meshemu.InputError, match=r"the step changes (calls|a tensor of shape \(\), in aten\.add_)"):
        trained(Keeps(keep))


def cached(model: Any, _y: Tensor) -> Any:
    if model.table is None:
        model.table = torch.arange(5.0)
    return bool((model.table >= 0).all())


def shown(model: Any, y: Tensor) -> Any:
    model.last = y
    model.newest = y * 2
    return False


@pytest.mark.parametrize("keep", [cached, shown])
def test_what_a_step_leaves_and_does_not_read_stays_out_of_the_model(keep: Callable[[Any, Tensor], Any]) -> None:
    torch.manual_seed(0)
    model = Keeps(keep)
    before = model.last
    with torch.no_grad():
        logits = F.linear(BATCH[0], model.head.weight, model.head.bias) * (2 if keep is cached else 1)
        loss = float(F.cross_entropy(logits, BATCH[1]))
    assert trained(model).losses[0] == pytest.approx(loss, rel=1e-6)
    assert model.last is before and model.table is None and not hasattr(model, "newest")
    assert model(BATCH[0]).isfinite().all()
