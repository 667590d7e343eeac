"""The same bits on any number of ranks, and random numbers that do not depend on where a block lies."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models_under_test import Partitioned, Step, assert_same_step, captured, classes, grid, images, partitioned
from shared_captures import Captures
from torch import Tensor, nn
from torch.nn import functional as F

import meshemu
from meshemu.execute.training import digest_of
from meshemu.runtime.local import run_ranks
from meshemu.workload.chunks import chunk_bounds
from meshemu.workload.models import build_model
from meshemu.workload.spmd import Collective

BATCH = images(6, 3, 13, 11).float(), classes(6)
CAPTURES = Captures()


def network() -> nn.Module:
    """Halos of uneven blocks, statistics, random numbers and gathers in one."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 5, stride=2, padding=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3),
        nn.MaxPool2d(3, 2, 1), nn.Conv2d(6, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(),
        nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip


def language_model() -> nn.Module:
    return build_model("gpt", {"vocab_size": 11, "context": 6, "width": 8, "heads": 2, "layers": 1}, seed=0)


def of_tokens(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def outcome(model: nn.Module, batch: Any, loss_fn: Any, plan: Any, shape: tuple[int, int], comm: Any) -> dict[str, Any]:
    """Everything that must not depend on ranks, as exact text."""
    result = meshemu.emulate(
        model, batch, loss_fn, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        system=grid(*shape), plan=plan, steps=3, seed=5, comm=comm,
    )  # fmt: skip
    state = {name: t.double().flatten().tolist() for name, t in model.state_dict().items()}
    gradients = {name: t.double().flatten().tolist() for name, t in result.gradients.items()}
    return json.loads(json.dumps([result.losses, gradients, state, result.time_ps]))  # type: ignore[no-any-return]


CASES: dict[str, tuple[Callable[[], nn.Module], Any, Any, Any, tuple[int, int]]] = {
    "spatial 2 x 3 of 3 x 3": (network, BATCH, F.cross_entropy, {"spatial": [2, 3]}, (3, 3)),
    "data 2 x 3": (network, BATCH, F.cross_entropy, "data", (2, 3)),
    "data 5 of 1 x 6": (network, BATCH, F.cross_entropy, {"data": 5}, (1, 6)),
    "tensor 2 of 1 x 3": (network, BATCH, F.cross_entropy, {"tensor": 2}, (1, 3)),
    "text, data 2 x 3": (language_model, (classes(7, 6, n=11), classes(7, 6, n=11, seed=4)), of_tokens, "data", (2, 3)),
}


@pytest.mark.parametrize("name, rank_counts", zip(CASES, [(2, 5), (3,), (4, 6), (3,), (5,)], strict=True))
def test_bits_do_not_depend_on_ranks(name: str, rank_counts: tuple[int, ...]) -> None:
    """Of whole trainings; tests/test_plan_cells.py has one step of every plan on 1 to 4 ranks.

    Here all ranks share what one of them captures, below every process captures for itself.
    """
    make, *rest = CASES[name]
    with CAPTURES.of(make):
        alone = outcome(make(), *rest, None)  # type: ignore[arg-type]
        for n_ranks in rank_counts:
            models = [make() for _ in range(n_ranks)]
            results = run_ranks(n_ranks, lambda comm: outcome(models[comm.rank], *rest, comm))  # noqa: B023
            for rank, result in enumerate(results):
                assert result == alone, f"rank {rank} of {n_ranks} differs from a run on one rank"


def test_digest_tells_a_change_of_one_bit() -> None:
    model = network()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].bias[0] = torch.nextafter(other[0].bias[0], torch.tensor(1.0))  # type: ignore[union-attr,index]
    digests = [digest_of(m.state_dict()) for m in (model, other, model)]
    assert digests[0] == digests[2] != digests[1]


@pytest.mark.mpi(min_size=2)
def test_bits_do_not_depend_on_the_ranks_of_this_job(comm: Any, meet: Any, collective_assert: Any) -> None:
    """Processes: text on two, images in uneven regions on three, more samples than devices on four and more."""
    make, *rest = CASES[{2: "text, data 2 x 3", 3: "spatial 2 x 3 of 3 x 3"}.get(comm.size, "data 2 x 3")]
    if comm.size > 6:
        rest[-1] = (4, 4)
    expected = outcome(make(), *rest, None) if comm.rank == 0 else None  # type: ignore[arg-type]
    meet()
    expected = comm.bcast(expected)
    collective_assert(outcome(make(), *rest, comm) == expected, "differs from a run on one rank")  # type: ignore[arg-type]


class Masked(nn.Module):
    """A model whose gradient is the random mask itself."""

    def __init__(self, noise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 4, 9, 7, dtype=torch.float64))
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        return self.noise(self.noise(x * self.scale))


def drop_path(x: Tensor) -> Tensor:
    keep = (0.7 + torch.rand((x.shape[0], 1, 1, 1), dtype=x.dtype)).floor()
    return x.div(0.7) * keep


NOISES: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: F.dropout(x, 0.3),
    "channel dropout": lambda x: F.dropout2d(x, 0.3),
    "alpha dropout": lambda x: F.alpha_dropout(x, 0.3, training=True),
    "rand_like": lambda x: x * (torch.rand_like(x) < 0.7),
    "drop path": drop_path,
}


def noisy_step(
    noise: Callable[[Tensor], Tensor], plan: Any, rows: int, cols: int, seed: int = 0, step: int = 0
) -> Step:
    model, batch = Masked(noise), (images(6, 4, 9, 7), classes(6))
    graph = captured(model, batch, lambda y, t: (y * y.detach().sin()).sum())
    return partitioned(graph, plan, rows, cols).run(model, batch, seed=seed, step=step)


@pytest.mark.parametrize("name", NOISES)
def test_random_numbers_do_not_depend_on_the_plan(name: str) -> None:
    alone = noisy_step(NOISES[name], {"data": 1}, 1, 1)
    for plan, rows, cols in [("data", 2, 2), ("data", 1, 5), ({"spatial": [2, 3]}, 2, 3), ("spatial", 5, 5)]:
        assert_same_step(noisy_step(NOISES[name], plan, rows, cols), alone)
    for other in ({"seed": 1}, {"step": 1}):
        assert float(noisy_step(NOISES[name], "data", 2, 2, **other).loss) != float(alone.loss)


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    batch = torch.ones(100_000, 1, dtype=torch.float64), torch.zeros(1)
    graph = captured(model, batch, lambda y, t: F.dropout(y / y.detach(), 0.3).sum())
    step = partitioned(graph, "data", 2, 2).run(model, batch)
    kept = float(step.loss) * 0.7
    assert abs(kept - 70_000) < 5 * (100_000 * 0.3 * 0.7) ** 0.5


def groups_that_cannot_be_cut() -> nn.Module:
    """Eight channels over three devices, between them weights that all three hold whole."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.PReLU(8), nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Tanh(),
        nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def copies_of(step: Partitioned) -> set[bool]:
    """Of the copies of a block that groups of a collective make, each for itself: whether all are cut alike."""
    alike = set()
    for instruction in step.spmd.instructions:
        if not isinstance(instruction, Collective) or instruction.kind != "all_reduce":
            continue
        cuts: dict[Any, set[bytes]] = {}
        for group in step.plan.groups(instruction.axes, instruction.stages)[0]:
            bounds = chunk_bounds(instruction, len(group), group, step.plan).tobytes()
            for value in instruction.outputs:
                cuts.setdefault((value.id, int(step.plan.index(value.layout.axes)[group[0]])), set()).add(bounds)
        alike |= {len(cut) == 1 for cut in cuts.values()}
    return alike


@pytest.mark.parametrize("plan", [{"tensor": 3, "data": 3}, {"tensor": 3, "shard": 3}, {"tensor": 3, "data": 2}])
def test_copies_of_one_gradient_are_sums_in_one_order(plan: Any) -> None:
    batch = images(6, 3, 6, 6).float(), classes(6, n=4)
    step = partitioned(captured(groups_that_cannot_be_cut(), batch, F.cross_entropy), plan, 3, 3)
    assert copies_of(step) == {True}


def test_copies_that_several_ranks_make_are_the_same_bits() -> None:
    batch, given = (images(6, 3, 6, 6).float(), classes(6, n=4)), groups_that_cannot_be_cut()

    def states(comm: Any) -> list[str]:
        model = copy.deepcopy(given)
        meshemu.emulate(
            model, batch, F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), system=grid(2, 3),
            plan={"data": 2, "tensor": 3}, steps=2, formats={"communication": "fp16"}, comm=comm,
        )  # fmt: skip
        return [str(t.double().flatten().tolist()) for t in model.state_dict().values()]

    with CAPTURES.of("uneven"):
        alone = run_ranks(1, states)[0]
        for n_ranks in (2, 3, 4):
            assert run_ranks(n_ranks, states) == [alone] * n_ranks
