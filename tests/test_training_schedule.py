"""Learning-rate schedules: those of torch, warmed up, tried out before the run, stepped once a step."""

import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models_under_test import classes, grid, images
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

import meshemu
from meshemu.config import SCHEDULE_NAMES
from meshemu.errors import InputError
from meshemu.execute.schedule import learning_rates, make_schedule

STEPS = 10


def optimizer(n_groups: int = 1) -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.zeros(2))], "lr": 0.1 * (i + 1)} for i in range(n_groups)]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


@pytest.fixture(autouse=True)
def strict() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def rates(options: dict[str, Any], n_groups: int = 1) -> list[list[float]]:
    return learning_rates(make_schedule(optimizer(n_groups), options, STEPS), STEPS)


Maker = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]
SAME: dict[str, tuple[dict[str, Any], Maker]] = {
    "constant": ({}, lambda o: lr_scheduler.ConstantLR(o, 1.0)),
    "linear": ({}, lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, STEPS)),
    "cosine": ({"eta_min": 0.01}, lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, 0.01)),
    "step": ({"step_size": 3, "gamma": 0.5}, lambda o: lr_scheduler.StepLR(o, 3, 0.5)),
    "multi_step": ({"milestones": [2, 7]}, lambda o: lr_scheduler.MultiStepLR(o, [2, 7])),
    "exponential": ({"gamma": 0.9}, lambda o: lr_scheduler.ExponentialLR(o, 0.9)),
    "polynomial": ({"power": 2.0}, lambda o: lr_scheduler.PolynomialLR(o, STEPS, 2.0)),
    "cosine_restarts": ({"T_0": 3, "T_mult": 2}, lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2)),
    "one_cycle": ({"max_lr": 0.4}, lambda o: lr_scheduler.OneCycleLR(o, 0.4, STEPS)),
    "cyclic": ({"base_lr": 0.1, "max_lr": 0.4, "step_size_up": 4}, lambda o: lr_scheduler.CyclicLR(o, 0.1, 0.4, 4)),
}


def test_every_name_is_tried() -> None:
    assert tuple(sorted(SAME)) == tuple(sorted(SCHEDULE_NAMES))


@pytest.mark.parametrize("name", SAME)
def test_schedules_are_those_of_torch_with_the_length_of_the_run(name: str) -> None:
    options, make = SAME[name]
    expected = learning_rates(make(optimizer(2)), STEPS)
    assert rates({"name": name, **options}, 2) == expected
    assert len(expected) == STEPS


@pytest.mark.parametrize("name", [name for name in SAME if name not in ("one_cycle", "cyclic")])
def test_warm_up_rises_evenly_and_the_schedule_then_starts_at_its_beginning(name: str) -> None:
    options, _ = SAME[name]
    length = {"linear": "total_iters", "cosine": "T_max", "polynomial": "total_iters"}.get(name)
    lasting = {length: STEPS - 4} if length else {}
    found = rates({"name": name, "warmup_steps": 4, **options}, 2)
    after = rates({"name": name, **options, **lasting}, 2)[: STEPS - 4]
    for group, base in enumerate((0.1, 0.2)):
        torch.testing.assert_close([r[group] for r in found[:4]], [base * k / 5 for k in (1, 2, 3, 4)])
        torch.testing.assert_close([r[group] for r in found[4:]], [r[group] for r in after], rtol=1e-9, atol=1e-12)


def test_a_warm_up_that_is_longer_than_the_run() -> None:
    torch.testing.assert_close([r for (r,) in rates({"name": "cosine", "warmup_steps": 99})], [
        0.1 * k / 100 for k in range(1, STEPS + 1)
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "sine"}, "training.schedule.name = 'sine' is not one of constant, linear, cosine"),
        ({"name": "step"}, "training.schedule.step_size is missing"),
        ({"name": "step", "step_size": 2.5}, "training.schedule.step_size = 2.5: should be a whole number"),
        ({"name": "step", "step_size": 0}, "training.schedule: there is no learning rate for step 1: integer modulo"),
        ({"name": "step", "step_size": 3, "gamma": -1}, "training.schedule: the learning rate of step 3 would be -0.1"),
        ({"name": "exponential", "gamma": 1e200}, "training.schedule: the learning rate of step 2 would be inf"),
        ({"name": "cosine", "Tmax": 3}, "training.schedule.Tmax: unknown key, did you mean 'T_max'?"),
        ({"name": "cosine", "warmup_steps": 1.5}, "training.schedule.warmup_steps = 1.5: should be a whole number"),
        ({"name": "multi_step", "milestones": [1.5]}, "training.schedule.milestones = (1.5,): should be a list of who"),
        ({"name": "linear", "start_factor": 0.0}, "training.schedule.start_factor = 0.0: Starting multiplicative"),
        ({"name": "one_cycle"}, "training.schedule.max_lr is missing"),
        ({"name": "one_cycle", "max_lr": 1, "warmup_steps": 2}, "warmup_steps = 2: one_cycle has a warm-up of its own"),
        ({"name": "one_cycle", "max_lr": 1, "total_steps": 5}, "there is no learning rate for step 6: Tried to step 6"),
        ({"name": "one_cycle", "max_lr": 1, "epochs": 5}, "training.schedule.epochs: unknown key"),
        ({"name": "one_cycle", "max_lr": [1, 2]}, "training.schedule.max_lr = (1, 2): max_lr must have"),
        ({"name": "one_cycle", "max_lr": 1, "anneal_strategy": "x"}, "training.schedule.anneal_strategy = 'x': anneal"),
        ({"name": "constant", "factor": 0.5}, "training.schedule.factor: unknown key, valid are none"),
    ],
)
def test_what_is_wrong_is_named_before_the_run(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        rates(options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_trying_out_leaves_the_optimizer_as_it_was() -> None:
    bound = optimizer(2)
    make_schedule(bound, {"name": "cosine"}, STEPS)
    assert [group["lr"] for group in bound.param_groups] == [0.1, 0.2]
    assert bound.state == {}
    rate = torch.tensor(0.1)  # which schedules fill in place
    make_schedule(torch.optim.Adam([nn.Parameter(torch.zeros(2))], lr=rate), {"name": "linear"}, STEPS)
    assert float(rate) == pytest.approx(0.1)


def emulated(schedule: Any, **options: Any) -> meshemu.EmulationResult:
    torch.manual_seed(0)
    model = nn.Linear(6, 5).double()
    make = options.pop("optimizer", lambda p: torch.optim.SGD(p, lr=0.1))
    return meshemu.emulate(
        model, (images(4, 6), classes(4)), F.cross_entropy, optimizer=make, schedule=schedule, system=grid(2, 2),
        steps=6, **options,
    )  # fmt: skip


def plain(make: Maker) -> tuple[list[float], list[float], nn.Module]:
    torch.manual_seed(0)
    model = nn.Linear(6, 5).double()
    bound = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = make(bound)
    losses, used = [], []
    for _ in range(6):
        bound.zero_grad()
        loss = F.cross_entropy(model(images(4, 6)), classes(4))
        loss.backward()
        used.append(bound.param_groups[0]["lr"])
        bound.step()
        if isinstance(schedule, lr_scheduler.ReduceLROnPlateau):
            schedule.step(float(loss.detach()))
        else:
            schedule.step()
        losses.append(float(loss.detach()))
    return losses, used, model


@pytest.mark.parametrize("way", ["name", "table", "function", "ready made", "plateau"])
def test_training_under_a_schedule_equals_plain_pytorch(way: str) -> None:
    def cosine(o: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        return lr_scheduler.CosineAnnealingLR(o, 6)

    def plateau(o: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        return lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=0.5)

    losses, used, model = plain(plateau if way == "plateau" else cosine)
    if way == "ready made":
        torch.manual_seed(0)
        mine = nn.Linear(6, 5).double()
        bound = torch.optim.SGD(mine.parameters(), lr=0.1)
        result = meshemu.emulate(
            mine, (images(4, 6), classes(4)), F.cross_entropy, optimizer=bound, schedule=cosine(bound),
            system=grid(2, 2), steps=6,
        )  # fmt: skip
    else:
        given = {"name": "cosine", "table": {"name": "cosine", "T_max": 6}, "function": cosine, "plateau": plateau}
        result = emulated(given[way])
    assert [rate for (rate,) in result.learning_rates] == used
    assert len(set(used)) > 1
    torch.testing.assert_close(result.losses, losses, rtol=1e-10, atol=0)
    torch.testing.assert_close(result.model.state_dict(), model.state_dict(), rtol=1e-9, atol=1e-12)


def test_a_schedule_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="schedule: there is no optimizer whose learning rate"):
        emulated("cosine", optimizer=None)
    with pytest.raises(InputError, match="schedule: it belongs to another optimizer"):
        emulated(lr_scheduler.ConstantLR(optimizer()))
    with pytest.raises(InputError, match=r"schedule: int is no torch.optim.lr_scheduler.LRScheduler"):
        emulated(lambda _optimizer: 3)
    with pytest.raises(InputError, match=r"schedule: .*step_size"):
        emulated(lambda o: lr_scheduler.StepLR(o))


@pytest.mark.parametrize("name", SAME)
def test_its_state_is_read_back_by_plain_pytorch(name: str) -> None:
    options, make = SAME[name]
    scheduler = make_schedule(optimizer(), {"name": name, **options}, STEPS)
    for _ in range(3):
        scheduler.optimizer.step()
        scheduler.step()
    file = io.BytesIO()
    torch.save(scheduler.state_dict(), file)
    file.seek(0)
    other = make(optimizer())
    other.load_state_dict(torch.load(file, weights_only=True))
    assert (other.last_epoch, other.get_last_lr()) == (3, scheduler.get_last_lr())
