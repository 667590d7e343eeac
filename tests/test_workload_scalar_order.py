"""Single numbers keep nothing waiting: the weight of a mean is combined first, the loss is computed last."""

from typing import Any

import pytest
import torch
from models_under_test import captured, classes, grid
from torch import Tensor, nn
from torch.nn import functional as F

from meshemu.emulator.prepare import prepare
from meshemu.emulator.timed_step import TimingOptions
from meshemu.execute.optimizer import bind_optimizer
from meshemu.hardware import System
from meshemu.mesh import flatten
from meshemu.runtime.local import SingleComm
from meshemu.workload.models import build_model
from meshemu.workload.partitioning import partition
from meshemu.workload.placement import make_plan
from meshemu.workload.scalar_order import scalars_apart
from meshemu.workload.spmd import Collective, Compute, Instruction, Spmd, Value, inputs_of, outputs_of

GPT = {"vocab_size": 12, "context": 6, "width": 8, "heads": 2, "layers": 1}
TOKENS = classes(8, 6, n=12), classes(8, 6, n=12)


def mean(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def spmd_of(model: nn.Module, batch: Any, loss: Any, plan: Any, micro_batches: int = 1) -> Spmd:
    made = make_plan({**plan, **({"micro_batches": micro_batches} if "pipeline" in plan else {})}, flatten(grid(2, 2)))
    return partition(captured(model, batch, loss), made, 2**20, micro_batches=micro_batches)


def place(spmd: Spmd, label: str) -> int:
    [found] = [i for i, one in enumerate(spmd.instructions) if isinstance(one, Collective) and one.label == label]
    return found


def made_before_they_are_read(instructions: tuple[Instruction, ...], spmd: Spmd) -> bool:
    known = {value.id for value in (*spmd.inputs.values(), *spmd.constants.values())}
    for one in instructions:
        if not {value.id for value in inputs_of(one)} <= known:
            return False
        known |= {value.id for value in outputs_of(one)}
    return {value.id for value in spmd.results} <= known


PLANS = [
    ({"data": 4}, 1), ({"data": 2, "tensor": 2}, 1), ({"shard": 4}, 1), ({"tensor": 4}, 1), ({"data": 2}, 2),
    ({"pipeline": 2, "data": 2}, 2),
]  # fmt: skip


@pytest.mark.parametrize(("plan", "micro_batches"), PLANS, ids=str)
def test_everything_is_made_before_it_is_read(plan: Any, micro_batches: int) -> None:
    part = tuple(leaf[: 8 // micro_batches] for leaf in TOKENS)
    spmd = spmd_of(build_model("gpt", GPT), part, mean, plan, micro_batches)
    assert made_before_they_are_read(spmd.instructions, spmd)
    assert scalars_apart(spmd.instructions) == spmd.instructions, "what is in order stays in order"


def test_the_weight_comes_first_and_the_loss_last() -> None:
    spmd = spmd_of(build_model("gpt", GPT), TOKENS, mean, {"data": 4})
    weight, loss = place(spmd, "weight of the loss"), place(spmd, "loss")
    before, last = spmd.instructions[:weight], spmd.instructions[-1]
    assert [one.op_class for one in before if isinstance(one, Compute)] == ["view", "sum"] and len(before) == 2
    assert spmd.loss is not None and spmd.loss in outputs_of(last)
    assert loss < len(spmd.instructions) - 3, "the sum itself sets out as soon as it is there"


GIVEN, LARGE, NUMBER, OTHER, TOTAL = (
    Value(i, shape, torch.float32) for i, shape in enumerate([(9,), (9,), (), (9,), (1, 1)])
)


def compute(inputs: tuple[Value, ...], output: Value, op_class: str = "sum") -> Compute:
    return Compute(torch.sum, inputs, {}, inputs, (output,), op_class, op_class)


def reduce(source: Value, output: Value, *, paced: bool = False) -> Collective:
    return Collective("all_reduce", (source,), (output,), ("data",), "sum", "r", paced)


LIFT, ADD, END = compute((GIVEN,), LARGE, "exp"), compute((LARGE,), NUMBER), compute((LARGE,), OTHER, "exp")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([LIFT, ADD, END], [0, 1, 2]),  # a number of a large tensor, which would have to be kept
        ([LIFT, ADD, compute((NUMBER,), TOTAL), END], [0, 1, 3, 2]),  # a number of a number, for the results
        ([LIFT, ADD, compute((NUMBER,), TOTAL), compute((LARGE, TOTAL), OTHER)], [0, 1, 2, 3]),  # it is read
        ([END, compute((GIVEN,), NUMBER), reduce(NUMBER, TOTAL)], [1, 2, 0]),  # of what the step is given
        ([END, compute((GIVEN,), NUMBER), reduce(NUMBER, TOTAL, paced=True)], [0, 1, 2]),
        ([END, compute((GIVEN,), NUMBER)], [0, 1]),  # nothing to combine
        ([END, compute((GIVEN,), OTHER, "view"), compute((OTHER,), NUMBER), reduce(NUMBER, TOTAL)], [1, 2, 3, 0]),
        ([LIFT, compute((LARGE,), NUMBER), reduce(NUMBER, TOTAL)], [0, 1, 2]),  # of what the step makes
        ([END, reduce(GIVEN, LARGE)], [0, 1]),  # not a number
    ],
)
def test_what_is_moved(before: list[Instruction], after: list[int]) -> None:
    assert scalars_apart(before) == tuple(before[i] for i in after)


def test_what_weights_depend_on_is_not_brought_forward() -> None:
    """Here the weight of the mean is what the network says: it has to wait for the forward pass."""

    def weighed(outputs: Tensor, targets: Tensor) -> Tensor:
        each = (outputs.flatten(0, -2).sigmoid().sum(-1) * targets.flatten()).sum()
        return each / outputs.sigmoid().sum()

    spmd = spmd_of(build_model("gpt", GPT), TOKENS, weighed, {"data": 4})
    assert not isinstance(spmd.instructions[0], Collective)
    assert made_before_they_are_read(spmd.instructions, spmd)
    first = next(i for i, one in enumerate(spmd.instructions) if isinstance(one, Collective))
    assert any(isinstance(one, Compute) and one.op_class == "embedding" for one in spmd.instructions[:first])


def step_ps(loss: Any) -> int:
    """Virtual time of a step whose forward pass is longer than a number takes across the mesh."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(8)), nn.Linear(512, 10))
    batch = torch.zeros(4096, 512), torch.zeros(4096, dtype=torch.int64)
    step = prepare(
        model, batch, lambda run, item: loss(run(item[0]), item[1]), system=System.preset("dojo-tile"),
        plan="data", options=TimingOptions(), comm=SingleComm(), optimizer=bind_optimizer(model, torch.optim.SGD),
    )  # fmt: skip
    return step.timed.timing.end_ps


def test_a_mean_takes_no_longer_than_a_sum_but_for_its_operators() -> None:
    """A sum needs no weight. Two collectives of a number across the tile take several microseconds."""
    total = step_ps(lambda y, t: F.cross_entropy(y, t, reduction="sum") / 4096)
    average = step_ps(F.cross_entropy)
    assert abs(average - total) < 1_000_000
