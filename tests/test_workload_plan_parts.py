"""Small parts of the plan core by themselves: how terms are combined, and where a weight comes from."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_under_test import captured, images
from torch import Tensor, nn

from meshemu.hardware import System
from meshemu.mesh import flatten
from meshemu.workload.candidates import candidates
from meshemu.workload.combines import COMBINES
from meshemu.workload.graph import Role
from meshemu.workload.products import root_of

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
