"""Activations that are made again: the same bits, more work, less memory."""

from operator import getitem
from typing import Any

import numpy as np
import pytest
import torch
from models_under_test import captured, classes, images, partitioned
from torch import nn
from torch.nn import functional as F

from meshemu.cost.op_classes import VIEWS
from meshemu.program.ir import OpKind
from meshemu.runtime.local import run_ranks
from meshemu.workload.capture import capture
from meshemu.workload.graph import Graph
from meshemu.workload.memory import MemoryWalk
from meshemu.workload.recompute import droppable, recomputed
from meshemu.workload.recompute_choice import candidates, held_bytes
from meshemu.workload.stage_costs import flops_and_bytes
from meshemu.workload.stages import passes_of


def convolutions() -> nn.Module:
    def block(before: int, after: int) -> nn.Module:
        layers = (nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.Dropout(0.2))
        return nn.Sequential(*layers)

    ends = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    return nn.Sequential(block(2, 6), block(6, 6), block(6, 6), *ends).double()


def attention() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.1) for _ in range(1)]
    return nn.Sequential(*layers).double()


IMAGES = (convolutions, (images(8, 2, 8, 8), classes(8, n=4)), F.cross_entropy)
SEQUENCES = (attention, (images(8, 4, 8), images(8, 4, 8)), F.mse_loss)


def graph_of(case: Any, n_samples: int = 8) -> tuple[nn.Module, Any, Graph]:
    make, batch, loss = case
    torch.manual_seed(0)
    model = make()
    return model, batch, captured(model, tuple(leaf[:n_samples] for leaf in batch), loss)


@pytest.mark.parametrize(
    ("case", "plan", "rows", "cols", "micro_batches"),
    [
        (IMAGES, {"spatial": [2, 2]}, 2, 2, 1),
        (IMAGES, {"data": 2}, 1, 2, 2),
        (SEQUENCES, {"shard": 2}, 1, 2, 1),
        (SEQUENCES, {"pipeline": 2}, 1, 2, 2),
    ],
)
def test_the_bits_stay(case: Any, plan: Any, rows: int, cols: int, micro_batches: int) -> None:
    """Also on two ranks: batch norm's running statistics are updated once, dropout drops the same."""
    model, batch, graph = graph_of(case, 8 // micro_batches)
    plain = partitioned(graph, plan, rows, cols, micro_batches=micro_batches)
    again = partitioned(recomputed(graph, droppable(graph)), plan, rows, cols, micro_batches=micro_batches)
    wanted = plain.run(model, batch)
    for got in [again.run(model, batch), *run_ranks(2, lambda comm: again.run(model, batch, comm=comm))]:
        assert torch.equal(got.loss, wanted.loss)
        assert all(torch.equal(got.gradients[name], wanted.gradients[name]) for name in wanted.gradients)
        assert all(torch.equal(got.buffers[name], wanted.buffers[name]) for name in wanted.buffers)
    assert again.program.flops.sum() > plain.program.flops.sum()


def test_a_candidate_holds_less_and_its_work_shows() -> None:
    _, _, graph = graph_of(IMAGES)
    plain = partitioned(graph, {"data": 1}, 1, 1)
    most = held_bytes(graph)
    found = candidates(graph, int(0.7 * most), flops_and_bytes)
    assert found[0].estimate_bytes <= 0.7 * most
    assert [one.cost for one in found[:-1]] == sorted(one.cost for one in found[:-1])
    again = partitioned(found[0].graph, {"data": 1}, 1, 1)
    uses = [MemoryWalk(step.spmd, step.plan, {}, VIEWS).use(1).most_bytes for step in (plain, again)]
    assert uses[1] < 0.85 * uses[0]
    labels = np.asarray(again.program.labels)[again.program.label]
    repeats = np.asarray(["_again" in label for label in labels]) & (again.program.kind == OpKind.COMPUTE)
    extra = int(again.program.flops.sum() - plain.program.flops.sum())
    assert extra > 0
    assert int(again.program.flops[repeats].sum()) == extra


def test_only_what_the_backward_pass_reads_is_made_again() -> None:
    _, _, graph = graph_of(SEQUENCES)
    dropped = set(droppable(graph))
    changed = recomputed(graph, dropped)
    _, backward = passes_of(changed)
    assert set(changed.copies) <= set(backward)
    assert all(copy.users for copy in changed.copies)
    assert [node.name for node in passes_of(changed)[0]] == [node.name for node in passes_of(graph)[0]]
    assert not recomputed(graph, ()).copies


def test_what_cannot_be_dropped() -> None:
    """Results of the step, and what every stage makes itself because no parameter is in it."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.BatchNorm1d(4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(self.norm(x)) * torch.arange(4).cos()

    graph = captured(Positions(), (torch.rand(8, 4), torch.rand(8, 4)), F.mse_loss)
    names = {node.name for node in droppable(graph)}
    assert "addmm" in names
    assert "cos" in {node.name for node in graph.nodes}
    assert names.isdisjoint({"cos", "arange"})
    results = {graph.loss, *graph.buffers.values(), *graph.gradients.values()}
    assert results.isdisjoint(droppable(graph))
    again = recomputed(graph, droppable(graph))
    assert len(again.copies) > 2
    assert all(again.origins[copy] is original for copy, original in again.copies.items())
    made = [node.name for node in again.nodes[0].graph.nodes if "_again" in node.name]
    assert sorted(made) == sorted(copy.name for copy in again.copies), "each once"
    items = [node for node in droppable(graph) if node.target is getitem]
    originals = {original.name for original in recomputed(graph, items).copies.values()}
    assert originals == {item.name for item in items} | {item.args[0].name for item in items}, "and what they are of"


def test_nothing_to_drop_without_a_backward_pass() -> None:
    model = convolutions().eval()
    graph = capture(model, images(2, 2, 8, 8), lambda call, x: call(x), gradients=False)
    assert candidates(graph, 1, flops_and_bytes) == []
