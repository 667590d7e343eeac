"""Activations that are made again in steps with number formats: stored, sent and summed with the same random bits."""

from typing import Any

import pytest
import torch
from models_under_test import captured, grid
from test_workload_formats_step import FIXED, MODELS, NARROW, SUBJECTS, two_steps
from torch import fx

from meshemu.emulator.build_step import BuiltStep, StepOptions, build_step
from meshemu.hardware.format_roles import formats_of
from meshemu.mesh import flatten
from meshemu.runtime.local import run_ranks
from meshemu.workload.formats.places import stored_nodes
from meshemu.workload.formats.storing import ROUNDED
from meshemu.workload.formats.streams import Streams
from meshemu.workload.formats.tracking import tracked_keys
from meshemu.workload.graph import Graph
from meshemu.workload.placement import make_plan
from meshemu.workload.recompute import droppable, recomputed
from meshemu.workload.spmd import Compute, Value

SENT = {"communication": {"format": "cfloat8_1_5_2", "rounding": "stochastic"}}
NEAREST = {"activations": "bf16", "gradients": "bf16", "weights": "cfloat16_shp"}


def graph_of(subject: str, n_micro: int) -> Graph:
    _, batch, loss_fn = SUBJECTS[subject]
    return captured(MODELS[subject], tuple(leaf[: len(leaf) // n_micro] for leaf in batch), loss_fn)


def step_of(graph: Graph, plan: Any, rows: int, cols: int, formats: Any, n_micro: int) -> BuiltStep:
    options = StepOptions({}, "ring", 2000, micro_batches=n_micro, clip_norm=1.0, formats=formats_of(formats))
    mesh = flatten(grid(rows, cols))
    return build_step(graph, make_plan(plan, mesh), mesh, grid(rows, cols), options)


CASES = [
    ("pictures", {"spatial": [2, 1]}, 2, 1, NARROW, 1), ("pictures", {"spatial": [1, 2]}, 1, 2, SENT, 2),
    ("pictures", {"data": 2}, 1, 2, NEAREST, 1), ("pictures", {"spatial": [2, 1]}, 2, 1, FIXED, 1),
    ("language", {"tensor": 2}, 1, 2, NARROW, 1), ("language", {"pipeline": 2}, 1, 2, NARROW, 2),
    ("language", {"shard": 2, "zero": 3}, 1, 2, NARROW, 2),
]  # fmt: skip


@pytest.mark.parametrize(("subject", "plan", "rows", "cols", "formats", "n_micro"), CASES, ids=lambda p: str(p)[:40])
def test_the_bits_stay(subject: str, plan: Any, rows: int, cols: int, formats: Any, n_micro: int) -> None:
    """Of two steps, whose running maxima matter, when two thirds of the operators or all are made again; two ranks."""
    graph = graph_of(subject, n_micro)
    wanted = two_steps(step_of(graph, plan, rows, cols, formats, n_micro), subject, rows, cols)
    dropped = droppable(graph)
    part = dropped if n_micro > 1 else dropped[: 2 * len(dropped) // 3]
    again = step_of(recomputed(graph, part), plan, rows, cols, formats, n_micro)
    for found in run_ranks(2, lambda comm: two_steps(again, subject, rows, cols, comm)):
        assert found.keys() == wanted.keys()
        differing = [key for key, tensor in wanted.items() if not torch.equal(found[key], tensor)]
        assert not differing


def test_what_an_operator_tried_in_vain_is_not_counted_twice() -> None:
    """An operator and the one that repeats it: each rounds a value, is rolled back, and rounds others."""
    nodes = fx.Graph()
    once, again, other = (nodes.placeholder(name) for name in ("once", "again", "other"))
    streams = Streams({again: once})
    values = iter([Value(i, (1,), torch.float32) for i in range(20)])

    def lowered(node: fx.Node) -> list[int]:
        streams.begin(node, 0)
        in_vain = next(values)
        numbers = [streams.number("stored", in_vain)]
        streams.roll_back(in_vain.id)
        made = next(values)
        numbers += [streams.number("stored", made), streams.number("stored", made)]
        streams.end([made])
        return [*numbers, streams.number("sent", made)]

    first, second, third = lowered(once), lowered(again), lowered(other)
    assert len(set(first)) == 4
    assert second[1:] == first[1:]
    assert third == [number + 4 for number in first]


def test_what_is_made_again_is_stored_as_it_was() -> None:
    graph = graph_of("language", 1)
    again = recomputed(graph, droppable(graph))
    before, after = stored_nodes(graph), stored_nodes(again)
    roles = {node.name: role for node, role in before.items()}
    assert {node.name: role for node, role in after.items() if node not in again.copies} == roles
    copied = {copy: original.name for copy, original in again.copies.items()}
    assert {copied[node]: role for node, role in after.items() if node in copied}.items() <= roles.items()
    step = step_of(again, {"data": 2}, 1, 2, NEAREST, 1)
    for formats in (NEAREST, NARROW):
        keys = [tracked_keys(step_of(g, {"data": 2}, 1, 2, formats, 1).spmd) for g in (graph, again)]
        named = [{key for key in one if not key.startswith("communication ")} for one in keys]
        assert named[0] == named[1], "one running maximum for a value and what repeats it"
        assert len(keys[0]) == len(keys[1]), "those of communication have numbers, which shift"
    rounded = [i.label for i in step.spmd.instructions if isinstance(i, Compute) and i.op_class == ROUNDED]
    assert any("_again" in label for label in rounded)
