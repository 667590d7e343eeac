"""meshemu.emulate against plain PyTorch: five steps of SGD with momentum, on models that nobody wrote for it.

Losses, last gradients, parameters and buffers are compared; models_under_test says relative to what.
"""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models_under_test import Loss, assert_close, call, classes, grid, images, largest
from subjects import SUBJECTS, gpt2, of_logits, pictures, text
from torch import Tensor, nn

import meshemu

STEPS = 5
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)


def plain_training(
    model: nn.Module, batch: tuple[Any, Any], loss_fn: Loss, make_optimizer: Callable[..., torch.optim.Optimizer] = sgd
) -> list[float]:
    optimizer = make_optimizer(model.parameters())
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_fn(call(model, batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def check(model: nn.Module, batch: tuple[Any, Any], plan: Any, rows: int, cols: int) -> meshemu.EmulationResult:
    plain, emulated = copy.deepcopy(model), copy.deepcopy(model)
    dtype = next(model.parameters()).dtype
    tolerance = TOLERANCE[dtype]
    losses = plain_training(plain, batch, of_logits)
    result = meshemu.emulate(
        emulated, batch, of_logits, optimizer=sgd, system=grid(rows, cols), plan=plan, steps=STEPS
    )
    assert losses[-1] != losses[0]
    for step, (got, wanted) in enumerate(zip(result.losses, losses, strict=True)):
        assert abs(got - wanted) <= tolerance * abs(wanted), f"loss of step {step}: {got} instead of {wanted}"
    gradients = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    assert set(result.gradients) == set(gradients)
    floor = 1e-3 * largest(gradients) if dtype == torch.float64 else largest(gradients)
    for name, gradient in gradients.items():
        assert_close(f"gradient of {name}", result.gradients[name], gradient, tolerance, floor)
    state, expected = emulated.state_dict(), plain.state_dict()
    floor = 1e-2 * largest(dict(plain.named_parameters()))
    for name, tensor in expected.items():
        assert_close(name, state[name], tensor, tolerance, floor)
    return result


CASES = [
    ("own resnet50", {"spatial": [3, 2]}, 3, 2, 3),  # windows that overlap over uneven blocks
    ("convnext", {"spatial": [3, 2]}, 3, 2, 3),  # windows side by side
    ("regnet", "spatial", 5, 5, 3),  # blocks that become empty; groups of channels
    ("own gpt", "data", 1, 5, 7),  # seven samples on five devices: two, two, one ...
]
"""What tests/test_plan_cells.py does not have: it lays every plan out on few devices."""


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def subject(name: str, n: int, dtype: torch.dtype) -> tuple[nn.Module, tuple[Any, Tensor]]:
    model, batch, _ = SUBJECTS[name].made(n, dtype)
    return model, batch


@pytest.mark.parametrize("name, plan, rows, cols, n", CASES, ids=lambda v: str(v))
def test_parity_in_fp64(name: str, plan: Any, rows: int, cols: int, n: int) -> None:
    check(*subject(name, n, torch.float64), plan, rows, cols)


@pytest.mark.parametrize("name, plan", [("own regnet", "spatial")])
def test_parity_in_fp32(name: str, plan: str) -> None:
    check(*subject(name, 6, torch.float32), plan, 2, 2)


def test_maps_smaller_than_the_grid() -> None:
    """Blocks become empty: a map of 3 x 3 over 5 x 5 devices leaves 16 of them without work."""
    model, _ = subject("resnet", 1, torch.float64)
    result = check(model, pictures(17)(3), "spatial", 5, 5)
    values = [v for i in result.prepared.spmd.instructions for v in getattr(i, "outputs", ())]
    assert any(v.shape[2:] == (3, 3) and len(v.layout.splits) == 2 for v in values)


def test_a_dict_batch_with_the_loss_of_the_model() -> None:
    """Which transformers computes in fp32, whatever the model's format is."""
    torch.manual_seed(0)
    model, tokens = gpt2(dropout=0.0).double().train(), text(7)(5)[0]
    plain = copy.deepcopy(model)
    expected = plain(input_ids=tokens, labels=tokens).loss
    expected.backward()
    result = meshemu.emulate(model, {"input_ids": tokens, "labels": tokens}, system=grid(2, 2), plan="data")
    assert abs(result.losses[0] - float(expected.detach())) <= 1e-6 * float(expected.detach())
    for name, parameter in plain.named_parameters():
        assert_close(name, result.gradients[name], parameter.grad, 1e-6, 1e-3)


def test_adam() -> None:
    """SGD and AdamW are in the table of plans."""
    model, batch = subject("own gpt", 6, torch.float64)
    plain = copy.deepcopy(model)
    losses = plain_training(plain, batch, of_logits, lambda p: torch.optim.Adam(p, lr=1e-2))
    result = meshemu.emulate(
        model, batch, of_logits, optimizer=lambda p: torch.optim.Adam(p, lr=1e-2), system=grid(2, 2), steps=STEPS
    )
    torch.testing.assert_close(result.losses, losses, rtol=1e-8, atol=0)
    assert losses[-1] < losses[0]


def test_a_batch_per_step() -> None:
    """Step i trains on batch i, as a loop over a loader would."""
    model, _ = subject("own regnet", 3, torch.float64)
    plain = copy.deepcopy(model)
    batches = [(images(4, 3, 21, 21, seed=s), classes(4, n=4, seed=s)) for s in range(3)]
    optimizer, losses = sgd(plain.parameters()), []
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss = of_logits(plain(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    result = meshemu.emulate(
        model, lambda step: batches[step], of_logits, optimizer=sgd, system=grid(2, 2), plan="spatial", steps=3
    )
    torch.testing.assert_close(result.losses, losses, rtol=1e-10, atol=0)
