"""State in and out: files that plain PyTorch reads, and models that start from such files."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from models_under_test import classes, grid, images
from small_run import MINE, config_text, written
from torch import nn
from torch.nn import functional as F

import meshemu
from meshemu import cli
from meshemu.config import load
from meshemu.errors import InputError
from meshemu.execute.state import load_model, save_state
from meshemu.runtime.launch import detect_launch
from meshemu.runtime.local import run_ranks

CONFIG = config_text(
    """
steps = 5
loss = "mine.py:loss"
clip_norm = 0.5
evaluate_every = 5
[training.optimizer]
name = "adamw"
lr = 0.01
groups = [{ match = "*.bias", weight_decay = 0.0 }]
[training.schedule]
name = "cosine"
warmup_steps = 2
""",
    model='build = "mine.py:model"\nautocast = "bf16"',
)
MODEL = """
def model(width=16):
    return drawn(nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.GELU(), nn.Linear(width, 3)))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path, CONFIG, MINE + MODEL)


def model(width: int = 16) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.GELU(), nn.Linear(width, 3))


def test_what_a_run_saves_is_read_by_plain_pytorch_and_by_another_run(folder: Path) -> None:
    config = load(folder / "run.toml")
    result = meshemu.run(config, folder / "a.h5", save=folder / "a.pt")
    rates = [rate for rate, _ in result.history.learning_rates]
    assert rates[:3] == pytest.approx([0.01 / 3, 0.02 / 3, 0.01])
    assert rates[2] > rates[3] > rates[4] > 0
    assert len(result.history.gradient_norms) == 5

    state = torch.load(folder / "a.pt", weights_only=True)
    assert set(state) == {"model", "optimizer", "schedule"}
    plain = model()
    plain.load_state_dict(state["model"])
    biases = [p for name, p in plain.named_parameters() if name.endswith("bias")]
    others = [p for name, p in plain.named_parameters() if not name.endswith("bias")]
    optimizer = torch.optim.AdamW([{"params": biases, "weight_decay": 0.0}, {"params": others}], lr=0.01)
    optimizer.load_state_dict(state["optimizer"])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.01]
    assert all(int(s["step"]) == 5 for s in optimizer.state.values())
    x, y = images(8, 6).float(), classes(8, n=3)
    F.cross_entropy(plain(x), y).backward()
    optimizer.step()

    again = load(folder / "run.toml", ["model.load=a.pt", "training.optimizer={name='sgd', lr=0.0}"])
    carried_on = meshemu.run(again, folder / "b.h5", save=folder / "b.pt")
    assert carried_on.accuracies[4] == pytest.approx(result.accuracies[4], abs=0.2)
    kept, start = torch.load(folder / "b.pt", weights_only=True)["model"], state["model"]
    assert all(torch.equal(kept[name], start[name]) for name in start if "running" not in name and "num" not in name)
    assert int(kept["1.num_batches_tracked"]) == 10
    assert not list(folder.glob("*.unfinished"))


def test_the_file_is_the_same_on_any_number_of_ranks(folder: Path) -> None:
    config = load(folder / "run.toml")
    states = []
    for n_ranks in (1, 3):
        file = folder / f"{n_ranks}.pt"
        run_ranks(n_ranks, lambda comm: meshemu.run(config, file.with_suffix(".h5"), save=file, comm=comm).path)  # noqa: B023
        states.append(torch.load(file, weights_only=True))
    assert meshemu.compare(folder / "1.h5", folder / "3.h5") is None
    assert all(torch.equal(states[1]["model"][name], t) for name, t in states[0]["model"].items())
    for a, b in zip(states[0]["optimizer"]["state"].values(), states[1]["optimizer"]["state"].values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert states[0]["schedule"] == states[1]["schedule"]


def test_the_state_of_an_emulation_is_a_copy() -> None:
    net = model()
    result = meshemu.emulate(
        net, (images(4, 6).float(), classes(4, n=3)), F.cross_entropy, system=grid(2, 2), schedule="cosine",
        optimizer=lambda p: torch.optim.Adam(p), steps=2,
    )  # fmt: skip
    state = result.state_dict()
    assert set(state) == {"model", "optimizer", "schedule", "step"}
    kept = copy.deepcopy(state)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(state["model"][name], kept["model"][name]) for name in kept["model"])
    assert not torch.equal(net.state_dict()["0.weight"], state["model"]["0.weight"])
    bare = meshemu.emulate(net, (images(4, 6).float(), classes(4, n=3)), F.cross_entropy, system=grid(2, 2))
    assert set(bare.state_dict()) == {"model", "step"}


def test_a_tied_parameter_stays_one_in_the_file(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    net[1].weight = net[0].weight
    save_state(tmp_path / "a.pt", {"model": net.state_dict()})
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[0].weight.zero_()
    load_model(other, tmp_path / "a.pt")
    assert other[1].weight is other[0].weight
    assert torch.equal(other[0].weight, net[0].weight)


class Owner(nn.Module):
    """A parameter with the name that the file of a run gives to the model's part."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Parameter(torch.ones(2))


def test_a_plain_state_dict_loads_too(tmp_path: Path) -> None:
    start, net = model(), model().to(torch.bfloat16)
    torch.save(start.state_dict(), tmp_path / "plain.pt")
    load_model(net, tmp_path / "plain.pt")
    assert torch.equal(net[0].weight, start[0].weight.to(torch.bfloat16))  # type: ignore[operator]
    torch.save({"model": torch.zeros(2)}, tmp_path / "owner.pt")
    owner = Owner()
    load_model(owner, tmp_path / "owner.pt")
    assert owner.model.tolist() == [0, 0]


def lacking(state: dict[str, Any]) -> Any:
    return {name: t for name, t in state.items() if not name.startswith("1.")}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lacking, r"lacks 1.weight, 1.bias, 1.running_mean and 2 more$"),
        (lambda s: s | {"extra": torch.zeros(1)}, r"has, and the model has not, extra$"),
        (lambda s: s | {"0.bias": torch.zeros(3)}, r"0.bias is of shape \(3,\), that of the model of shape \(16,\)$"),
        (lambda s: s | {"0.bias": 3}, r"0.bias is int, that of the model of shape \(16,\)$"),
        (lambda s: [1, 2], r"holds a list, not the state dict of a model$"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_in_one_line(change: Any, said: str, folder: Path) -> None:
    torch.save(change(dict(model().state_dict())), folder / "bad.pt")
    with pytest.raises(InputError, match=said) as caught:
        meshemu.run(load(folder / "run.toml", ["model.load=bad.pt"]), folder / "a.h5")
    assert str(folder / "bad.pt") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (folder / "a.h5").exists()


def test_a_file_that_holds_no_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no.pt: cannot be read: No such file"):
        load_model(model(), tmp_path / "no.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(InputError, match=r"text.pt: is no file of tensors"):
        load_model(model(), tmp_path / "text.pt")
    torch.save(model(), tmp_path / "module.pt")  # a whole module runs code when it is read
    with pytest.raises(InputError, match=r"module.pt: is no file of tensors"):
        load_model(model(), tmp_path / "module.pt")


@pytest.mark.parametrize(
    ("save", "options", "said"),
    [
        ("nowhere/a.pt", {}, "there is no folder .*nowhere"),
        (".", {}, "is a folder"),
        ("taken.pt", {}, "exists"),
        ("a.pt", {"execute": False}, "nothing is trained without execution"),
    ],
)
def test_a_file_that_could_not_be_saved_is_refused_at_the_start(
    save: str, options: dict[str, Any], said: str, folder: Path
) -> None:
    (folder / "taken.pt").write_text("something else")
    with pytest.raises(InputError, match=said):
        meshemu.run(load(folder / "run.toml"), folder / "a.h5", save=folder / save, **options)
    assert not (folder / "a.h5").exists()
    assert (folder / "taken.pt").read_text() == "something else"


def test_the_command_saves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    arguments = cli.parse_arguments(["run", "run.toml", "--steps", "1", "--save", "a.pt"])
    assert arguments.command(arguments, detect_launch({})) == 0
    assert (folder / "run.h5").exists()
    assert set(torch.load(folder / "a.pt", weights_only=True)["model"]) == set(model().state_dict())
