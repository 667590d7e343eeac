"""Pipelines on the emulated machine: numbers of plain gradient accumulation, messages and times of the Program."""

import copy
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models_under_test import Loss, Partitioned, Step, assert_close, assert_same_step, captured, classes, grid, images
from shared_captures import Captures
from test_execute_bytes import moved, of_program
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import meshemu
from meshemu.config import parse
from meshemu.cost.op_classes import VIEWS
from meshemu.errors import InputError, PlanError
from meshemu.execute.hand_over import HandOver
from meshemu.hardware import System
from meshemu.mesh import flatten
from meshemu.network import time_program
from meshemu.program.ir import OpKind
from meshemu.program.verify import verify
from meshemu.runtime.local import run_ranks
from meshemu.workload.choice import choose_schedules
from meshemu.workload.emission import build_program
from meshemu.workload.graph import Graph
from meshemu.workload.memory import MemoryWalk
from meshemu.workload.partitioning import partition
from meshemu.workload.placement import make_plan
from meshemu.workload.samples import first_samples, with_micro_batches
from meshemu.workload.spmd import Fetch

STEPS = 5
CAPTURES = Captures()


class Mixing(nn.Module):
    """A residual layer that mixes positions by a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.product = nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + self.product(mask @ x).tanh()  # type: ignore[no-any-return]


class Tied(nn.Module):
    """A small language model whose output product shares its weight with the embedding; every layer reads a mask."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(Mixing() for _ in range(4))
        self.register_buffer("mask", torch.ones(6, 6).tril().softmax(1))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.mask)
        return x @ self.embedding.weight.t()  # type: ignore[no-any-return]


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 5)).double()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1),
        nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 7 * 6, 5),
    ).double()  # fmt: skip


def of_tokens(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


Case = tuple[Callable[[], nn.Module], tuple[Tensor, Tensor], Loss]
MODELS: dict[str, Case] = {
    "perceptron": (perceptron, (images(8, 6), classes(8)), F.cross_entropy),
    "network": (network, (images(8, 3, 13, 11), classes(8)), F.cross_entropy),
    "tied": (lambda: Tied().double(), (classes(8, 6, n=11), classes(8, 6, n=11, seed=4)), of_tokens),
}
PLANS: list[tuple[str, dict[str, Any], tuple[int, int]]] = [
    ("perceptron", {"pipeline": 3, "micro_batches": 4}, (1, 3)),
    ("perceptron", {"pipeline": 2, "tensor": 2, "micro_batches": 2}, (2, 2)),
    ("network", {"pipeline": 2, "data": 2, "micro_batches": 2, "stages": ["3"]}, (2, 2)),
    ("network", {"pipeline": 3, "micro_batches": 8, "order": "gpipe"}, (1, 3)),
    ("network", {"pipeline": 2, "spatial": [2, 2], "micro_batches": 4, "order": "gpipe"}, (2, 4)),
    ("tied", {"pipeline": 3, "micro_batches": 4}, (1, 4)),
    ("tied", {"pipeline": 2, "data": 2, "micro_batches": 4, "order": "gpipe"}, (2, 2)),
    ("tied", {"pipeline": 2, "data": 2, "tensor": 2, "micro_batches": 2}, (2, 4)),
    ("tied", {"pipeline": 2, "shard": 2, "zero": 1, "micro_batches": 2}, (2, 2)),
    ("tied", {"pipeline": 2, "shard": 2, "zero": 3, "micro_batches": 2}, (2, 2)),
]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)


def part(batch: Any, k: int, m: int) -> Any:
    """Micro-batch k of m."""
    return pytree.tree_map(lambda leaf: leaf.chunk(m)[k], batch)


def accumulate(model: nn.Module, batch: Any, loss_fn: Loss, m: int) -> Tensor:
    """Gradients of the mean over micro-batches, by plain autograd; the mean of the losses."""
    losses = []
    for k in range(m):
        inputs, targets = part(batch, k, m)
        loss = loss_fn(model(inputs), targets) / m
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()


@pytest.mark.parametrize("name, plan, shape", PLANS)
def test_parity_with_plain_gradient_accumulation(name: str, plan: dict[str, Any], shape: tuple[int, int]) -> None:
    make, batch, loss_fn = MODELS[name]
    plain, emulated = make(), make()
    optimizer, losses = sgd(plain.parameters()), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        losses.append(float(accumulate(plain, batch, loss_fn, plan["micro_batches"])))
        optimizer.step()
    with CAPTURES.of(name):
        result = meshemu.emulate(
            emulated, batch, loss_fn, optimizer=sgd, system=grid(*shape), plan=plan, steps=STEPS, clip_norm=None
        )
    assert losses[-1] != losses[0]
    assert result.losses == pytest.approx(losses, rel=1e-10, abs=0)
    for name, wanted in plain.state_dict().items():
        assert_close(name, emulated.state_dict()[name], wanted, 1e-10, 1e-2)


def test_clipped_by_the_norm_over_all_stages() -> None:
    make, batch, loss_fn = MODELS["tied"]
    plain, emulated = make(), make()
    accumulate(plain, batch, loss_fn, 2)
    norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
    plan = {"pipeline": 2, "shard": 2, "micro_batches": 2}
    with CAPTURES.of("tied"):
        result = meshemu.emulate(emulated, batch, loss_fn, system=grid(2, 2), plan=plan, clip_norm=0.1)
    assert result.gradient_norms == pytest.approx([float(norm)], rel=1e-10)
    for parameter_name, parameter in plain.named_parameters():
        assert parameter.grad is not None
        assert_close(parameter_name, result.gradients[parameter_name], parameter.grad, 1e-10)


@pytest.mark.parametrize("order", ["1f1b", "gpipe"])
def test_random_numbers_are_those_of_any_other_plan(order: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.4), nn.Linear(6, 6), nn.Dropout(0.4), nn.Linear(6, 5)).double()
    batch = images(8, 6), classes(8)

    def losses(plan: dict[str, Any], shape: tuple[int, int]) -> list[float]:
        with CAPTURES.of("two dropouts"):
            return meshemu.emulate(
                copy.deepcopy(model), batch, F.cross_entropy, optimizer=sgd, system=grid(*shape), plan=plan, steps=3,
                micro_batches=4,
            ).losses  # fmt: skip

    alone = losses({"data": 1}, (1, 1))
    assert losses({"pipeline": 3, "order": order}, (1, 3)) == pytest.approx(alone, rel=1e-12)
    assert losses({"pipeline": 2, "data": 2, "order": order}, (2, 2)) == pytest.approx(alone, rel=1e-12)


@cache
def graph_of(name: str, m: int) -> Graph:
    make, batch, loss_fn = MODELS[name]
    return captured(make(), first_samples(batch, m), loss_fn)


def pipelined(graph: Graph, plan: dict[str, Any], system: System, *, m: int = 0) -> Partitioned:
    mesh = flatten(system)
    placed = make_plan(plan, mesh)
    spmd = partition(graph, placed, bucket_bytes=500, micro_batches=m or plan["micro_batches"])
    schedules = choose_schedules(spmd, placed, mesh, "ring", lambda _format, size_bytes: size_bytes)
    program = build_program(spmd, placed, mesh.n_devices, schedules, {})
    verify(program)
    return Partitioned(mesh, placed, spmd, schedules, program)


@pytest.mark.parametrize("name, plan, shape", [PLANS[i] for i in (1, 2, 4, 5, 9)])
def test_every_message_of_the_program_is_moved_and_no_other(
    name: str, plan: dict[str, Any], shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, batch, _ = MODELS[name]
    step = pipelined(graph_of(name, plan["micro_batches"]), plan, grid(*shape))
    monkeypatch.setattr(HandOver, "run", lambda _self, _environment: defaultdict(lambda: torch.zeros(())))
    assert moved(step, make(), batch, monkeypatch) == of_program(step.program)
    assert step.program.n_messages


@pytest.mark.parametrize("case, rank_counts", [(PLANS[1], (3,)), (PLANS[2], (2, 4)), (PLANS[9], (3,))])
def test_bits_do_not_depend_on_ranks(
    case: tuple[str, dict[str, Any], tuple[int, int]], rank_counts: tuple[int, ...]
) -> None:
    name, plan, shape = case
    make, batch, loss_fn = MODELS[name]

    def outcome(model: nn.Module, comm: Any) -> list[Any]:
        with CAPTURES.of(name):
            result = meshemu.emulate(
                model, batch, loss_fn, optimizer=sgd, system=grid(*shape), plan=plan, steps=2, seed=5, clip_norm=1.0,
                comm=comm,
            )  # fmt: skip
        state = {key: tensor.flatten().tolist() for key, tensor in model.state_dict().items()}
        return [result.losses, result.gradient_norms, state, result.time_ps]

    alone = outcome(make(), None)
    for n_ranks in rank_counts:
        models = [make() for _ in range(n_ranks)]
        assert run_ranks(n_ranks, lambda comm: outcome(models[comm.rank], comm)) == [alone] * n_ranks  # noqa: B023


def test_activations_cross_once_there_and_once_back() -> None:
    """8 samples of 16 and of 12 features cross the two cuts, forward and backward, in fp64."""
    plan = {"pipeline": 3, "micro_batches": 4, "stages": ["2", "4"]}
    step = pipelined(graph_of("perceptron", 4), plan, grid(1, 3))
    assert int(step.program.size_bytes.sum()) == 2 * 8 * (16 + 12) * 8
    assert step.program.n_messages == 2 * 2 * 4
    ends = set(zip(step.program.src.tolist(), step.program.dst.tolist(), strict=True))
    assert ends == {(0, 1), (1, 2), (2, 1), (1, 0)}


def test_the_gradient_of_a_tied_weight_crosses_once_a_step() -> None:
    plan = {"pipeline": 2, "micro_batches": 4, "stages": ["layers.2"]}
    step = pipelined(graph_of("tied", 4), plan, grid(1, 2))
    activations = 2 * 8 * 6 * 8 * 8
    weight = 11 * 8 * 8
    assert int(step.program.size_bytes.sum()) == activations + 2 * weight
    labels = [i.label for i in step.spmd.instructions if isinstance(i, Fetch) and "gradient of embedding" in i.label]
    assert len(labels) == 2


def test_work_of_a_stage_is_done_by_its_devices_alone() -> None:
    plan = {"pipeline": 2, "data": 2, "micro_batches": 2, "stages": ["2"]}
    program = pipelined(graph_of("perceptron", 2), plan, grid(2, 2)).program
    modules = set()
    for op in np.flatnonzero(program.kind == OpKind.COMPUTE).tolist():
        module = program.labels[program.label[op]].split(":")[0]
        if program.op_classes[program.op_class[op]] in ("addmm", "gelu"):
            assert int(program.device[op]) // 2 == (int(module) >= 2)
            modules.add(module)
    assert modules == set("01234")


def equal_layers(n: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(n))).double()


@pytest.mark.parametrize("order", ["1f1b", "gpipe"])
@pytest.mark.parametrize("n_stages, m", [(2, 2), (2, 6), (4, 2), (4, 8)])
def test_equal_stages_take_the_closed_form(n_stages: int, m: int, order: str) -> None:
    """(m + P - 1) forward and backward passes, when one operator of each takes all the time and links none."""
    forward_ps, backward_ps = 3_000_000, 5_000_000
    batch = images(48, 4), images(48, 4)
    graph = captured(equal_layers(n_stages), first_samples(batch, m), F.mse_loss)
    system = System.grid(rows=1, cols=n_stages, bandwidth="1 PB/s", latency="1 ps")
    plan = {"pipeline": n_stages, "micro_batches": m, "order": order, "stages": [str(s) for s in range(1, n_stages)]}
    step = pipelined(graph, plan, system)
    names = np.asarray([step.program.op_classes[c] for c in step.program.op_class.tolist()])
    durations = np.select([names == "addmm", names == "tanh_backward"], [forward_ps, backward_ps], 0)
    assert (durations == forward_ps).sum() == (durations == backward_ps).sum() == n_stages * m
    end_ps = time_program(step.program, step.mesh, durations).end_ps
    assert 0 <= end_ps - (m + n_stages - 1) * (forward_ps + backward_ps) < 1000


def peaks(n_stages: int, m: int, order: str) -> np.ndarray[Any, Any]:
    """Peak memory of every stage, batch leaves not counted, of equal layers on micro-batches of 64 samples."""
    model = nn.Sequential(*(layer for _ in range(2 * n_stages) for layer in (nn.Linear(4, 4), nn.Tanh()))).double()
    graph = captured(model, (images(64, 4), images(64, 4)), F.mse_loss)
    stages = [str(4 * s) for s in range(1, n_stages)]
    plan = {"pipeline": n_stages, "micro_batches": m, "order": order, "stages": stages}
    step = pipelined(graph, plan, grid(1, n_stages))
    leaves = np.zeros(n_stages, np.int64)
    leaves[[0, -1]] = m * 64 * 4 * 8
    return MemoryWalk(step.spmd, step.plan, {}, VIEWS).use(n_stages).total_bytes - leaves


def test_one_forward_one_backward_keeps_few_micro_batches() -> None:
    """Each more micro-batch costs GPipe its activations on every stage; 1F1B keeps at most P - s of them on stage s."""
    n_stages = 3
    gpipe = {m: peaks(n_stages, m, "gpipe") for m in (6, 9)}
    kept = (gpipe[9] - gpipe[6]) // 3
    assert (kept >= 2 * 64 * 4 * 8).all()  # at least what the two layers of a stage save
    few, many = peaks(n_stages, 6, "1f1b"), peaks(n_stages, 9, "1f1b")
    assert (few == many).all()
    resident = gpipe[6] - 6 * kept
    boundary = 64 * 4 * 8  # an activation that waits for its turn
    assert (few <= resident + (n_stages - np.arange(n_stages)) * kept + boundary).all()
    assert (few < gpipe[6]).all()


def refusal(plan: Any, *, batch: Any = None, micro_batches: int = 1, model: str = "perceptron") -> str:
    make, own, loss_fn = MODELS[model]
    with pytest.raises(InputError) as caught:
        meshemu.emulate(make(), batch or own, loss_fn, system=grid(2, 2), plan=plan, micro_batches=micro_batches)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_refusals_name_what_is_wrong() -> None:
    assert refusal({"pipeline": 2, "order": "zigzag"}) == "plan.order = 'zigzag' is not one of 1f1b, gpipe"
    assert refusal({"data": 2, "order": "gpipe"}) == "plan.order = 'gpipe' is of no use without the axis plan.pipeline"
    assert "plan.stages must be a list of module names" in refusal({"pipeline": 2, "stages": "2"})
    assert "2 stages need 1 names, not 2 (2, 4)" in refusal({"pipeline": 2, "stages": ["2", "4"]})
    assert "'head' is no module of the forward pass" in refusal({"pipeline": 2, "stages": ["head"]})
    assert "plan.micro_batches = 3 does not divide the batch size 8" in refusal({"pipeline": 2, "micro_batches": 3})
    assert "plan.micro_batches = 0 must be a positive integer" in refusal({"pipeline": 2, "micro_batches": 0})
    few = refusal({"pipeline": 2, "data": 2, "micro_batches": 8})
    assert few == "plan.micro_batches = 8: 8 / 8 = 1 samples a micro-batch < 2 devices over data"
    both = refusal({"pipeline": 2, "micro_batches": 4}, micro_batches=2)
    assert both == "plan.micro_batches = 4 and training.micro_batches = 2 differ"
    tall = System.grid(rows=1, cols=40, bandwidth="1 GB/s", latency="1 ns")
    make, batch, loss_fn = MODELS["perceptron"]
    with pytest.raises(PlanError, match=r"plan.pipeline = 40: Sequential can be cut into \d+ stages at most"):
        meshemu.emulate(make(), batch, loss_fn, system=tall, plan="pipeline")


@pytest.mark.parametrize(
    "plan, batch_size, count",
    [({"pipeline": 2}, 8, 4), ({"pipeline": 3}, 8, 4), ({"pipeline": 2}, 7, 1), ({"pipeline": 2, "data": 2}, 6, 3)],
)
def test_micro_batches_that_nobody_asked_for(plan: dict[str, int], batch_size: int, count: int) -> None:
    placed = make_plan(plan, flatten(grid(2, 3)))
    chosen = with_micro_batches(placed, (images(batch_size, 6), classes(batch_size)), 1)
    assert chosen.micro_batches == count
    assert f"{count} micro-batches" in chosen.describe()
    assert with_micro_batches(placed, images(12, 6), 6).micro_batches == 6


def test_evaluation_passes_through_the_stages() -> None:
    make, batch, loss_fn = MODELS["network"]
    model = make()
    wanted = loss_fn(copy.deepcopy(model).eval()(batch[0]), batch[1])
    plan = {"pipeline": 2, "data": 2, "micro_batches": 4}
    result = meshemu.evaluate(model, batch, loss_fn, system=grid(2, 2), plan=plan)
    assert_close("metric", result.metrics["metric"].reshape(()), wanted.detach(), 1e-10)


def test_a_configuration_says_it_all() -> None:
    text = """
        model = {name = "gpt"}
        data = {name = "text", batch_size = 8}
        plan = {pipeline = 2, data = [1, 2], micro_batches = 4, order = "gpipe", stages = ["blocks.1"]}
        training = {steps = 1, optimizer = {name = "sgd", lr = 0.1}}
    """
    plan = parse(text, origin="a test", directory=Path()).plan
    assert not isinstance(plan, str)
    spec = {"pipeline": 2, "data": (1, 2), "micro_batches": 4, "order": "gpipe", "stages": ("blocks.1",)}
    assert plan.model_dump(exclude_none=True) == spec
    placed = make_plan(spec, flatten(grid(2, 2)))
    assert (placed.n_stages, placed.stages, placed.order) == (2, ("blocks.1",), "gpipe")
    with pytest.raises(InputError, match=r"plan.*order"):
        parse(text.replace("gpipe", "zigzag"), origin="a test", directory=Path())


def test_one_step_of_a_single_stage_is_that_of_no_pipeline() -> None:
    make, batch, _ = MODELS["network"]
    model = make()
    one = pipelined(graph_of("network", 2), {"pipeline": 1, "data": 2, "micro_batches": 2}, grid(1, 2))
    none = pipelined(graph_of("network", 2), {"data": 2}, grid(1, 2), m=2)
    first, second = one.run(model, batch), none.run(model, batch)
    assert isinstance(first, Step)
    assert_same_step(first, second, 0.0)
    assert np.array_equal(one.program.size_bytes, none.program.size_bytes)


@pytest.mark.parametrize(
    "plan, shape", [({"pipeline": 6}, (2, 4)), ("pipeline", (3, 3)), ({"pipeline": [3, 2], "data": [1, 2]}, (3, 4))]
)
def test_successive_stages_are_neighbours(plan: Any, shape: tuple[int, int]) -> None:
    """Stages go to and fro: a device is as far from its counterpart on the next stage as a stage is wide."""
    placed = make_plan(plan, flatten(grid(*shape)))
    devices = np.asarray(placed.devices).reshape(placed.n_stages, -1)
    row, col = np.divmod(devices, shape[1])
    hops = abs(np.diff(row, axis=0)) + abs(np.diff(col, axis=0))
    assert (hops <= devices.shape[1]).all()
    assert len(set(placed.devices)) == len(placed.devices)
