"""Training steps whose values have number formats by role: where they are rounded, and that ranks cannot be seen."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from models_under_test import captured, classes, grid, images
from torch import Tensor, nn
from torch.nn import functional as F

import meshemu
from meshemu.comm import Comm
from meshemu.emulator.build_step import BuiltStep, StepOptions, build_step
from meshemu.errors import InputError
from meshemu.execute.blocks import Host
from meshemu.execute.executor import Executor
from meshemu.hardware.format_roles import formats_of
from meshemu.hardware.number_formats import FORMATS
from meshemu.mesh import flatten, regions
from meshemu.program.ir import Program
from meshemu.runtime.local import SingleComm, run_ranks
from meshemu.workload.formats.maxima import Maxima
from meshemu.workload.formats.places import stored_nodes
from meshemu.workload.formats.rounding import round_to
from meshemu.workload.formats.tracking import tracked_keys
from meshemu.workload.placement import make_plan

ROLES = ("weights", "activations", "gradients")
NARROW = {
    "weights": {"format": "cfloat8_1_4_3", "rounding": "stochastic"},
    "activations": {"format": "cfloat8_1_4_3", "rounding": "stochastic"},
    "gradients": {"format": "cfloat8_1_5_2", "rounding": "stochastic"},
    "communication": {"format": "cfloat8_1_5_2", "rounding": "stochastic"},
}
FIXED = {
    **{role: {"format": "cfloat8_1_4_3", "bias": 8} for role in ("weights", "activations")},
    "gradients": "cfloat16_shp", "communication": "bf16",
}  # fmt: skip


def pictures() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1),
        nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


class Language(nn.Module):
    """A block of a transformer: a fused projection, cut between heads; a tied table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(12, 16)
        self.norm = nn.LayerNorm(16)
        self.fused = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        q, k, v = (t.view(*t.shape[:2], 2, 8).transpose(1, 2) for t in self.fused(self.norm(x)).split(16, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(y)
        return F.linear(x + self.down(F.gelu(self.up(x))), self.table.weight).flatten(0, 1)


def of_tokens(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets.flatten())


PICTURES = images(8, 3, 12, 12).float(), classes(8)
TOKENS = classes(8, 6, n=12), classes(8, 6, n=12, seed=3)
SUBJECTS: dict[str, tuple[Any, Any, Any]] = {
    "pictures": (pictures, PICTURES, F.cross_entropy), "language": (Language, TOKENS, of_tokens),
}  # fmt: skip


MODELS = {name: make() for name, (make, _, _) in SUBJECTS.items()}


def built(
    subject: str,
    plan: Any,
    rows: int,
    cols: int,
    formats: Mapping[str, Any],
    n_micro: int = 1,
    *,
    algorithm: str = "ring",
    clip_norm: float | None = 1.0,
) -> BuiltStep:
    _, batch, loss_fn = SUBJECTS[subject]
    mesh = flatten(grid(rows, cols))
    part = tuple(leaf[: len(leaf) // n_micro] for leaf in batch)
    graph = captured(MODELS[subject], part, loss_fn)
    options = StepOptions(
        {}, algorithm, 2000, micro_batches=n_micro, clip_norm=clip_norm, formats=formats_of(formats)
    )
    return build_step(graph, make_plan(plan, mesh), mesh, grid(rows, cols), options)


def two_steps(step: BuiltStep, subject: str, rows: int, cols: int, comm: Comm | None = None) -> dict[str, Tensor]:
    """Losses and gradients of two steps, the second with half the weights: running maxima matter."""
    comm = comm or SingleComm()
    model, batch = MODELS[subject], SUBJECTS[subject][1]
    ranks = regions(rows, cols, comm.size)[list(step.plan.devices)].astype("int64")
    executor = Executor(step.spmd, Host(step.plan, comm.rank, ranks), step.schedules, comm)
    results: dict[str, Tensor] = {}
    for i in range(2):
        state = {name: (0.5**i * t.detach()) for name, t in model.named_parameters()} | dict(model.named_buffers())
        result = executor.run({**state, "batch.0": batch[0], "batch.1": batch[1]}, seed=3, step=i)
        assert result.loss is not None
        results |= {f"{i} loss": result.loss} | {f"{i} {name}": g for name, g in result.gradients.items()}
    return results


PLANS = [
    ("pictures", {"data": 4}, 2, 2, NARROW, 3), ("pictures", {"spatial": [2, 2]}, 2, 2, NARROW, 4),
    ("pictures", {"data": 2, "spatial": [2, 2]}, 4, 2, NARROW, 4), ("pictures", {"shard": 4}, 2, 2, NARROW, 3),
    ("pictures", {"pipeline": 2, "data": 2}, 2, 2, NARROW, 3), ("pictures", {"spatial": [3, 1]}, 3, 1, FIXED, 2),
    ("language", {"tensor": 2, "data": 2}, 2, 2, NARROW, 4), ("language", {"shard": 2, "data": 2}, 2, 2, FIXED, 2),
]  # fmt: skip


@pytest.mark.parametrize(("subject", "plan", "rows", "cols", "formats", "n_ranks"), PLANS, ids=lambda p: str(p)[:40])
def test_bits_do_not_depend_on_ranks(
    subject: str, plan: Any, rows: int, cols: int, formats: Any, n_ranks: int
) -> None:
    step = built(subject, plan, rows, cols, formats, 2 if "pipeline" in plan else 1)
    alone = two_steps(step, subject, rows, cols)
    assert alone["0 loss"] != alone["1 loss"]
    for found in run_ranks(n_ranks, lambda comm: two_steps(step, subject, rows, cols, comm)):
        assert found.keys() == alone.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in alone.items())


@pytest.mark.parametrize("algorithm", ["ring", "tree"])
def test_every_hop_of_a_sum_is_in_the_format_of_communication(algorithm: str) -> None:
    """The sum is sent too, so it lies on the grid; it is near the exact one, and not the exact one rounded once."""
    f = FORMATS["cfloat8_1_4_3"]
    formats = {"communication": {"format": f.name, "bias": 14}}
    exact, found = (
        two_steps(built("pictures", {"data": 4}, 2, 2, given, algorithm=algorithm, clip_norm=None), "pictures", 2, 2)
        for given in ({}, formats)
    )
    name = "0 8.weight"
    assert torch.equal(round_to(found[name], f, 14), found[name])
    assert not torch.equal(round_to(exact[name], f, 14), found[name])
    assert float((found[name] - exact[name]).norm() / exact[name].norm()) < 0.1
    assert torch.equal(found["0 loss"], exact["0 loss"])


@pytest.mark.parametrize("subject", SUBJECTS)
def test_plans_agree_as_far_as_eight_bits_do(subject: str) -> None:
    """Random bits are those of global elements, so a plan changes sums, and with them few roundings."""
    formats = {role: NARROW[role] for role in ROLES}
    whole = two_steps(built(subject, {"data": 1}, 1, 1, formats), subject, 1, 1)
    plan = {"spatial": [2, 2]} if subject == "pictures" else {"tensor": 2}
    found = two_steps(built(subject, plan, 2, 2, formats), subject, 2, 2)
    for i in range(2):
        torch.testing.assert_close(found[f"{i} loss"], whole[f"{i} loss"], rtol=0.02, atol=0)
    other = two_steps(built(subject, {"data": 1}, 1, 1, {}), subject, 1, 1)
    assert not torch.equal(other["0 loss"], whole["0 loss"])


def trained(formats: Any, **options: Any) -> Any:
    model = pictures()
    result = meshemu.emulate(
        model, PICTURES, F.cross_entropy, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2), steps=3,
        formats=formats, **{"system": grid(2, 2), "plan": "data", **options},
    )  # fmt: skip
    return result, {name: t.clone() for name, t in model.state_dict().items()}


def test_fp32_by_role_changes_nothing() -> None:
    every = dict.fromkeys((*ROLES, "communication", "optimizer"), "fp32")
    (plain, before), (given, after) = trained(None), trained(every)
    assert plain.losses == given.losses and plain.time_ps == given.time_ps
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not [remark for remark in given.prepared.remarks if remark.startswith("formats")]


class Stored(torch.autograd.Function):
    """Rounds what passes, and the gradient that comes back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.bfloat16().float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.bfloat16().float()


class Weights(Stored):
    """Rounds the weights that are read; their gradient is rounded when it is whole."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


def by_hand(model: nn.Sequential, batch: tuple[Tensor, Tensor], steps: int) -> list[float]:
    """Linear, GELU, Linear, trained in bf16 by role with SGD and momentum, in plain PyTorch."""
    first, _, last = model
    momenta: dict[nn.Parameter, Tensor] = {}
    losses = []
    for _ in range(steps):
        x = Stored.apply(F.linear(batch[0], Weights.apply(first.weight), first.bias))  # type: ignore[arg-type]
        x = Stored.apply(F.gelu(x))
        loss = F.cross_entropy(Stored.apply(F.linear(x, Weights.apply(last.weight), last.bias)), batch[1])  # type: ignore[arg-type]
        parameters = list(model.parameters())
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            gradient = g.bfloat16().float()
            momentum = gradient if p not in momenta else momenta[p].mul(0.9).add(gradient)
            with torch.no_grad():
                p.add_(momentum, alpha=-0.1)
            momenta[p] = momentum.bfloat16().float()
        losses.append(float(loss.detach()))
    return losses


def test_bf16_by_role_is_bf16_by_hand() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 5))
    plain, fp32 = copy.deepcopy(model), copy.deepcopy(model)
    batch = images(8, 12).float(), classes(8)

    def emulated(module: nn.Module, formats: Any, plan: Any = "data", system: Any = None) -> list[float]:
        losses: list[float] = meshemu.emulate(
            module, batch, F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), steps=4,
            formats=formats, system=system or grid(1, 1), plan=plan,
        ).losses  # fmt: skip
        return losses

    formats = dict.fromkeys((*ROLES, "communication", "optimizer"), "bf16")
    start = copy.deepcopy(model)
    expected = by_hand(plain, batch, 4)
    assert emulated(model, formats) == expected
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), plain.parameters(), strict=True))
    unrounded = emulated(fp32, None)
    assert max(abs(a - b) for a, b in zip(unrounded, expected, strict=True)) > 1e-4
    torch.testing.assert_close(emulated(start, formats, {"data": 4}, grid(2, 2)), expected, rtol=2**-7, atol=0)


def test_values_lie_on_the_grid_of_their_format() -> None:
    """Also where terms of a product are on several devices: they are rounded once they have been summed."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 40, bias=False), nn.Linear(40, 8, bias=False))
    x, f = images(30, 6).float(), FORMATS["cfloat8_1_4_3"]
    first, second = (round_to(layer.weight.detach(), f, 9) for layer in model)  # type: ignore[arg-type]
    wanted = round_to(round_to(x @ first.t(), f, 9) @ second.t(), f, 9)
    rounding = {"format": f.name, "bias": 9}
    for plan in ("data", {"tensor": 2}):
        found = meshemu.evaluate(
            model, (x, x), formats={"activations": rounding, "weights": rounding}, system=grid(1, 2), plan=plan
        ).metrics["metric"]
        torch.testing.assert_close(found, wanted, rtol=0.13, atol=2**-10)
        assert torch.equal(round_to(found, f, 9), found)


def test_what_is_stored() -> None:
    graph = captured(pictures(), PICTURES, F.cross_entropy)
    stored = {node.name: role for node, role in stored_nodes(graph).items()}
    forward = {name for name, role in stored.items() if role == "activations"}
    assert forward == {"convolution", "getitem", "convolution_1", "gelu", "addmm"}  # getitem: of the batch norm
    gradients = {name for name, role in stored.items() if role == "gradients"}
    expected = {"_log_softmax_backward_data", "mm", "gelu_backward", "getitem_7", "getitem_10"}
    assert expected <= gradients and not [name for name in gradients if name.startswith(("nll", "sum", "t_"))]
    leaves = {node.name for node in graph.gradients.values()}
    assert not leaves & set(stored)


def message_bytes(program: Program, word: str) -> int:
    chosen = [word in program.labels[i] for i in program.label[program.send_op]]
    return int(program.size_bytes[chosen].sum())


def test_messages_memory_and_traffic_shrink_with_the_formats() -> None:
    stored, carried = {role: NARROW[role] for role in ROLES}, {"communication": "cfloat8_1_5_2"}
    plain, narrow, both, sent = (
        built("pictures", {"spatial": [2, 2]}, 2, 2, formats) for formats in ({}, stored, stored | carried, carried)
    )
    for word, program, shrunk in (
        ("convolution_1 halo", narrow.program, 4), ("halo adjoint", narrow.program, 1),
        ("halo adjoint", both.program, 4), ("gradients 0", narrow.program, 1), ("gradients 0", both.program, 4),
        ("batch_norm", both.program, 1), ("convolution_1 halo", sent.program, 4),
    ):  # fmt: skip
        before = message_bytes(plain.program, word)
        assert before and message_bytes(program, word) * shrunk == before, word
    assert int(narrow.peak_memory_bytes.max()) < 0.65 * int(plain.peak_memory_bytes.max())
    for column in ("read_bytes", "write_bytes"):
        assert getattr(narrow.program, column).sum() < 0.6 * getattr(plain.program, column).sum()
    assert {"cfloat8_1_4_3", "cfloat8_1_5_2"} <= set(narrow.program.number_formats)
    assert (plain.program.flops.sum() - narrow.program.flops.sum()) == 0


@pytest.mark.parametrize("role", ["weights", "communication"])
def test_gathered_weights_travel_in_their_format(role: str) -> None:
    plain, narrow = (
        built("language", {"shard": 4}, 2, 2, formats)
        for formats in ({}, {role: {"format": "cfloat8_1_4_3", "bias": 8}})
    )
    before, after = (message_bytes(step.program, "parameters") for step in (plain, narrow))
    cut = [p.numel() for p in MODELS["language"].parameters() if p.dim() < 2]
    passes = before / (3 * 4 * sum(p.numel() for p in MODELS["language"].parameters()))
    vectors = passes * 3 * 4 * sum(cut)  # each device sends its quarter to three, all in fp32
    assert after == (before - vectors) / 4 + vectors


def test_optimizer_state_is_stored_rounded() -> None:
    formats = {"optimizer": {"format": "cfloat16_shp", "rounding": "stochastic"}, "second_moments": "cfloat16_uhp"}
    result, _ = trained(formats)
    fp32, _ = trained(None)
    states = result.optimizer.state.values()
    assert states
    for state in states:
        squares = state["exp_avg_sq"]
        assert torch.equal(round_to(squares, FORMATS["cfloat16_uhp"]), squares) and bool((squares >= 0).all())
        moment = state["exp_avg"]
        if moment.abs().max() > 0:
            bias = FORMATS["cfloat16_shp"].fitting_bias(float(moment.abs().max()))
            assert torch.equal(round_to(moment, FORMATS["cfloat16_shp"], bias), moment)
    assert result.losses != fp32.losses

    def update_bytes(program: Program) -> int:
        chosen = [label == "optimizer" for label in (program.labels[i] for i in program.label)]
        return int(program.read_bytes[chosen].sum())

    n = 4 * sum(p.numel() for p in pictures().parameters())  # on four devices
    assert update_bytes(fp32.program) - update_bytes(result.program) == 4 * n


def test_running_maxima_are_those_of_all_ranks_and_decay() -> None:
    def follow(comm: Comm) -> list[float | None]:
        maxima = Maxima()
        found = [maxima.running("x")]
        for step in range(4):
            block = torch.full((2,), float(comm.rank + 1) if step == 0 else 0.1)
            block[0] = float("inf") if step == 3 else -block[1]
            maxima.tracker("x").note(block)
            maxima.end_step(comm)
            found.append(maxima.running("x"))
        again = Maxima()
        again.load_state_dict(maxima.state_dict())
        assert again.running("x") == maxima.running("x")
        return found

    for found in run_ranks(3, follow):
        assert found == [None, 3.0, *(pytest.approx(3 * 0.9**i) for i in (1, 2, 3))]


def test_a_sliding_bias_follows_what_a_fixed_one_loses() -> None:
    """Inputs far from one: with its own biases the step loses little, with a bias for ones everything."""
    model = nn.Linear(16, 8, bias=False)
    x = 1e-5 * images(64, 16).float()
    exact = model(x).detach()

    def error(bias: Any) -> float:
        formats = {"activations": {"format": "cfloat8_1_4_3", "bias": bias}}
        found = meshemu.evaluate(model, (x, x), formats=formats, system=grid(1, 2)).metrics["metric"]
        return float((found - exact).norm() / exact.norm())

    assert error("sliding") < 0.04
    assert error(7) == 1.0


def test_every_sliding_tensor_is_tracked_and_said() -> None:
    formats = {role: NARROW[role] for role in ROLES}
    result, _ = trained(formats)
    keys = tracked_keys(result.prepared.spmd)
    assert {"weights 0.weight", "weights 8.weight", "activations addmm", "gradients of 0.bias"} <= keys
    remarks = " ".join(remark for remark in result.prepared.remarks if remark.startswith("formats:"))
    assert f"{len(keys)} biases" in remarks and "cfloat8_1_5_2, stochastic rounding" in remarks
    assert not tracked_keys(trained(FIXED | {"gradients": "bf16"})[0].prepared.spmd)


MODEL = nn.Linear(6, 5)
BATCH = images(4, 6).float(), classes(4)


@pytest.mark.parametrize(
    ("formats", "said"),
    [
        ({"weights": "fp8"}, r"formats.weights = 'fp8' is no number format; there are fp32, bf16, fp16"),
        ({"weight": "bf16"}, r"formats.weight: unknown role; valid are weights, activations, gradients, communication"),
        ({"weights": {"name": "bf16"}}, r"formats.weights.name: unknown key; valid are format, rounding, bias"),
        ({"weights": {"bias": 3}}, r"formats.weights.format is missing"),
        ({"weights": {"format": "cfloat8_1_4_3", "bias": 64}}, r"formats.weights.bias = 64: of cfloat8_1_4_3, a bias"),
        ({"weights": {"format": "bf16", "bias": 7}}, r"formats.weights.bias = 7: of bf16, its bias is always 127"),
        ({"gradients": {"format": "bf16", "rounding": "up"}}, r"gradients.rounding = 'up' is not one of nearest, s"),
        ({"gradients": "cfloat16_uhp"}, r"formats.gradients = 'cfloat16_uhp': it has no sign"),
        ([("weights", "bf16")], r"formats = .*should be a table of weights, activations"),
    ],
)  # fmt: skip
def test_wrong_formats_are_refused(formats: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        meshemu.emulate(MODEL, BATCH, F.cross_entropy, system=grid(1, 2), formats=formats)
    assert "\n" not in str(caught.value)


class Branches(nn.Module):
    """Takes a path that values decide."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y if float(y.sum()) > 0 else 2 * y


def test_decisions_on_values_are_not_taken_for_rounded_ones() -> None:
    with pytest.raises(InputError, match="values that formats round") as caught:
        meshemu.emulate(Branches(), BATCH, F.cross_entropy, system=grid(1, 2), formats={"activations": "bf16"})
    assert "\n" not in str(caught.value)


def test_running_maxima_are_state_of_the_executor() -> None:
    """A run that goes on from the state of another gives the same bits, and does not learn the maxima again."""
    step = built("pictures", {"data": 2}, 1, 2, {role: NARROW[role] for role in ROLES})
    ranks = regions(1, 2, 1)[list(step.plan.devices)].astype("int64")
    batch = {"batch.0": PICTURES[0], "batch.1": PICTURES[1]}
    model = MODELS["pictures"]
    state = {name: t.detach() for name, t in [*model.named_parameters(), *model.named_buffers()]}

    def executor(maxima: Maxima) -> Executor:
        return Executor(step.spmd, Host(step.plan, 0, ranks), step.schedules, SingleComm(), maxima)

    first = executor(Maxima())
    first.run({**state, **batch}, seed=1, step=0)
    saved = first.maxima.state_dict()
    resumed = Maxima()
    resumed.load_state_dict(saved)
    halved = {name: t if t.dtype == torch.int64 else 0.25 * t for name, t in state.items()}
    wanted = first.run({**halved, **batch}, seed=1, step=1)
    found = executor(resumed).run({**halved, **batch}, seed=1, step=1)
    fresh = executor(Maxima()).run({**halved, **batch}, seed=1, step=1)
    assert all(torch.equal(found.gradients[name], gradient) for name, gradient in wanted.gradients.items())
    assert not all(torch.equal(fresh.gradients[name], gradient) for name, gradient in wanted.gradients.items())


def test_models_that_do_not_compute_in_fp32_are_refused() -> None:
    given: dict[str, Any] = {"system": grid(1, 2), "formats": {"weights": "bf16"}}
    with pytest.raises(InputError, match=r"formats: the model must be in fp32, and weight is torch.float64"):
        meshemu.emulate(nn.Linear(6, 5).double(), BATCH, F.cross_entropy, **given)
    with pytest.raises(InputError, match=r"formats: not together with autocast"):
        meshemu.emulate(MODEL, BATCH, F.cross_entropy, autocast=torch.bfloat16, **given)
