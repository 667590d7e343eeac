"""Every plan against plain PyTorch, and what its messages must add up to."""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import pytest
import torch
from models_under_test import (
    Loss,
    Partitioned,
    Step,
    assert_same_step,
    captured,
    classes,
    grid,
    images,
    partitioned,
    plain_step,
)
from shared_captures import Captures
from test_emulator_parity import sgd
from test_execute_bytes import labelled
from torch import Tensor, nn
from torch.nn import functional as F

import meshemu
from meshemu.cost.op_classes import VIEWS
from meshemu.errors import InputError, PlanError, UnsupportedOpError
from meshemu.program.ir import OpKind
from meshemu.runtime.local import run_ranks
from meshemu.workload.memory import MemoryWalk
from meshemu.workload.models import build_model
from meshemu.workload.spmd import Collective, Fetch


@dataclass(frozen=True)
class Subject:
    """A model, eight samples and a loss."""

    make: Callable[[], nn.Module]
    batch: tuple[Any, Tensor]
    loss: Loss


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 5)
    ).double()


def conv() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, stride=2, padding=2), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(4, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.Flatten(), nn.Linear(72, 5),
    ).double()  # fmt: skip


def gpt(**options: Any) -> nn.Module:
    sizes = {"vocab_size": 31, "context": 8, "width": 16, "heads": 2, "layers": 1, "tied_head": True}
    return build_model("gpt", sizes | options, seed=0).double()


def flat(outputs: Any, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


TEXT = classes(8, 7, n=31), classes(8, 7, n=31, seed=5)
CAPTURES = Captures()
SUBJECTS = {
    "mlp": Subject(mlp, (images(8, 6), classes(8)), F.cross_entropy),
    "conv": Subject(conv, (images(8, 3, 13, 11), classes(8)), F.cross_entropy),
    "gpt": Subject(gpt, TEXT, flat),
}
PLANS: dict[str, tuple[Any, int, int]] = {
    "data": ("data", 2, 3),
    "zero 1": ({"shard": 4, "zero": 1}, 2, 2),
    "zero 2": ({"shard": 3, "zero": 2}, 1, 3),
    "zero 3": ({"shard": 6}, 2, 3),
    "data x zero 1": ({"data": 2, "shard": 2, "zero": 1}, 2, 2),
    "data x zero 3": ({"data": 2, "shard": 2}, 2, 2),
    "tensor": ({"tensor": 2}, 1, 2),
    "tensor 3": ({"tensor": 3}, 1, 3),
    "data x tensor": ({"data": 2, "tensor": [1, 2]}, 2, 2),
    "zero 3 x tensor": ({"shard": 2, "tensor": 2}, 2, 2),
    "data x zero 2 x tensor": ({"data": 2, "shard": 2, "tensor": 2, "zero": 2}, 2, 4),
}
SPATIAL = {
    "data x spatial": ({"data": 2, "spatial": [2, 1]}, 2, 2),
    "zero 3 x spatial": ({"shard": 2, "spatial": [1, 2]}, 2, 2),
    "spatial x tensor": ({"spatial": [2, 1], "tensor": 2}, 2, 2),
}
CASES = [(name, plan) for name in SUBJECTS for plan in PLANS] + [("conv", plan) for plan in SPATIAL]
PLANS |= SPATIAL


@pytest.fixture(scope="module")
def steps() -> Callable[[str], tuple[Any, nn.Module, Step]]:
    """(graph, model, plain step) of a subject, made once."""
    made: dict[str, tuple[Any, nn.Module, Step]] = {}

    def of(name: str) -> tuple[Any, nn.Module, Step]:
        if name not in made:
            subject = SUBJECTS[name]
            model = subject.make()
            made[name] = (
                captured(model, subject.batch, subject.loss), model, plain_step(model, subject.batch, subject.loss)
            )  # fmt: skip
        return made[name]

    return of


@pytest.mark.parametrize("name, plan", CASES)
def test_a_step_is_that_of_plain_pytorch(name: str, plan: str, steps: Any) -> None:
    graph, model, expected = steps(name)
    step = partitioned(graph, *PLANS[plan])
    assert_same_step(step.run(model, SUBJECTS[name].batch), expected)
    assert not step.spmd.gathered


def collectives(step: Partitioned, kind: str, word: str = "") -> list[Collective]:
    found = (i for i in step.spmd.instructions if isinstance(i, Collective))
    return [i for i in found if i.kind == kind and word in i.label]


def sent_bytes(step: Partitioned, word: str) -> int:
    return int(step.program.size_bytes[labelled(step.program, word)].sum())


def linear_layers(n_layers: int, bias: bool = True) -> tuple[nn.Module, tuple[Tensor, Tensor], int]:
    """(model, batch, bytes of its parameters), every parameter divisible by 4."""
    model = nn.Sequential(*(nn.Linear(8, 8, bias) for _ in range(n_layers))).double()
    return model, (images(8, 8), images(8, 8)), 8 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("level, passes", [(1, 1), (2, 1), (3, 2)])
def test_zero_gathers_parameters_and_scatters_gradients(level: int, passes: int) -> None:
    """By ring: each gather or scatter of S bytes sends (N - 1) S, an all-reduce twice that; ZeRO 3 gathers twice.

    The first layer's weights are not read in the backward pass, since its input needs no gradient.
    """
    model, batch, size_bytes = linear_layers(3)
    step = partitioned(captured(model, batch, F.mse_loss), {"shard": 4, "zero": level}, 2, 2)
    again = size_bytes * 2 // 3 if passes == 2 else 0
    assert sent_bytes(step, "parameters") == 3 * (size_bytes + again)
    assert sent_bytes(step, "gradients") == 3 * size_bytes * (2 if level == 1 else 1)
    assert len(collectives(step, "reduce_scatter")) == (level > 1)
    assert len(collectives(step, "all_gather", "parameters")) == (5 if level == 3 else 1)


def test_parameters_are_gathered_one_module_ahead() -> None:
    """The first two gathers wait for nothing, the third for the compute before the second one's module."""
    model, batch, _ = linear_layers(3)
    program = partitioned(captured(model, batch, F.mse_loss), {"shard": 2}, 1, 2).program
    waits = {}
    for module in ("0", "1", "2"):
        labels = [program.labels[label] for label in program.label]
        first = labels.index(f"parameters {module}")
        on = program.dep[program.dep_ptr[first] : program.dep_ptr[first + 1]]
        waits[module] = [labels[op] for op in on.tolist() if program.kind[op] == OpKind.COMPUTE]
    assert waits["0"] == waits["1"] == []
    assert len(waits["2"]) == 1 and waits["2"][0].startswith("0:")


def test_what_is_sharded_and_replicated_is_reduced_on_the_shard_only() -> None:
    """HSDP: the reduce-scatter sends S / 2 a device, the all-reduce over two replicas S / 2 of its shard."""
    model, batch, size_bytes = linear_layers(2)
    step = partitioned(captured(model, batch, F.mse_loss), {"data": 2, "shard": 2}, 2, 2)
    (scatter,), (reduce,) = collectives(step, "reduce_scatter"), collectives(step, "all_reduce", "gradients")
    assert scatter.axes == ("shard",)
    assert reduce.axes == ("data",)
    assert sent_bytes(step, "gradients") == 4 * (size_bytes // 2 + size_bytes // 2)


@pytest.mark.parametrize("n", [2, 4])
def test_a_tensor_parallel_mlp_reduces_its_activations_once_a_pass(n: int) -> None:
    """Column, row: one all-reduce of (B, D) forward, one of the input's gradient backward, none of gradients."""
    width, batch_size = 8, 6
    model = nn.Sequential(nn.Linear(width, width), nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width)).double()
    batch = images(batch_size, width), images(batch_size, width)
    plan = {"tensor": n, "modules": {"0": "replicate"}}
    step = partitioned(captured(model, batch, F.mse_loss), plan, 1, n)
    reduced = collectives(step, "all_reduce")
    assert [[v.shape for v in i.sources] for i in reduced] == [[(batch_size, width)]] * 2
    assert not collectives(step, "all_gather") and not collectives(step, "reduce_scatter")
    assert int(step.program.size_bytes.sum()) == 2 * 2 * (n - 1) * batch_size * width * 8
    cut = {name: value.layout.splits for name, value in step.spmd.inputs.items()}
    assert [s.dim for name in ("1.weight", "1.bias", "3.weight") for s in cut[name]] == [0, 0, 1]
    assert cut["3.bias"] == cut["0.weight"] == ()


def test_attention_is_cut_between_heads(steps: Any) -> None:
    """Three heads of width 4 on two devices: features are cut at 8, so that nothing is gathered within a block."""
    model = gpt(width=12, heads=3, layers=1, tied_head=False)
    step = partitioned(captured(model, TEXT, flat), {"tensor": 2}, 1, 2)
    (query,) = step.spmd.inputs["blocks.0.attention.query.weight"].layout.splits
    (project,) = step.spmd.inputs["blocks.0.attention.project.weight"].layout.splits
    assert query.ranges == project.ranges == ((0, 8), (8, 12))
    assert (query.dim, project.dim) == (0, 1)
    inside = [i for i in step.spmd.instructions if isinstance(i, Fetch) or getattr(i, "kind", "") == "all_gather"]
    assert not [i for i in inside if "blocks" in i.label]
    reduced = [i.label.split(":")[0] for i in collectives(step, "all_reduce") if i.sources[0].shape[-1:] == (12,)]
    assert sorted(reduced) == [
        "blocks.0.attention.project", "blocks.0.attention_norm", "blocks.0.contract", "blocks.0.mlp_norm", "norm",
    ]


def test_modules_are_cut_as_the_plan_says(steps: Any) -> None:
    graph, model, expected = steps("gpt")
    wish = {"blocks.0.expand": "row", "*.query": "replicate", "blocks.*": "column"}
    step = partitioned(graph, {"tensor": 2, "modules": wish}, 1, 2)
    assert_same_step(step.run(model, TEXT), expected)
    cut = {name: [s.dim for s in value.layout.splits] for name, value in step.spmd.inputs.items()}
    assert cut["blocks.0.expand.weight"] == [1]
    assert cut["blocks.0.attention.query.weight"] == []
    assert cut["blocks.0.attention.key.weight"] == cut["blocks.0.contract.weight"] == [0]


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"tensor": 2, "modules": {"*.nope": "row"}}, r"plan\.modules\.'\*\.nope' matches no module with a weight"),
        ({"tensor": 2, "modules": {"*": "diagonal"}}, "'diagonal' must be one of column, row, replicate"),
        ({"data": 2, "modules": {"*": "row"}}, r"plan\.modules is of no use without the axis plan\.tensor"),
        ({"data": 2, "zero": 1}, r"plan\.zero = 1 is of no use without the axis plan\.shard"),
        ({"shard": 2, "zero": 4}, r"plan\.zero = 4 must be 1, 2 or 3"),
        ({"shard": 2, "zero": True}, r"plan\.zero = True must be 1, 2 or 3"),
        ({"shard": 16}, "larger than the mesh"),
        ({"data": 3, "shard": 3}, "batch size 8 < 9 devices"),
    ],
)
def test_a_plan_of_no_use_is_refused(spec: Any, message: str, steps: Any) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        partitioned(steps("mlp")[0], spec, 3, 3)
    assert "\n" not in str(caught.value)


def test_what_is_sharded_needs_less_memory(steps: Any) -> None:
    """Adam on four devices: data > ZeRO 1 > ZeRO 2 >= ZeRO 3; state is cut to a quarter, near enough."""
    graph, _, _ = steps("gpt")
    peaks = {}
    for name, spec in {"data": "data", **{level: {"shard": 4, "zero": level} for level in (1, 2, 3)}}.items():
        step = partitioned(graph, spec, 2, 2)
        for states in (0, 2):
            walk = MemoryWalk(step.spmd, step.plan, dict.fromkeys(step.spmd.gradients, states), VIEWS)
            peaks[name, states] = int(walk.use(4).total_bytes.max())
    parameters = sum(prod(v.shape) * 8 for v in step.spmd.gradients.values())
    assert peaks["data", 2] > peaks[1, 2] >= peaks[2, 2] > peaks[3, 2]
    assert peaks["data", 2] - peaks["data", 0] == 2 * parameters
    assert 2 * parameters / 4 <= peaks[3, 2] - peaks[3, 0] < 1.2 * 2 * parameters / 4
    assert peaks[3, 0] < peaks["data", 0]


def test_a_gathered_parameter_is_held_for_one_pass_only() -> None:
    """Of ten layers on four devices only those in use are whole: far less than all of them."""
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(10)))
    batch = images(4, 64).float(), images(4, 64).float()
    peaks = {}
    for level in (2, 3):
        step = partitioned(captured(model, batch, F.mse_loss), {"shard": 4, "zero": level}, 2, 2, bucket_bytes=1)
        peaks[level] = int(MemoryWalk(step.spmd, step.plan, {}, VIEWS).use(4).total_bytes.max())
    layer = 64 * 64 * 4
    assert peaks[2] > 10 * layer + 10 * layer // 4
    assert peaks[3] < 10 * layer // 4 * 2 + 4 * layer


class Fused(nn.Module):
    """Queries, keys and values by one weight; attention as one operator or as several."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.norm, self.qkv = nn.LayerNorm(16), nn.Linear(16, 48)
        self.out, self.head = nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        y = self.qkv(self.norm(x))
        if self.kind == "unbind":
            q, k, v = y.view(n, t, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (part.view(n, t, 4, 4).transpose(1, 2) for part in y.chunk(3, -1))
        if self.kind == "single operators":
            mixed = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        return self.head(x + self.out(mixed.transpose(1, 2).reshape(n, t, width))).mean(1)


@pytest.mark.parametrize("kind", ["unbind", "chunk", "single operators"])
def test_a_fused_projection_is_cut_within_queries_keys_and_values(kind: str) -> None:
    """Three passes over (B, T, D): after `out`, backward into the norm, and backward into the head's input."""
    torch.manual_seed(0)
    model, batch = Fused(kind).double(), (images(8, 6, 16), classes(8))
    graph = captured(model, batch, F.cross_entropy)
    expected = plain_step(model, batch, F.cross_entropy)
    step = partitioned(graph, {"tensor": 2}, 1, 2)
    assert_same_step(step.run(model, batch), expected)
    weight, bias = (step.spmd.inputs[f"qkv.{name}"].layout.splits[0] for name in ("weight", "bias"))
    assert weight.segments == bias.segments == 3
    assert weight.ranges == bias.ranges == ((0, 8), (8, 16))
    assert not collectives(step, "all_gather") and not any(isinstance(i, Fetch) for i in step.spmd.instructions)
    for plan in ({"data": 2, "tensor": 2}, {"shard": 2, "tensor": 2}):
        other = partitioned(graph, plan, 2, 2, bucket_bytes=1000)
        alone = other.run(model, batch)
        assert_same_step(alone, expected)
        for got in run_ranks(2, lambda comm: other.run(model, batch, comm=comm)):  # noqa: B023
            assert all(torch.equal(got.gradients[name], g) for name, g in alone.gradients.items())


class Singular(nn.Module):
    """An operator that no rule can compute on blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(6, 6).double()

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(self.features(x).view(-1, 3, 2)).sum(1)


def test_an_operator_without_a_rule_gathers_and_says_so() -> None:
    model, batch = Singular(), (images(8, 6), classes(8))

    def loss(y: Tensor, _t: Tensor) -> Tensor:
        return y.square().mean()

    graph = captured(model, batch, loss)
    step = partitioned(graph, "data", 2, 2)
    assert_same_step(step.run(model, batch), plain_step(model, batch, loss))
    (gathered,) = step.spmd.gathered
    assert "svd" in gathered.op and gathered.module == "the model"
    assert gathered.size_bytes == 8 * 6 * 8
    (fetch,) = collectives(step, "all_gather")
    assert sum(prod(v.shape) * 8 for v in fetch.outputs) == gathered.size_bytes
    with pytest.raises(UnsupportedOpError, match=r"svd.* has no sharding rule for an input cut in dim 0 over data"):
        meshemu.emulate(model, batch, loss, system=grid(2, 2), plan="data", strict=True)
    assert meshemu.emulate(model, batch, loss, system=grid(2, 2), plan="data").prepared.gathered == (gathered,)


class Noisy(nn.Module):
    """A random operator that has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(6, 6).double()

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        return y * torch.multinomial(y.detach().exp(), 6)


def test_a_random_operator_without_a_rule_is_refused() -> None:
    graph = captured(Noisy(), (images(8, 6), classes(8)), lambda y, _t: y.square().mean())
    for plan in ("data", {"data": 1}):
        with pytest.raises(UnsupportedOpError, match="multinomial"):
            partitioned(graph, plan, 2, 2)


@pytest.mark.parametrize("plan", ["data", {"shard": 2}, {"shard": 2, "zero": 1}, {"tensor": 2}])
@pytest.mark.parametrize("name", ["conv", "gpt"])
def test_micro_batches_accumulate_gradients_as_plain_pytorch_does(name: str, plan: Any) -> None:
    """Batch norm included: statistics are those of each micro-batch, one after the other."""
    subject, count = SUBJECTS[name], 2
    plain, emulated = subject.make(), subject.make()
    optimizer, losses = sgd(plain.parameters()), []
    for _ in range(2):
        optimizer.zero_grad()
        parts = zip(*(leaf.chunk(count) for leaf in subject.batch), strict=True)
        terms = [subject.loss(plain(inputs), targets) / count for inputs, targets in parts]
        for term in terms:
            term.backward()
        optimizer.step()
        losses.append(sum(float(term.detach()) for term in terms))
    with CAPTURES.of(name):
        result = meshemu.emulate(
            emulated, subject.batch, subject.loss, optimizer=sgd, system=grid(1, 2), plan=plan, steps=2,
            micro_batches=count,
        )  # fmt: skip
    torch.testing.assert_close(result.losses, losses, rtol=1e-10, atol=0)
    for key, tensor in plain.state_dict().items():
        torch.testing.assert_close(emulated.state_dict()[key], tensor, rtol=1e-9, atol=1e-11)
    gradients = [i for i in result.prepared.spmd.instructions if "gradients" in getattr(i, "label", "")]
    assert len([i for i in gradients if isinstance(i, Collective)]) <= 1


@pytest.mark.parametrize("count, message", [(3, "does not divide the batch size 8"), (0, "a whole number >= 1")])
def test_micro_batches_that_do_not_fit_are_refused(count: int, message: str) -> None:
    subject = SUBJECTS["mlp"]
    with pytest.raises(InputError, match=message):
        meshemu.emulate(mlp(), subject.batch, subject.loss, system=grid(1, 2), micro_batches=count)


def test_auto_takes_the_fastest_plan_that_fits() -> None:
    subject = SUBJECTS["mlp"]
    system = meshemu.System.preset("dojo-tile")
    with CAPTURES.of("mlp"):
        chosen, *others = (
            meshemu.emulate(mlp(), subject.batch, subject.loss, system=system, plan=plan, execute=False)
            for plan in ("auto", {"shard": 8}, {"tensor": 25}, {"data": 5, "tensor": [1, 5]})
        )
    prepared = chosen.prepared
    words = prepared.plan.describe()
    assert prepared.reason.startswith(words) and "; next " in prepared.reason and "\n" not in prepared.reason
    assert all(prepared.timed.timing.end_ps <= other.time_ps for other in others)


def test_auto_shards_what_does_not_fit() -> None:
    """Parameters of 2 MB and gradients of as much on devices of 3 MB."""
    model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(8)))
    batch = images(4, 256).float(), images(4, 256).float()
    system = meshemu.System.preset("dojo-tile").override({"node.sram": "8500 B"})
    prepared = meshemu.emulate(model, batch, F.mse_loss, system=system, plan="auto", execute=False).prepared
    assert any(prepared.plan.has(axis) for axis in ("shard", "tensor", "pipeline"))
    assert "do not fit into memory" in prepared.reason
    assert prepared.timed.peak_memory_bytes.max() <= system.device.sram_bytes


def test_a_step_is_computed_on_copies(steps: Any) -> None:
    """Preparing and running a step leaves the module's parameters as they are."""
    graph, model, _ = steps("mlp")
    before = copy.deepcopy(model.state_dict())
    partitioned(graph, *PLANS["zero 3"]).run(model, SUBJECTS["mlp"].batch)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_each_plan_uses_its_collectives(steps: Any) -> None:
    graph, _, _ = steps("mlp")
    kinds = {}
    for plan in ("data", "zero 1", "zero 2", "zero 3"):
        instructions = partitioned(graph, *PLANS[plan]).spmd.instructions
        kinds[plan] = Counter(i.kind for i in instructions if isinstance(i, Collective))
    assert set(kinds["data"]) == {"all_reduce"}
    assert set(kinds["zero 1"]) == {"all_reduce", "all_gather"}
    assert set(kinds["zero 2"]) == set(kinds["zero 3"]) == {"all_reduce", "all_gather", "reduce_scatter"}
    assert kinds["zero 3"]["all_gather"] > kinds["zero 2"]["all_gather"] == 1
