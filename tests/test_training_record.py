"""What the file and the results tell of a training run: terms of the loss, held-out scores, rates, norms."""

import copy
from math import isnan
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import xarray as xr
from models_under_test import classes, grid, images
from shared_captures import Captures
from small_run import MINE, config_text, written
from torch import Tensor, nn
from torch.nn import functional as F

import meshemu
from meshemu.analysis import report
from meshemu.config import load
from meshemu.errors import CaptureError, InputError, RecordError
from meshemu.execute.evaluation import held_out
from meshemu.record.schema import COLUMNS, LOSS_NAMES, columns_of
from meshemu.runtime.local import run_ranks

SYSTEM = grid(2, 2)
BATCH = images(8, 6), classes(8)
STEPS = 3
CAPTURES = Captures()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 5)).double()


def terms(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    return {"task": F.cross_entropy(outputs, targets), "size": 0.1 * outputs.square().mean()}


def told(outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss of its own beside what is only told: a term without a gradient, and a count."""
    right = (outputs.argmax(1) == targets).sum()
    return sum(terms(outputs, targets).values()), {"task": terms(outputs, targets)["task"].detach(), "right": right}


def two_groups(parameters: Any) -> torch.optim.Optimizer:
    first, *others = parameters
    return torch.optim.SGD([{"params": [first], "lr": 0.2}, {"params": others}], lr=0.1, momentum=0.9)


def plain(model: nn.Module, loss_fn: Any, parts: int = 1) -> tuple[list[float], list[dict[str, float]], list[float]]:
    """(losses, terms, gradient norms) of gradient accumulation in plain PyTorch."""
    optimizer = two_groups(model.parameters())
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    losses, by_name, norms = [], [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        total, names = 0.0, dict[str, float]()
        for x, y in zip(BATCH[0].chunk(parts), BATCH[1].chunk(parts), strict=True):
            returned = loss_fn(model(x), y)
            loss, found = returned if isinstance(returned, tuple) else (sum(returned.values()), returned)
            (loss / parts).backward()
            total += float(loss.detach()) / parts
            names = {name: names.get(name, 0.0) + float(term.detach()) / parts for name, term in found.items()}
        norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])))
        losses.append(total)
        by_name.append(names)
        optimizer.step()
        schedule.step()
    return losses, by_name, norms


def emulated(path: Path, loss_fn: Any, comm: Any = None, model: nn.Module | None = None, **options: Any) -> Any:
    with CAPTURES.of(loss_fn):
        return meshemu.emulate(
            network() if model is None else model, BATCH, loss_fn, optimizer=two_groups,
            schedule={"name": "exponential", "gamma": 0.5}, system=SYSTEM, steps=STEPS, output=path, comm=comm,
            **options,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("plan", "micro_batches"),
    [("data", 1), ("data", 2), ({"pipeline": 2, "data": 2, "micro_batches": 2}, 1), ({"tensor": 4}, 1)],
    ids=str,
)
@pytest.mark.parametrize("loss_fn", [terms, told])
def test_every_step_is_recorded_as_plain_pytorch_computes_it(
    loss_fn: Any, plan: Any, micro_batches: int, tmp_path: Path
) -> None:
    parts = plan.get("micro_batches", micro_batches) if isinstance(plan, dict) else micro_batches
    losses, by_name, norms = plain(network(), loss_fn, parts)
    result = emulated(tmp_path / "run.h5", loss_fn, plan=plan, micro_batches=micro_batches)
    steps = meshemu.open(tmp_path / "run.h5").steps
    np.testing.assert_allclose(steps["loss"], losses, rtol=1e-10)
    np.testing.assert_allclose(steps["gradient_norm"], norms, rtol=1e-10)
    for name in by_name[0]:
        np.testing.assert_allclose(steps[f"loss_{name}"], [step[name] for step in by_name], rtol=1e-10)
        assert steps[f"loss_{name}"].tolist() == result.losses_by_name[name]
    assert [c for c in steps.columns if c.startswith("loss_")] == [f"loss_{name}" for name in by_name[0]]
    assert steps["learning_rate_0"].tolist() == pytest.approx([0.2, 0.1, 0.05])
    assert steps["learning_rate_1"].tolist() == pytest.approx([0.1, 0.05, 0.025])
    assert steps[["held_out_loss", "accuracy"]].isna().all().all()
    assert result.gradient_norms == steps["gradient_norm"].tolist()


def test_any_number_of_ranks_records_the_same(tmp_path: Path) -> None:
    models = [network() for _ in range(3)]
    emulated(tmp_path / "alone.h5", told, plan="data")
    run_ranks(3, lambda comm: emulated(tmp_path / "three.h5", told, comm, models[comm.rank], plan="data").path)
    assert meshemu.compare(tmp_path / "alone.h5", tmp_path / "three.h5") is None
    meshemu.retime(tmp_path / "alone.h5", [], tmp_path / "again.h5")
    assert meshemu.compare(tmp_path / "alone.h5", tmp_path / "again.h5") is None


def test_a_norm_that_is_only_recorded_takes_no_time(tmp_path: Path) -> None:
    """It is computed beside the emulated machine; clipping, which a step needs, is on it."""
    free, clipped = (emulated(tmp_path / f"{c}.h5", terms, plan="data", clip_norm=c) for c in (None, float("inf")))
    assert free.gradient_norms == pytest.approx(clipped.gradient_norms, rel=1e-12)
    labels = [{r.program.labels[i] for i in r.program.label} for r in (free, clipped)]
    assert [any("norm" in label for label in found) for found in labels] == [False, True]


def test_the_file_reads_well_in_xarray_and_in_the_report(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    result = emulated(path, terms, plan="data")
    with xr.open_dataset(path, group="/results/steps", engine="h5netcdf") as steps:
        assert steps.loss_name.values.tolist() == ["task", "size"]
        assert steps.loss_by_name.sel(loss_name="size").values.tolist() == result.losses_by_name["size"]
        assert steps.learning_rate.sel(parameter_group=1).values.tolist() == [r for _, r in result.learning_rates]
        for name in ("loss_by_name", "held_out_loss", "learning_rate", "gradient_norm"):
            assert steps[name].attrs["units"] == "1" and steps[name].attrs["long_name"]
    lines = {" ".join(line.split()) for line in report.render(meshemu.open(path)).splitlines()}
    first, last = (result.losses_by_name["size"][i] for i in (0, -1))
    assert f"size {first:.6g} {last:.6g}" in lines
    assert f"norm of gradients {result.gradient_norms[0]:.6g} {result.gradient_norms[-1]:.6g}" in lines
    assert "learning rate 0.2, 0.1 0.05, 0.025" in lines
    assert not any("held out" in line for line in lines)


def test_what_was_not_computed_is_no_number(tmp_path: Path) -> None:
    result = emulated(tmp_path / "timed.h5", terms, plan="data", execute=False)
    steps = meshemu.open(tmp_path / "timed.h5").steps
    names = ["loss", "loss_task", "loss_size", "gradient_norm", "learning_rate_0", "learning_rate_1", "held_out_loss"]
    assert steps[names].isna().all().all() and len(steps) == STEPS
    assert all(isnan(norm) for norm in result.gradient_norms) and result.losses_by_name == {}
    meshemu.emulate(network(), BATCH, F.cross_entropy, system=SYSTEM, output=tmp_path / "still.h5")
    steps = meshemu.open(tmp_path / "still.h5").steps
    assert steps["learning_rate"].isna().all() and steps[["loss", "gradient_norm"]].notna().all().all()
    assert not [c for c in steps.columns if c.startswith("loss_")]


def test_a_run_that_goes_on_records_where_it_is() -> None:
    """Optimizer and schedule as they were left: rates, norms and losses are those of one long run."""

    def training(model: nn.Module) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = two_groups(model.parameters())
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)

    def steps(model: nn.Module, optimizer: Any, schedule: Any, n: int) -> Any:
        with CAPTURES.of(terms):
            return meshemu.emulate(
                model, BATCH, terms, optimizer=optimizer, schedule=schedule, clip_norm=0.5, system=SYSTEM, steps=n
            )

    model = network()
    whole = steps(model, *training(model), 4)
    first = network()
    begun = steps(first, *training(first), 2)
    state, second = begun.state_dict(), network()
    optimizer, schedule = training(second)
    second.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    carried_on = steps(second, optimizer, schedule, 2)
    assert begun.learning_rates + carried_on.learning_rates == whole.learning_rates
    assert len(set(whole.learning_rates)) == 4
    assert begun.gradient_norms + carried_on.gradient_norms == whole.gradient_norms
    for name, losses in whole.losses_by_name.items():
        assert begun.losses_by_name[name] + carried_on.losses_by_name[name] == losses


CONFIG = config_text(
    """
steps = 3
loss = "model"
evaluate_every = 2
optimizer = { name = "sgd", lr = 0.1 }
""",
    model='build = "mine.py:model"\ndtype = "fp64"',
)
HEADS = MINE + """
class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.left, self.right = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 2)
        self.noise = nn.Dropout(0.5)
    def forward(self, x):
        x = self.noise(torch.tanh(self.trunk(x)))
        return {"left": self.left(x), "right": self.right(x)}
    def loss(self, outputs, targets):
        return {
            "left": F.cross_entropy(outputs["left"], targets["left"]),
            "right": 0.5 * F.mse_loss(outputs["right"], targets["right"]),
        }

def model():
    return drawn(Heads())

classes = data

def data():
    x, left, _, _ = classes()
    y = {"left": left, "right": x[:, 3:5]}
    return x, y, x[:20], {name: t[:20] for name, t in y.items()}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path, CONFIG, HEADS)


def test_a_model_with_several_heads_is_judged_on_held_out_data_by_each(folder: Path) -> None:
    """20 held-out samples in batches of 8, 8 and 4; the mean is that over all of them."""
    config = load(folder / "run.toml")
    result = meshemu.run(config, folder / "run.h5", save=folder / "state.pt")
    run = meshemu.open(folder / "run.h5")
    namespace: dict[str, Any] = {}
    exec(HEADS, namespace)
    model = namespace["model"]().double()
    model.load_state_dict(torch.load(folder / "state.pt", weights_only=True)["model"])
    _, _, x, targets = namespace["data"]()
    with torch.no_grad():
        expected = model.loss(model.eval()(x.double()), {"left": targets["left"], "right": targets["right"].double()})
    assert sorted(result.held_out) == [1, 2] and result.accuracies == {}
    last = run.steps.iloc[-1]
    for name, value in expected.items():
        assert last[f"held_out_loss_{name}"] == result.held_out[2].losses[name] == pytest.approx(float(value))
    assert last["held_out_loss"] == pytest.approx(float(sum(expected.values())))
    assert run.steps["held_out_loss"].isna().tolist() == [True, False, False]
    totals = run.steps["loss_left"] + run.steps["loss_right"]
    np.testing.assert_allclose(run.steps["loss"], totals, rtol=1e-12)
    assert "loss, held out" in report.render(run)
    shared = run_ranks(2, lambda comm: meshemu.run(config, folder / "two.h5", comm=comm).held_out)
    assert shared[0] == shared[1] == result.held_out
    assert meshemu.compare(folder / "run.h5", folder / "two.h5") is None


def test_a_fault_in_the_held_out_data_ends_every_rank(folder: Path) -> None:
    term = 'F.cross_entropy(outputs["left"], targets["left"])'
    assert term in HEADS
    bad = HEADS.replace(term, f'{term} if self.training else outputs["left"]')
    (folder / "mine.py").write_text(bad)
    with pytest.raises(CaptureError, match="loss 'left' must be a tensor of one element, not a tensor of shape"):
        run_ranks(2, lambda comm: meshemu.run(load(folder / "run.toml"), folder / "run.h5", comm=comm).path)


def test_scores_are_weighed_by_samples() -> None:
    model, loss = network(), F.cross_entropy
    scores = held_out(model, [(BATCH[0][:5], BATCH[1][:5]), (BATCH[0][5:], BATCH[1][5:])], loss, torch.float64)
    assert scores.loss == pytest.approx(float(loss(model(BATCH[0]), BATCH[1]).detach()), rel=1e-12)
    assert scores.accuracy is None and scores.losses == {}


def test_terms_that_change_from_step_to_step_are_refused() -> None:
    from meshemu.emulator.training_loop import History
    from meshemu.execute.training import StepOutcome

    history = History()
    history.add(StepOutcome(1.0, "", {}, {"a": 1.0}), None)
    with pytest.raises(InputError, match="loss: its terms in step 1 are a, b, before they were a"):
        history.add(StepOutcome(1.0, "", {}, {"a": 1.0, "b": 0.0}), None)


def test_evaluate_takes_the_loss_of_training() -> None:
    model = network()
    metrics = meshemu.evaluate(model, BATCH, told, system=SYSTEM).metrics
    total, names = told(model(BATCH[0]), BATCH[1])
    assert list(metrics) == ["metric", "task", "right"]
    assert float(metrics["metric"]) == pytest.approx(float(total.detach()), rel=1e-12)
    assert int(metrics["right"]) == int(names["right"])


def test_a_file_of_the_first_layout_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.h5"
    emulated(path, terms, plan="data")
    losses = meshemu.open(path).steps["loss"].tolist()
    later = [column.path for column in COLUMNS if column.since > 1]
    with h5py.File(path, "r+") as file:
        for name in [*later, LOSS_NAMES, "/results/steps/parameter_group"]:
            del file[name]
        del file.attrs["head_crc32"]
        file.attrs["schema_version"] = 1
    run = meshemu.open(path)
    assert run.steps["loss"].tolist() == losses and run.loss_names == ()
    assert run.steps[["learning_rate", "gradient_norm", "held_out_loss"]].isna().all().all()
    assert "norm of gradients" not in report.render(run)
    meshemu.retime(path, [], tmp_path / "new.h5")
    assert meshemu.open(tmp_path / "new.h5").steps["loss"].tolist() == losses
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = 2
    with pytest.raises(RecordError, match="gradient_norm is missing"):
        meshemu.open(path)


def test_files_differ_in_the_names_of_their_losses(tmp_path: Path) -> None:
    for name in ("a", "b"):
        emulated(tmp_path / f"{name}.h5", lambda o, t, n=name: {n: F.cross_entropy(o, t)}, plan="data")
    difference = meshemu.compare(tmp_path / "a.h5", tmp_path / "b.h5")
    assert str(difference) == "/results/steps/loss_name differs: ['a'] and ['b']"
    torch.manual_seed(1)
    other = nn.Sequential(*network()[:-1], nn.Linear(8, 5).double())
    emulated(tmp_path / "c.h5", lambda o, t: {"a": F.cross_entropy(o, t)}, model=other, plan="data")
    difference = meshemu.compare(tmp_path / "a.h5", tmp_path / "c.h5")
    assert difference is not None and difference.path == "/results/steps/loss" and difference.index == (0,)


def test_the_columns_of_a_step_are_those_of_the_schema(tmp_path: Path) -> None:
    emulated(tmp_path / "run.h5", terms, plan="data")
    records = meshemu.open(tmp_path / "run.h5").training()
    names = {column.name for column in columns_of("/results/steps")}
    assert set(vars(records[0])) <= names
    assert copy.copy(records[1]) == records[1] and records[1].loss_by_name.keys() == {"task", "size"}
