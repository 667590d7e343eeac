"""Numbers of a batch that choose a class or a row that there is not, and operators that fail on values."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models_under_test import grid
from small_run import config_text, written
from torch import nn
from torch.nn import functional as F

import meshemu
from meshemu import cli
from meshemu.runtime.failure import guard
from meshemu.runtime.launch import detect_launch
from meshemu.runtime.local import run_ranks
from meshemu.workload.index_limits import check_indices
from meshemu.workload.spmd import IndexLimit

PLANS: list[Any] = [{"data": 2}, {"data": 4}, {"tensor": 2}, {"pipeline": 2, "micro_batches": 2}]


class Words(nn.Module):
    """Tokens [n, 3] of which some are left out, to 4 classes."""

    def __init__(self, first: int = 0) -> None:
        super().__init__()
        self.first = first
        self.table = nn.Embedding(10, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(tokens[:, self.first :] if self.first else tokens).mean(1))  # type: ignore[no-any-return]


def batch_of(token: int = 9, target: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight samples, of which the sixth has that token and that target."""
    tokens, targets = torch.arange(24).reshape(8, 3) % 10, torch.arange(8) % 4
    tokens[5, 2], targets[5] = token, target
    return tokens, targets


def run(model: nn.Module, batch: Any, loss: Callable[..., Any] = F.cross_entropy, **options: Any) -> Any:
    return meshemu.emulate(model, batch, loss, system=grid(2, 2), **({"plan": {"data": 2}} | options))


WRONG = {
    "class": ({"target": 4}, "4 in sample 5 is none of the 4 classes of the loss, 0 to 3 (-100 is ignored)"),
    "negative class": ({"target": -1}, "-1 in sample 5 is none of the 4 classes of the loss"),
    "row": ({"token": 10}, "10 in sample 5 is none of the 10 rows of table.weight, 0 to 9"),
    "negative row": ({"token": -1}, "-1 in sample 5 is none of the 10 rows of table.weight, 0 to 9"),
}


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("name", WRONG)
def test_what_a_batch_may_not_hold(name: str, plan: Any, tmp_path: Path) -> None:
    """It is said before the step, on every rank alike; nothing is left behind."""
    change, said = WRONG[name]

    def refused(comm: Any) -> str:
        with pytest.raises(meshemu.InputError) as error:
            run(Words(), batch_of(**change), plan=plan, comm=comm, output=tmp_path / "out.h5")
        return str(error.value)

    for n_ranks in (1, 2, 3, 4):
        for line in run_ranks(n_ranks, refused):
            assert line.startswith("batch of step 0: ") and said in line
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize("name", WRONG)
def test_in_a_later_step_and_in_evaluation(name: str) -> None:
    change, said = WRONG[name]
    with pytest.raises(meshemu.InputError, match="batch of step 2: ") as error:
        run(Words(), lambda step: batch_of(**change) if step == 2 else batch_of(), steps=4)
    assert said in str(error.value)
    with pytest.raises(meshemu.InputError) as error:
        meshemu.evaluate(Words(), batch_of(**change), F.cross_entropy, system=grid(2, 2), plan="data")
    assert said in str(error.value)


def test_what_it_may_hold() -> None:
    for target, loss in ((-100, F.cross_entropy), (77, lambda y, t: F.cross_entropy(y, t, ignore_index=77))):
        assert run(Words(), batch_of(target=target), loss).losses[0] > 0
    probabilities = batch_of()[0], torch.eye(4)[batch_of()[1]] * 5  # nobody chooses by these
    assert run(Words(), probabilities).losses[0] > 0
    late = batch_of()[0].clone()
    late[3, 0] = 10**6
    assert run(Words(first=1), (late, batch_of()[1])).losses[0] > 0  # it is cut off before it chooses


@pytest.mark.parametrize(("given", "fits"), [(torch.tensor([-0.5, 3.9]), True), (torch.tensor([4, 0]), False)])
def test_numbers_that_are_made_integers_of_the_batch(given: torch.Tensor, fits: bool) -> None:
    """Fractions are cut off before they choose, so they are none of what is looked at; a wider integer is."""
    targets = given.to(torch.int16 if not given.is_floating_point() else torch.float32).repeat(4)

    def loss(y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(y, t.long())

    if fits:
        assert run(Words(), (batch_of()[0], targets), loss).losses[0] > 0
        return
    with pytest.raises(meshemu.InputError, match="batch of step 0: 4 in sample 0 is none of the 4 classes"):
        run(Words(), (batch_of()[0], targets), loss)


def test_maps_and_sequences() -> None:
    """Classes are dim 1 of what the loss gets, whatever the shape of the targets."""
    maps = torch.zeros(4, 5, 6, dtype=torch.long)
    maps[2, 4, 5] = 3
    with pytest.raises(meshemu.InputError, match="3 in sample 2 is none of the 3 classes of the loss, 0 to 2"):
        run(nn.Conv2d(2, 3, 1), (torch.ones(4, 2, 5, 6), maps))
    text = batch_of()[0].clone()

    def language(y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(y.flatten(0, 1), t.flatten())

    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 7))
    with pytest.raises(meshemu.InputError, match="7 in sample 2 is none of the 7 classes of the loss"):
        run(model, (text, text), language)


def test_the_first_of_several_limits() -> None:
    limits = (IndexLimit(0, 5, None, "rows of a"), IndexLimit(1, 3, -100, "classes"))
    with pytest.raises(meshemu.InputError, match="here: 3 in the batch is none of the 3 classes, 0 to 2"):
        check_indices(limits, [torch.tensor([4]), torch.tensor(3)], "here")
    check_indices(limits, [torch.tensor([4]), torch.tensor(-100)], "here")
    check_indices((), [torch.tensor([4])], "here")


class Solved(nn.Module):
    """x solved by itself: singular where it is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.linalg.solve(x, torch.ones_like(x))[:, 0])  # type: ignore[no-any-return]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_an_operator_that_fails_on_values_is_named(plan: Any) -> None:
    """With the step and what torch says of it, as plain PyTorch would fail too: no number comes out in its place."""
    x = torch.eye(3).repeat(8, 1, 1)
    assert run(Solved(), (x, batch_of()[1]), plan=plan).losses[0] > 0
    with pytest.raises(meshemu.InputError, match=r"step 0: .*_linalg_check_errors.*: _LinAlgError: .* is singular"):
        run(Solved(), (x * torch.tensor([1.0, 1, 1, 1, 1, 0, 1, 1])[:, None, None], batch_of()[1]), plan=plan)
    late = batch_of(token=10)
    with pytest.raises(meshemu.InputError, match=r"step 0: table:embedding.*: IndexError: index out of range"):
        run(Words(first=1), late, plan=plan)


MINE = """
import torch
from torch import nn

def words():
    return nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 4))

def data(where="", target=3):
    parts = [torch.arange(24).reshape(8, 3) % 10, torch.arange(8) % 4, torch.arange(6).reshape(2, 3), torch.arange(2)]
    if where:
        parts[1 if where == "train" else 3][1] = target
    return tuple(parts)
"""


@pytest.mark.parametrize("where", ["train", "test"])
def test_from_a_configuration(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Held-out samples are looked at too, before the first step: exit code 2, one line, no file."""
    monkeypatch.chdir(tmp_path)
    training = 'steps = 1\noptimizer = { name = "sgd", lr = 0.1 }'
    model = 'build = "mine.py:words"'
    written(tmp_path, config_text(training, plan="{ data = 2 }", model=model, batch_size=4), MINE)
    launch = detect_launch({})

    def code(**args: Any) -> int:
        given = ", ".join(f"{name}={value!r}" for name, value in args.items())
        words = ["run", "run.toml", "--set", f"data={{build='mine.py:data', args={{{given}}}, batch_size=4}}"]
        arguments = cli.parse_arguments(words)
        return guard(lambda: arguments.command(arguments, launch), launch)

    assert code(where=where, target=4) == 2
    sys.stderr.flush()
    (line,) = capfd.readouterr().err.splitlines()
    assert line == (
        f"meshemu: error: data: {where}: 4 in sample 1 is none of the 4 classes of the loss, 0 to 3 (-100 is ignored)"
    )
    assert not (tmp_path / "run.h5").exists()
    assert code(where=where, target=0) == 0
