"""Small parts of the plan core by themselves: how terms are combined, and where a weight comes from."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_under_test import assert_same_step, captured, classes, grid, images, partitioned, plain_step
from torch import Tensor, nn
from torch.nn import functional as F

from meshemu.hardware import System
from meshemu.mesh import flatten
from meshemu.workload.candidates import candidates
from meshemu.workload.combines import COMBINES
from meshemu.workload.graph import Role
from meshemu.workload.layout import Layout, Split, even_ranges
from meshemu.workload.lowering import Lowering
from meshemu.workload.placement import make_plan
from meshemu.workload.products import root_of
from meshemu.workload.spmd import Collective

NUMBERS = st.lists(st.floats(-300, 300, width=32), max_size=4)


def log_sums(numbers: list[float]) -> Tensor:
    """(maximum, sum of exp(x - maximum)) of a set, (-inf, 0) of an empty one."""
    x = torch.tensor([-torch.inf, *numbers], dtype=torch.float64)
    highest = x.max()
    total = (x - highest).exp().sum() if numbers else torch.zeros(())
    return torch.stack([highest, total.double()])[None]


@given(NUMBERS, NUMBERS)
@settings(max_examples=30, derandomize=True, deadline=None)
def test_log_sums_of_two_sets_are_those_of_both_together(a: list[float], b: list[float]) -> None:
    torch.testing.assert_close(COMBINES["log_sums"].merge(log_sums(a), log_sums(b)), log_sums([*a, *b]))


READERS: dict[str, Callable[[Tensor], Tensor]] = {
    "permute": lambda x: x.permute(1, 0), "transpose": lambda x: x.transpose(0, 1), "t": lambda x: x.t(),
    "unsqueeze": lambda x: x.unsqueeze(1), "view": lambda x: x.view(5, 1), "select": lambda x: x.select(1, 2),
    "slice": lambda x: x[:, 1:3], "neg": lambda x: -x, "mul": lambda x: 3 * x, "to": lambda x: x.float(),
}  # fmt: skip
"""What is done with terms of a sum as they are."""


@pytest.mark.parametrize("name", READERS)
def test_maxima_over_devices_are_not_added_up(name: str) -> None:
    def loss(y: Tensor, _t: Tensor) -> Tensor:
        return y.square().mean() + READERS[name](y.detach().amax(0, keepdim=True)).square().sum().double()

    model, batch = nn.Linear(3, 5).double(), (images(4, 3), classes(4))
    step = partitioned(captured(model, batch, loss), "data", 1, 2)
    assert_same_step(step.run(model, batch), plain_step(model, batch, loss))


def test_the_mean_of_maxima_over_micro_batches() -> None:
    """Of 1 on the first device and of 1 on the second one."""
    model, batch = nn.Linear(1, 1, bias=False).double(), (torch.tensor([[1.0], [0], [0], [1]]).double(), classes(4))
    nn.init.ones_(model.weight)
    graph = captured(model, (batch[0][:2], batch[1][:2]), lambda y, _t: y.max())
    assert float(partitioned(graph, "data", 1, 2, micro_batches=2).run(model, batch).loss) == 1


class Parts(nn.Module):
    """Reads a slice of one parameter and one index of another."""

    def __init__(self) -> None:
        super().__init__()
        self.weights, self.shifts = nn.Parameter(images(8, 5)), nn.Parameter(images(2, 5))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weights[2:] + self.shifts[-1]


def test_gradients_of_parts_stay_terms_of_sums_and_share_a_bucket() -> None:
    model, batch = Parts(), (images(8, 6), classes(8))
    step = partitioned(captured(model, batch, F.cross_entropy), "data", 1, 2)
    assert_same_step(step.run(model, batch), plain_step(model, batch, F.cross_entropy))
    collectives = [i for i in step.spmd.instructions if isinstance(i, Collective)]
    shapes = [{value.shape for value in collective.sources} for collective in collectives]
    assert [sizes for sizes in shapes if sizes != {()}] == [{(8, 5), (2, 5)}]


class Added(nn.Module):
    """Two parameters of one gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(images(6, 5)), nn.Parameter(images(6, 5, seed=2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.first + self.second)


@pytest.mark.parametrize("plan", ["data", {"shard": 2, "zero": 2}], ids=str)
def test_a_gradient_of_two_parameters_travels_once(plan: str | dict[str, int]) -> None:
    model, batch = Added(), (images(8, 6), classes(8))
    step = partitioned(captured(model, batch, F.cross_entropy), plan, 1, 2)
    assert_same_step(step.run(model, batch), plain_step(model, batch, F.cross_entropy))
    (sent,) = (i for i in step.spmd.instructions if isinstance(i, Collective) and "gradients" in i.label)
    assert [value.shape for value in sent.sources] == [(6, 5)]


@pytest.mark.parametrize("bucket_bytes, count", [(6 * 6 * 8, 4), (6 * 6 * 8 + 1, 2)])
def test_parameters_are_gathered_in_buckets_of_as_many_bytes(bucket_bytes: int, count: int) -> None:
    model = nn.Sequential(*(nn.Linear(6, 6, bias=False) for _ in range(4))).double()
    graph = captured(model, (images(8, 6), classes(8)), F.cross_entropy)
    spmd = partitioned(graph, {"shard": 2, "zero": 1}, 1, 2, bucket_bytes=bucket_bytes).spmd
    assert [i.kind for i in spmd.instructions if isinstance(i, Collective)].count("all_gather") == count


def test_what_is_struck_out_is_written_anew() -> None:
    low = Lowering(make_plan({"data": 2}, flatten(grid(1, 2))))
    cut = low.value((4,), torch.float64, Layout((Split(0, ("data",), even_ranges(4, 2)),)))
    terms = low.value((4,), torch.float64, Layout(partial=("data",)))
    mark = low.mark()

    def written() -> list[str]:
        low.replicate(cut)
        low.resolve(terms)
        return [repr(instruction) for instruction in low.instructions]

    first = written()
    low.roll_back(mark)
    assert low.instructions == []
    assert written() == first and len(first) == 2


def test_a_block_of_terms_over_two_axes_is_a_sum_over_both() -> None:
    low = Lowering(make_plan({"data": 2, "shard": 2}, flatten(grid(2, 2))))
    terms = low.value((4,), torch.float64, Layout(partial=("data", "shard")))
    wanted = Layout((Split(0, ("shard",), even_ranges(4, 2)),))
    block = low.fetch(terms, wanted)
    assert block.layout == wanted
    assert low.fetch(terms, wanted) is block
    kinds = [i.kind for i in low.instructions if isinstance(i, Collective)]
    assert kinds == ["reduce_scatter", "all_reduce"]


@pytest.mark.parametrize("batch_size", [1, 2, 8, 40])
def test_no_candidate_cuts_the_batch_into_more_parts_than_it_has_samples(batch_size: int) -> None:
    graph = captured(nn.Linear(3, 2).double(), (images(batch_size, 3), images(1)), lambda y, _t: y.sum())
    plans = candidates(graph, flatten(System.preset("dojo-tile")))
    assert all(plan.size(plan.batch_axes) <= batch_size for plan in plans)
    assert max(plan.size(plan.batch_axes) for plan in plans) == min(batch_size, 25)


class Permuted(nn.Module):
    """A weight of three dims, seen in another order."""

    def __init__(self, *orders: tuple[int, int, int]) -> None:
        super().__init__()
        self.weight, self.orders = nn.Parameter(images(2, 3, 5)), orders

    def forward(self, x: Tensor) -> Tensor:
        seen: Tensor = self.weight
        for order in self.orders:
            seen = seen.permute(order)
        return x * seen.sin()


@pytest.mark.parametrize("orders", [[(1, 2, 0)], [(2, 0, 1)], [(1, 2, 0), (1, 2, 0)], [(1, 0, 2), (0, 2, 1)]])
def test_dims_of_a_permuted_weight_are_found_again(orders: list[tuple[int, int, int]]) -> None:
    graph = captured(Permuted(*orders), (images(1), images(1)), lambda y, _t: y.sum())
    (parameter,) = (item.node for item in graph.inputs if item.role is Role.PARAMETER)
    sine = next(node for node in graph.nodes if node.target is torch.ops.aten.sin.default)
    found = root_of(sine.all_input_nodes[0], {parameter})
    assert found is not None and found[0] is parameter
    assert [parameter.meta["val"].shape[d] for d in found[1]] == [*sine.meta["val"].shape]
