"""`plan = "auto"` with pipelines: when they are tried, when one is taken, how it says so; stages balanced by time."""

from typing import Any

import numpy as np
import pytest
import torch
from models_under_test import captured, classes, grid, images
from shared_captures import Captures
from torch import nn
from torch.nn import functional as F

import meshemu
from meshemu.cost import TensorSpec, Work, durations_ps, op_work, work_ps
from meshemu.mesh import flatten
from meshemu.program.ir import OpKind
from meshemu.runtime.local import run_ranks
from meshemu.workload.pipeline_candidates import MOST_NODES, pipeline_candidates
from meshemu.workload.stage_costs import flops_and_bytes
from meshemu.workload.stages import assign_stages, most_stages

CAPTURES = Captures()
TILE = meshemu.System.preset("dojo-tile")
SLOW = meshemu.System.grid(rows=2, cols=2, bandwidth="1 GB/s", latency="100 ns", device=TILE.device)
"""Links so slow that what moves least is fastest."""


def layers(n: int = 8, width: int = 256) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(layer for _ in range(n) for layer in (nn.Linear(width, width), nn.Tanh())))


def batch(n: int = 16, width: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    return images(n, width).float(), images(n, width, seed=1).float()


def pipelines(
    model: nn.Module, given: Any, loss: Any = F.mse_loss, system: Any = TILE, micro_batches: int = 1
) -> list[Any]:
    return pipeline_candidates(captured(model, given, loss), flatten(system), given, micro_batches)


def test_a_pipeline_is_taken_where_weights_are_dear_to_move() -> None:
    model, given = layers(3), batch()
    with CAPTURES.of("layers"):
        chosen, *others = (
            meshemu.emulate(model, given, F.mse_loss, system=SLOW, plan=plan, execute=False)
            for plan in ("auto", {"data": 4}, {"shard": 4}, {"data": [2, 1], "tensor": [1, 2]})
        )
    assert chosen.prepared.plan.n_stages > 1
    assert "loss and gradients are means over its micro-batches" in chosen.prepared.reason
    assert "; next " in chosen.prepared.reason and "\n" not in chosen.prepared.reason
    assert all(chosen.time_ps < other.time_ps for other in others)


def test_what_was_chosen_trains_as_gradient_accumulation_does_on_any_number_of_ranks() -> None:
    given = batch(8)

    def train(model: nn.Module, comm: Any) -> Any:
        with CAPTURES.of("layers"):
            result = meshemu.emulate(
                model, given, F.mse_loss, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), system=SLOW, plan="auto",
                steps=2, comm=comm,
            )  # fmt: skip
        assert result.prepared.plan.n_stages > 1
        return result.losses, result.prepared.reason, result.time_ps

    plain, models = layers(3), [layers(3) for _ in range(3)]
    alone = train(models[0], None)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for loss in alone[0]:
        optimizer.zero_grad()
        expected = F.mse_loss(plain(given[0]), given[1])  # a mean over samples is that over equal micro-batches
        expected.backward()
        optimizer.step()
        assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert run_ranks(2, lambda comm: train(models[1 + comm.rank], comm)) == [alone, alone]


def test_which_pipelines_are_tried() -> None:
    found = {plan.describe(): plan for plan in pipelines(layers(), batch(100))}
    assert 1 < len(found) <= 4
    assert all(plan.n_stages > 1 and (plan.micro_batches or 0) > 1 for plan in found.values())
    assert any(plan.has("data") for plan in found.values()) and any(plan.has("tensor") for plan in found.values())
    for plan in pipelines(layers(), batch(24), micro_batches=4):
        assert plan.micro_batches == 4


@pytest.mark.parametrize(
    ("model", "given", "loss"),
    [
        (layers(), batch(1), F.mse_loss),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 5)), (images(8, 4).float(), classes(8)),
         F.cross_entropy),
    ],
    ids=["one sample", "batch norm"],
)  # fmt: skip
def test_when_none_is_tried(model: nn.Module, given: Any, loss: Any) -> None:
    assert pipelines(model, given, loss) == []


def test_no_more_stages_than_the_model_has_places_to_cut() -> None:
    given = images(64, 6).float(), images(64, 5).float()
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
    most = most_stages(captured(model, given, F.mse_loss))
    assert 1 < most < 5  # fewer than the tile has rows
    assert {plan.n_stages for plan in pipelines(model, given)} <= set(range(2, most + 1))
    assert len(assign_stages(captured(model, given, F.mse_loss), most).of) > 0


def test_batch_norm_allows_a_pipeline_where_micro_batches_were_asked_for() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 5))
    assert pipelines(model, (images(8, 4).float(), classes(8)), F.cross_entropy, micro_batches=2)


def test_work_is_bounded() -> None:
    graph = captured(layers(8, 8), batch(1000, 8), F.mse_loss)
    for plan in pipeline_candidates(graph, flatten(grid(20, 20)), batch(1000, 8), 1):
        assert (plan.micro_batches or 1) * len(graph.nodes) <= MOST_NODES


def test_evaluation_passes_no_pipeline() -> None:
    result = meshemu.evaluate(layers(4, 16), batch(16, 16), system=SLOW, plan="auto", execute=False)
    assert not result.prepared.plan.has("pipeline")


def test_the_time_of_work_is_that_of_an_op_in_a_program() -> None:
    program = meshemu.emulate(
        layers(2, 32), batch(4, 32), F.mse_loss, system=TILE, plan={"data": 4}, execute=False,
        optimizer=lambda p: torch.optim.Adam(p, lr=0.1),
    ).program  # fmt: skip
    assert TILE.device is not None
    durations = durations_ps(program, TILE.device)
    computes = np.flatnonzero(program.kind == OpKind.COMPUTE)
    assert len(computes) > 20 and durations[computes].all()
    for op in computes:
        assert program.shape[op] >= 0, "every op that computes knows its shape"
        shape = program.shapes[program.shape[op]]
        work = Work(int(program.flops[op]), int(program.read_bytes[op]), int(program.write_bytes[op]), shape)
        name = program.op_classes[program.op_class[op]]
        assert work_ps(TILE.device, name, program.number_formats[program.number_format[op]], work) == durations[op]
    assert work_ps(TILE.device, "view", "fp32", Work(0, 0, 0)) == 0


def test_stages_are_balanced_by_the_time_of_the_device() -> None:
    """A product is fast for its flops and bytes, so that the stage that has it gets other operators too."""
    model = nn.Sequential(nn.Linear(512, 512), *(nn.Tanh() for _ in range(60)))
    given = images(512, 512).float(), images(512, 512, seed=1).float()
    graph = captured(model, given, F.mse_loss)
    device = TILE.device
    assert device is not None
    wide = TensorSpec((512, 512), 4)
    product = op_work("addmm", [TensorSpec((512,), 4), wide, wide], [wide], {})
    point = op_work("tanh", [wide], [wide], {})
    by_work = flops_and_bytes("addmm", "fp32", product) / flops_and_bytes("tanh", "fp32", point)
    by_time = work_ps(device, "addmm", "fp32", product) / work_ps(device, "tanh", "fp32", point)
    assert by_time < 0.8 * by_work
    cuts = [
        sum(stage == 0 for stage in assign_stages(graph, 2, (), cost).of.values())
        for cost in (flops_and_bytes, lambda op, number_format, work: work_ps(device, op, number_format, work))
    ]
    assert cuts[0] < cuts[1]
    timed = meshemu.emulate(
        model, given, F.mse_loss, system=TILE, plan={"pipeline": 2, "micro_batches": 2}, execute=False
    ).prepared.timed
    first, second = sorted(int(ps) for ps in timed.summary.device_compute_ps if ps)
    assert first > 0.9 * second
