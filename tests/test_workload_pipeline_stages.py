"""Where a model is cut into stages, and which stage each operator of forward and backward pass belongs to."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_under_test import captured, classes, images
from torch import Tensor, fx, nn
from torch.nn import functional as F

from meshemu.errors import PlanError
from meshemu.workload.graph import Graph, Role, module_of
from meshemu.workload.models import build_model
from meshemu.workload.pipeline_order import Turn
from meshemu.workload.stage_cuts import SLACK, balanced_starts
from meshemu.workload.stages import Stages, assign_stages, passes_of

LETTERS = st.integers(1, 9).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 20), min_size=n, max_size=n),
        st.lists(st.integers(0, 9), min_size=n, max_size=n),
        st.lists(st.booleans(), min_size=n, max_size=n),
    )
)


def by_trial(costs: Sequence[int], crossing: Sequence[int], legal: Sequence[bool], n: int) -> tuple[int, int] | None:
    """(cost of the largest stage that is allowed, fewest bytes at that) over all ways to cut."""
    ways = []
    for inner in combinations([i for i in range(1, len(costs)) if legal[i]], n - 1):
        starts = (0, *inner, len(costs))
        largest = max(sum(costs[a:b]) for a, b in pairwise(starts))
        ways.append((largest, sum(crossing[i] for i in inner)))
    if not ways:
        return None
    least = min(largest for largest, _ in ways)
    limit = least + int(SLACK * least)
    return limit, min(crossed for largest, crossed in ways if largest <= limit)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(LETTERS, st.integers(1, 5))
def test_cuts_are_the_best_of_all(sequence: tuple[list[int], list[int], list[bool]], n: int) -> None:
    costs, crossing, legal = sequence
    starts = balanced_starts(costs, crossing, legal, n)
    best = by_trial(costs, crossing, legal, n)
    assert (starts is None) == (best is None)
    if starts is None or best is None:
        return
    assert len(starts) == n and starts[0] == 0 and list(starts) == sorted(set(starts))
    assert all(legal[i] for i in starts[1:])
    ends = (*starts[1:], len(costs))
    assert max(sum(costs[a:b]) for a, b in zip(starts, ends, strict=True)) <= best[0]
    assert sum(crossing[i] for i in starts[1:]) == best[1]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(4, 4, 3, padding=1),
        nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5),
    ).double()  # fmt: skip


@cache
def network_graph() -> Graph:
    return captured(network(), (images(4, 3, 6, 6), classes(4)), F.cross_entropy)


@cache
def text_graph(*, tied: bool) -> Graph:
    args = {"vocab_size": 31, "context": 8, "width": 16, "heads": 2, "layers": 4, "tied_head": tied}
    batch = classes(2, 7, n=31), classes(2, 7, n=31, seed=5)
    return captured(build_model("gpt", args), batch, lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten()))


GRAPHS: dict[str, Callable[[], Graph]] = {
    "network": network_graph, "text": lambda: text_graph(tied=False), "tied text": lambda: text_graph(tied=True),
}  # fmt: skip


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("name", GRAPHS)
def test_forward_flows_up_and_backward_flows_down(name: str, n: int) -> None:
    graph = GRAPHS[name]()
    stages = assign_stages(graph, n)
    forward, backward = passes_of(graph)
    assert set(stages.of.values()) == set(range(n))
    passed = set(backward)
    joined = {node for nodes in stages.terms.values() if len(nodes) > 1 for node in nodes}
    for node in forward:
        if node in stages.of:
            assert all(stages.of[s] <= stages.of[node] for s in node.all_input_nodes if s in stages.of)
    for node in backward:
        sources = [s for s in node.all_input_nodes if s in passed and s in stages.of]
        if node in stages.of and node not in joined:
            assert all(stages.of[source] >= stages.of[node] for source in sources)
    for forwards, nodes in ((True, forward), (False, backward)):
        by_turn = [node for stage in range(n) for node in stages.nodes(Turn(stage, forwards, 0))]
        assert sorted(map(str, by_turn)) == sorted(str(node) for node in nodes if node in stages.of)


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("name", GRAPHS)
def test_gradients_are_made_where_parameters_are_read(name: str, n: int) -> None:
    graph = GRAPHS[name]()
    stages = assign_stages(graph, n)
    for item in graph.inputs:
        if item.role is Role.PARAMETER:
            assert {stages.of[node] for node in stages.terms[item.name]} == set(stages.readers(item.node))


def tied_parameters(stages: Stages) -> list[str]:
    return [name for name, nodes in stages.terms.items() if len(nodes) > 1]


def test_only_a_tied_weight_is_on_two_stages() -> None:
    assert tied_parameters(assign_stages(text_graph(tied=False), 3)) == []
    graph = text_graph(tied=True)
    stages = assign_stages(graph, 3)
    (name,) = tied_parameters(stages)
    (item,) = (item for item in graph.inputs if item.name == name)
    assert stages.readers(item.node) == (0, 2)
    assert [stages.of[node] for node in stages.terms[name]] == [2, 0]
    assert graph.gradients[name] not in stages.of  # the sum is made once a step, not for each micro-batch


def test_targets_go_to_the_last_stage_and_inputs_to_the_first() -> None:
    graph = network_graph()
    stages = assign_stages(graph, 3)
    leaves = [stages.readers(item.node) for item in graph.inputs if item.role is Role.BATCH]
    assert leaves == [(0,), (2,)]
    assert assign_stages(graph, 1).readers(graph.inputs[0].node) == ()


def test_stages_begin_at_the_modules_named() -> None:
    stages = assign_stages(network_graph(), 3, ["4", "8"])
    forward, _ = passes_of(stages.graph)
    found = {module_of(node): stages.of[node] for node in forward if node in stages.of and module_of(node)}
    assert found == {"0": 0, "1": 0, "2": 0, "3": 0, "4": 1, "5": 1, "6": 1, "7": 1, "8": 2}


def test_a_name_is_not_the_beginning_of_another() -> None:
    model = nn.Sequential(OrderedDict(first=nn.Linear(4, 4), second_norm=nn.LayerNorm(4), second=nn.Linear(4, 5)))
    stages = assign_stages(captured(model, (images(4, 4).float(), classes(4)), F.cross_entropy), 2, ["second"])
    assert module_of(stages.nodes(Turn(1, True, 0))[0]) == "second"


def test_a_name_stands_for_what_is_inside() -> None:
    stages = assign_stages(text_graph(tied=False), 2, ["blocks.2"])
    modules = {stages.of[n]: module_of(n) for n in reversed(stages.nodes(Turn(1, True, 0)))}
    assert modules[1].startswith("blocks.2.")


def test_balance_of_equal_layers() -> None:
    model = nn.Sequential(*(layer for _ in range(8) for layer in (nn.Linear(64, 64), nn.Tanh())))
    graph = captured(model, (images(32, 64).float(), images(32, 64).float()), F.mse_loss)
    stages = assign_stages(graph, 4)
    firsts = [module_of(stages.nodes(Turn(stage, True, 0))[0]) for stage in range(4)]
    assert firsts == ["0", "4", "8", "12"]


class Shared(nn.Module):
    """A batch norm that is used twice: its running statistics are updated twice a step."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.norm(self.second(self.norm(self.first(x)))))  # type: ignore[no-any-return]


def test_no_cut_parts_the_updates_of_a_buffer() -> None:
    graph = captured(Shared(), (images(4, 6).float(), images(4, 6).float()), F.mse_loss)
    stages = assign_stages(graph, 2)
    norms = [n for n in passes_of(graph)[0] if n.target is torch.ops.aten.native_batch_norm.default]
    assert len({stages.of[node] for node in norms}) == 1
    assert tied_parameters(stages) == []  # read twice, but on one stage, which adds up the two gradients
    with pytest.raises(PlanError, match=r"the cut at 'second' has the buffer norm.running_mean updated on two stages"):
        assign_stages(graph, 2, ["second"])


class Tail(nn.Module):
    """Begins with an update of another module's buffers."""

    def __init__(self, norm: nn.BatchNorm1d) -> None:
        super().__init__()
        self.others, self.product = (norm,), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        (norm,) = self.others
        return self.product(F.batch_norm(x, norm.running_mean, norm.running_var, training=True))  # type: ignore


def test_no_cut_comes_just_before_the_last_update_of_a_buffer() -> None:
    norm = nn.BatchNorm1d(6)
    model = nn.Sequential(OrderedDict(norm=norm, product=nn.Linear(6, 6), tail=Tail(norm)))
    graph = captured(model, (images(4, 6).float(), images(4, 6).float()), F.mse_loss)
    with pytest.raises(PlanError, match=r"the cut at 'tail' has the buffer norm.running_mean updated on two stages"):
        assign_stages(graph, 2, ["tail"])


def test_masks_are_made_where_they_are_read() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.ones(6, 6).tril()
            for layer in self.layers:
                x = layer(x) @ mask
            return x

    graph = captured(Masked(), (images(4, 6).float(), images(4, 6).float()), F.mse_loss)
    stages = assign_stages(graph, 4)
    masks = [node for node in graph.nodes if "tril" in node.name]
    assert masks and all(node not in stages.of for node in masks)


def refusal(n: int, names: Sequence[str] = (), graph: Graph | None = None) -> str:
    with pytest.raises(PlanError) as caught:
        assign_stages(graph or network_graph(), n, names)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_refusals_name_what_is_wrong() -> None:
    assert "plan.stages: 'nine' is no module of the forward pass; there are e.g. 0, 1, 2" in refusal(2, ["nine"])
    assert "plan.stages: '1' begins not after '4' begins" in refusal(3, ["4", "1"])
    assert "plan.stages: '4' begins not after '4' begins" in refusal(3, ["4", "4"])
    assert "'0' begins where the model begins, which leaves stage 0 empty" in refusal(2, ["0"])
    most = refusal(99)
    assert most.startswith("plan.pipeline = 99: Sequential can be cut into ")
    count = int(most.split()[-4])
    assert set(assign_stages(network_graph(), count).of.values()) == set(range(count))
    refusal(count + 1)


def test_what_a_node_differentiates() -> None:
    graph = captured(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)), (images(4, 6).float(), classes(4)),
                     F.cross_entropy)  # fmt: skip

    def named(word: str) -> fx.Node:
        (node,) = (node for node in graph.nodes if word in node.name)
        return node

    assert graph.origins[named("tanh_backward")].name == "tanh"
    assert graph.origins[named("nll_loss_backward")].name == "nll_loss_forward"
    products = [graph.origins[node].name for node in graph.nodes if node.target is torch.ops.aten.mm.default]
    assert products == ["addmm_1", "addmm_1", "addmm"]
    forward, backward = passes_of(graph)
    assert set(graph.origins) <= set(backward) and set(graph.origins.values()) <= set(forward)
