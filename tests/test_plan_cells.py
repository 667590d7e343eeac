"""Every plan and every family of models at least twice: training is that of plain PyTorch, bits and bytes are right.

The whole table is docs/plans.md, by scripts/plan_matrix.py.
"""

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import pytest
import torch
from models_under_test import Loss, Partitioned, captured, classes, images, partitioned
from plan_cells import PLANS, REGIMES, Cell, Trained, evaluate, greatest_error, plain
from subjects import SUBJECTS
from test_execute_bytes import moved, of_program
from torch import Tensor, nn
from torch.nn import functional as F

from meshemu.execute.hand_over import HandOver
from meshemu.runtime.local import run_ranks
from meshemu.workload.samples import first_samples

CELLS = [
    ("resnet", "spatial"), ("resnet", "zero 1"), ("regnet", "data x spatial"), ("regnet", "zero 2"),
    ("convnext", "data x spatial"), ("convnext", "tensor"), ("vit", "data x tensor"), ("vit", "zero 3"),
    ("gpt2", "pipeline"), ("gpt2", "pipeline x data"), ("llama", "data x zero 3 x tensor"), ("llama", "zero 2"),
    ("bert", "pipeline x zero 3 x tensor"), ("bert", "pipeline x data"), ("own regnet", "zero 2 x spatial x tensor"),
    ("own regnet", "spatial"), ("own resnet50", "pipeline"), ("own resnet50", "pipeline x zero 3 x tensor"),
    ("own gpt", "data"), ("own gpt", "zero 1"), ("own hydranet", "zero 3"),
    ("own hydranet", "data x zero 3 x tensor"), ("own occupancy", "data"), ("own occupancy", "zero 3"),
    ("plain vgg", "zero 2 x spatial x tensor"), ("plain vgg", "tensor"), ("plain mobilenet", "data x tensor"),
    ("plain mobilenet", "zero 2"), ("plain densenet", "zero 1"), ("plain densenet", "data x spatial"),
]  # fmt: skip
"""Both plans of a model pass micro-batches of one size, so that they share what is captured."""

IN_ALL_REGIMES = {("own gpt", "data"), ("plain densenet", "data x spatial"), ("gpt2", "pipeline x data")}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("model, plan", CELLS)
def test_training_is_that_of_plain_pytorch(model: str, plan: str) -> None:
    cell = evaluate(model, plan, REGIMES if (model, plan) in IN_ALL_REGIMES else ["fp64 with SGD"])
    assert not cell.refusal
    assert cell.size_bytes > 0
    assert cell.passed, cell.errors


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_fp32_of_plain_pytorch_is_within_the_tolerance_of_its_fp64(micro_batches: int) -> None:
    """Otherwise a cell in fp32 would be about a ReLU that rounding flips."""
    for name in SUBJECTS:
        narrow, wide = (plain(name, f"{dtype} with SGD", micro_batches) for dtype in ("fp32", "fp64"))
        widened = Trained(narrow.losses, *(_as(wide_part, part) for part, wide_part in (
            (narrow.gradients, wide.gradients), (narrow.state, wide.state),
        )))  # fmt: skip
        assert greatest_error(widened, wide, REGIMES["fp32 with SGD"].floor) <= REGIMES["fp32 with SGD"].tolerance, name


def _as(like: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(like[name].dtype) for name, tensor in tensors.items()}


def test_every_plan_and_every_model_is_there_twice() -> None:
    models, plans = (Counter(names) for names in zip(*CELLS, strict=True))
    assert models.keys() == SUBJECTS.keys() and min(models.values()) >= 2
    assert plans.keys() == PLANS.keys() and min(plans.values()) >= 2


def test_text_has_nothing_to_cut_by_rows_and_columns() -> None:
    assert evaluate("own gpt", "spatial") == Cell(refusal="no images")


def test_a_cell_fails_by_a_loss_a_gradient_or_a_parameter() -> None:
    one = Trained([1.0, 2.0], {"w": torch.tensor([1.0, 4.0])}, {"w": torch.tensor([0.5]), "n": torch.tensor(3)})
    assert greatest_error(one, one, 1e-3) == 0
    for other, error in (
        (Trained([1.0, 2.2], one.gradients, one.state), 0.1),
        (Trained(one.losses, {"w": torch.tensor([1.4, 4.0])}, one.state), 0.1),
        (Trained(one.losses, one.gradients, {**one.state, "w": torch.tensor([0.6])}), 0.2),
        (Trained(one.losses, one.gradients, {**one.state, "n": torch.tensor(6)}), 1.0),
    ):
        assert greatest_error(other, one, 1e-3) == pytest.approx(error, rel=1e-6)
    assert not Cell({"fp64 with SGD": 2e-10}).passed
    assert Cell({"fp64 with SGD": 0.5e-10, "fp32 with SGD": 0.5e-4}).passed
    small = Trained([1.0], {"w": torch.ones(1), "zero": torch.tensor([2e-9])}, one.state)
    none = Trained([1.0], {"w": torch.ones(1), "zero": torch.tensor([1e-9])}, one.state)
    assert greatest_error(small, none, 1e-3) == pytest.approx(1e-6)


def network() -> nn.Module:
    """Halos of uneven blocks, statistics, random numbers, and a pair of products."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, stride=2, padding=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(4, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.Flatten(), nn.Linear(72, 8), nn.ReLU(), nn.Linear(8, 5),
    )  # fmt: skip


BATCH = images(8, 3, 13, 11).float(), classes(8)
LOSS: Loss = F.cross_entropy
ALGORITHMS = ("ring", "tree", "rows_columns")


@cache
def step_of(plan: str) -> Partitioned:
    """A step of `network` in small buckets; the schedules of its collectives change from plan to plan."""
    layout = PLANS[plan]
    graph = captured(network(), first_samples(BATCH, layout.micro_batches), LOSS)
    algorithm = ALGORITHMS[list(PLANS).index(plan) % len(ALGORITHMS)]
    return partitioned(
        graph, dict(layout.spec), layout.rows, layout.cols, bucket_bytes=700, algorithm=algorithm,
        micro_batches=layout.micro_batches,
    )  # fmt: skip


@pytest.mark.parametrize("plan", PLANS)
def test_every_message_of_the_program_is_moved_and_no_other(plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of every message, in order; what the emulator hands over is no emulated traffic."""
    step = step_of(plan)
    monkeypatch.setattr(HandOver, "run", lambda _self, _environment: defaultdict(lambda: torch.zeros(())))
    assert moved(step, network(), BATCH, monkeypatch) == of_program(step.program)
    assert step.program.n_messages


@pytest.mark.parametrize("plan", PLANS)
def test_bits_do_not_depend_on_ranks(plan: str) -> None:
    model, step = network(), step_of(plan)

    def bits(comm: Any) -> dict[str, Tensor]:
        result = step.run(model, BATCH, comm=comm, seed=5)
        return {"loss": result.loss, **result.gradients, **result.buffers}

    alone = bits(None)
    for n_ranks in range(2, min(4, step.mesh.n_devices) + 1):
        for got in run_ranks(n_ranks, bits):
            assert got.keys() == alone.keys()
            assert all(torch.equal(got[name], tensor) for name, tensor in alone.items()), f"{n_ranks} ranks"
