"""What a step holds at least, before it is captured: never more than it does hold, counted by hand, refused at once."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_under_test import captured, classes, grid, images
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from meshemu import cli
from meshemu.config import load
from meshemu.cost import Update
from meshemu.cost.op_classes import VIEWS
from meshemu.emulator import prepare as preparing
from meshemu.emulator.early import check_early
from meshemu.emulator.least_memory import Least, least_memory
from meshemu.emulator.memory_policy import memory_options
from meshemu.emulator.prepare import prepare
from meshemu.emulator.timed_step import TimingOptions
from meshemu.errors import InputError, PlanError
from meshemu.execute.optimizer import ELEMENTWISE, bind_optimizer, least_update, updates_of
from meshemu.hardware import System
from meshemu.hardware.format_roles import NONE, Formats, formats_of
from meshemu.mesh import flatten
from meshemu.runtime.local import SingleComm
from meshemu.workload.memory import MemoryWalk
from meshemu.workload.models import build_model
from meshemu.workload.partitioning import partition
from meshemu.workload.placement import make_plan
from meshemu.workload.saved import READ, saved_bytes
from meshemu.workload.step_maths import maths_of

ROOT = Path(__file__).resolve().parents[1]
RESNET = [str(ROOT / "configs" / "resnet50.toml"), "--no-execute", "--set", "data.args.image_size=224",
          "data.args.n_samples=2", "data.batch_size=200"]  # fmt: skip


def loss_of(run: Callable[..., Any], item: Any) -> Tensor:
    outputs = run(item[0])
    return F.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), item[1].reshape(-1))


def saved(model: nn.Module, batch: Any, loss: Any = loss_of, **options: Any) -> int | None:
    return saved_bytes(*maths_of(model, batch, loss), **options)


def least_of(model: nn.Module, batch: Any, plan: Any, n: int, formats: Formats = NONE) -> Least:
    """Bytes at least, activations counted whatever they come to. Adam updates parameters."""
    updates = {name: Update("adam") for name, p in model.named_parameters() if p.requires_grad}
    return least_memory(*maths_of(model, batch, loss_of), updates, plan, n, 0, formats)


def exact_bytes(model: nn.Module, batch: Any, plan: Any, micro_batches: int, formats: Formats) -> int:
    graph = captured(model, batch, lambda outputs, targets: loss_of(lambda _: outputs, (None, targets)))
    spmd = partition(graph, plan, 2**20, micro_batches=micro_batches, formats=formats)
    states = dict.fromkeys(spmd.gradients, 2)
    return MemoryWalk(spmd, plan, states, VIEWS, {}, {}, 0, 1, False, ()).use(plan.n_positions).most_bytes


def tokens(n: int, context: int = 16) -> tuple[Tensor, Tensor]:
    return torch.zeros(n, context, dtype=torch.int64), torch.zeros(n, context, dtype=torch.int64)


GPT = {"vocab_size": 40, "context": 16, "width": 32, "heads": 2, "layers": 2}
REGNET = {"num_classes": 4, "stem_width": 8, "widths": [8, 16], "depths": [1, 1], "group_width": 8}
RESNET_ARGS = {"num_classes": 4, "depths": [1, 1, 1, 1], "width": 8}
PICTURES = images(8, 3, 32, 32).float(), classes(8, n=4)


@pytest.mark.parametrize(
    ("name", "arguments", "batch", "plan", "micro_batches", "formats"),
    [
        ("gpt", GPT, tokens(8), {"data": 4}, 1, {}),
        ("gpt", GPT, tokens(8), {"shard": 2, "data": 2}, 1, {}),
        ("gpt", GPT, tokens(8), {"tensor": 2, "data": 2}, 1, {}),
        ("gpt", GPT, tokens(8), {"data": 2}, 4, {"activations": "bf16", "weights": "cfloat8_1_4_3"}),
        ("gpt", GPT, tokens(8), {"pipeline": 2, "data": 2}, 2, {}),
        ("regnet", REGNET, PICTURES, {"data": 4}, 1, {}),
        ("regnet", REGNET, PICTURES, {"spatial": [2, 2]}, 1, {}),
        ("resnet50", RESNET_ARGS, PICTURES, {"data": 2, "spatial": [2, 1]}, 1, {}),
        ("resnet50", RESNET_ARGS, PICTURES, {"data": 4}, 1, {"activations": "cfloat8_1_4_3"}),
    ],
)  # fmt: skip
def test_no_step_holds_less(
    name: str, arguments: Any, batch: Any, plan: Any, micro_batches: int, formats: dict[str, str]
) -> None:
    model = build_model(name, arguments)
    made = make_plan({**plan, **({"micro_batches": micro_batches} if "pipeline" in plan else {})}, flatten(grid(2, 2)))
    part = tuple(leaf[: 8 // micro_batches] for leaf in batch)
    roles = formats_of(formats)
    least = least_of(model, part, made, 4, roles)
    exact = exact_bytes(model, part, made, micro_batches, roles)
    for held in (least.at_end(), least.at_turn()):
        assert sum(held.values()) <= exact
    assert least.activations > 0
    if plan == {"data": 4} and not formats:
        assert sum(least.at_turn().values()) > 0.6 * exact, "a bound that is far away refuses nothing"


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "linear": lambda n: nn.Linear(n, n), "relu": lambda _: nn.ReLU(inplace=True), "gelu": lambda _: nn.GELU(),
    "norm": nn.LayerNorm, "tanh": lambda _: nn.Tanh(), "silu": lambda _: nn.SiLU(),
    "sigmoid": lambda _: nn.Sigmoid(), "frozen": lambda n: nn.Linear(n, n).requires_grad_(False),
    "dropout": lambda _: nn.Dropout(0.3), "softmax": lambda _: nn.Softmax(-1),
}  # fmt: skip


@given(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=6), st.integers(1, 4))
@settings(max_examples=12, derandomize=True, deadline=None)
def test_no_chain_of_layers_holds_less(names: list[str], parts: int) -> None:
    model = nn.Sequential(*(LAYERS[name](8) for name in names), nn.Linear(8, 5))
    batch, plan = (torch.zeros(13, 8), classes(13, n=5)), make_plan({"data": parts}, flatten(grid(1, 4)))
    least = least_of(model, batch, plan, 4)
    assert sum(least.at_turn().values()) <= exact_bytes(model, batch, plan, 1, NONE)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 24, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.view(*x.shape[:2], 2, 4).transpose(1, 2) for part in self.project(x).chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)


class Products(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.bmm((x @ self.weight)[:, None], x[:, :, None])
        return torch.baddbmm(y, y, y)[:, 0] * (x @ self.weight)


ALL = {
    "linear": (nn.Linear(8, 5), 1), "relu": (nn.Sequential(nn.Linear(8, 5), nn.ReLU()), 1 + 5 / 8),
    "twice the same": (nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5)), 1 + 1),
    "gelu": (nn.Sequential(nn.Linear(8, 8), nn.GELU()), 1 + 1), "tanh": (nn.Sequential(nn.Linear(8, 8), nn.Tanh()), 2),
    "silu": (nn.Sequential(nn.Linear(8, 8), nn.SiLU()), 2),
    "sigmoid": (nn.Sequential(nn.Linear(8, 8), nn.Sigmoid()), 2),
    "softmax": (nn.Sequential(nn.Linear(8, 8), nn.Softmax(-1)), 2),
    "layer norm": (nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), 2),
    "weights alone": (nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8, bias=False)), 2),
    "frozen": (nn.Sequential(nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 5)), 1),
}  # fmt: skip
"""Name -> (model, tensors as large as its input that the backward pass reads)."""


@pytest.mark.parametrize("name", ALL)
def test_counted_by_hand(name: str) -> None:
    model, tensors = ALL[name]
    batch = torch.zeros(16, 8), torch.zeros(16, dtype=torch.int64)
    assert saved(model, batch) == 16 * 8 * 4 * tensors
    assert saved(model, batch, itemsize=2) == 16 * 8 * 2 * tensors


def test_images_and_attention_by_hand() -> None:
    pictures = torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(4 * 64, 5))
    same, strided = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 2, stride=2)
    norm = nn.Sequential(same, nn.BatchNorm2d(4), nn.ReLU(), *flat)
    assert saved(norm, pictures) == 4 * 2 * 64 * (3 + 4 + 4), "the input, what is normalised, the rectified one, once"
    group = nn.Sequential(same, nn.GroupNorm(2, 4), *flat)
    assert saved(group, pictures) == 4 * 2 * 64 * (3 + 4 + 4)
    pooled = nn.Sequential(strided, nn.MaxPool2d(4, 4), nn.Flatten(), nn.Linear(4, 5))
    assert saved(pooled, pictures) == 4 * 2 * 4, "what is only pooled, and windows that leave out rows, do not count"
    words = torch.zeros(2, 6, 8), torch.zeros(2, 6, dtype=torch.int64)
    assert saved(nn.Sequential(Attention(), nn.Linear(8, 5)), words) == 4 * 2 * 6 * 8 * (1 + 3 + 1)


def test_every_operator_of_the_table_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that torch does not have would never count."""
    seen: set[str] = set()

    class Spy(dict[str, Any]):
        def get(self, name: str, default: Any = None) -> Any:
            seen.add(name)
            return READ.get(name, default)

    monkeypatch.setattr("meshemu.workload.saved.READ", Spy())
    for model in (m for m, _ in ALL.values()):
        saved(model, (torch.zeros(16, 8), torch.zeros(16, dtype=torch.int64)))
    saved(Products(), (torch.zeros(4, 8), torch.zeros(4, dtype=torch.int64)))
    saved(Attention(), (torch.zeros(2, 6, 8), torch.zeros(2, 6, dtype=torch.int64)))
    pictures = torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.int64)
    layers = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)
    saved(nn.Sequential(*layers), pictures, lambda run, item: run(item[0]).square().sum())
    assert READ.keys() <= seen


def test_what_cannot_be_counted_is_not() -> None:
    batch = torch.zeros(4, 8), torch.zeros(4, dtype=torch.int64)

    class Asking(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * float(x.sum().item())

    class Again(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(lambda y: torch.tanh(super(Again, self).forward(y)), x, use_reentrant=False)

    assert saved(Asking(8, 8), batch) is None
    assert saved(Again(8, 8), batch) is None, "what a model makes again itself is left to the exact count"
    assert saved(nn.GRU(8, 8, batch_first=True), batch, lambda run, item: run(item[0][None])[0].sum()) is None
    assert saved_bytes(*maths_of(nn.Linear(8, 8), batch, loss_of, gradients=False)) is None


def step(width: int, batch: int, sram_bytes: int, plan: Any = "data", when_full: str = "refuse") -> Any:
    model = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(width, width), nn.GELU())])
    system = System.preset("dojo-tile").override({"node.sram": sram_bytes // 354})
    return prepare(
        model, (torch.zeros(batch, width), torch.zeros(batch, dtype=torch.int64)), loss_of, system=system, plan=plan,
        options=TimingOptions(), comm=SingleComm(), memory=memory_options({"when_full": when_full}),
        optimizer=bind_optimizer(model, torch.optim.SGD),
    )  # fmt: skip


@pytest.mark.parametrize("plan", ["data", "auto"])
def test_activations_are_refused_before_the_model_is_captured(plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve tensors of 25,000 x 16 numbers over 25 devices are 768 kB each."""
    monkeypatch.setattr(preparing, "checked_maths", None)
    with pytest.raises(PlanError) as refusal:
        step(16, 25_000, 600_000, plan)
    text = str(refusal.value)
    assert "when the backward pass begins: " in text and "activations 768 kB, a share of the 19.2 MB" in text
    assert "no batch of more than" in text and "memory.when_full = recompute" in text


def test_no_larger_batch_than_it_says_fits() -> None:
    with pytest.raises(PlanError, match=r"no batch of more than (\d+) samples") as refusal:
        step(16, 25_000, 600_000)
    most = int(str(refusal.value).split("no batch of more than ")[1].split()[0])
    with pytest.raises(PlanError, match="when the backward pass begins"):
        step(16, most + 26, 600_000)
    with pytest.raises(PlanError, match=r"needs .*; by estimate it fits with .*a batch of") as exact:
        step(16, most // 25 * 25, 600_000)
    assert "when the backward" not in str(exact.value)


def test_what_can_be_made_again_or_is_let_pass_is_not_refused_early() -> None:
    assert step(16, 2500, 80_000, when_full="allow").timed.timing.end_ps > 0
    assert step(16, 2500, 80_000, when_full="recompute").timed.memory.most_bytes <= 80_000


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_updates_by_the_table_alone(name: str) -> None:
    model = nn.Linear(2, 2)
    for options in ({}, {"weight_decay": 0.1}, {"momentum": 0.9}):
        try:
            optimizer = bind_optimizer(model, lambda p, o=options: ELEMENTWISE[name](p, lr=0.1, **o))
        except Exception:
            continue  # not an option of this one
        assert least_update({"name": name, "lr": 0.1, **options}) == updates_of(model, optimizer)["weight"]
    groups = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "groups": ({"match": "*", "momentum": 0.0},)}
    assert least_update(groups).n_states == 0


def test_a_configuration_is_refused_before_the_run_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("meshemu.emulator.running.run", None)
    assert cli.main(["run", "-o", str(tmp_path / "r.h5"), *RESNET]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "activations 669.6 MB, a share of the 16.74 GB" in line
    assert not list(tmp_path.iterdir())


def test_the_early_check_says_what_the_run_would(tmp_path: Path) -> None:
    import meshemu

    changes = ["model.args.depths=[1,1,1,1]", "data.args.n_samples=2", "data.args.image_size=64",
               "system.node.sram=20 kB"]  # fmt: skip
    config = load(ROOT / "configs" / "resnet50.toml", changes)
    with pytest.raises(PlanError) as early:
        check_early(config)
    with pytest.raises(PlanError) as late:
        meshemu.run(config, tmp_path / "r.h5", execute=False)
    assert str(early.value) == str(late.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["plan.pipeline=5"], "larger than the mesh"),
        (["plan.data=26", "formats.weights=bf16"], "larger than the mesh"),
        (["system.node.grid=[0,1]"], "node.grid"),
        (["data.args.n_samples=3"], "data python_source has no argument 'n_samples'"),
        (["model.args.heads=7"], "heads"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_built(
    changes: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("meshemu.emulator.running.run", None)
    assert cli.main(["run", str(ROOT / "configs" / "gpt.toml"), "--set", *changes]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_what_torch_says_of_tensors_without_values_is_left_to_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: Any, **_options: Any) -> nn.Module:
        raise InputError("model gpt: no values") from RuntimeError("no values")

    monkeypatch.setattr("meshemu.emulator.early.models.build_model", refused)
    check_early(load(ROOT / "configs" / "gpt.toml", []))


WIDE_GPT = ["model.args.width=4096", "model.args.layers=24"]


@pytest.mark.parametrize(
    ("config", "changes"), [(RESNET[0], RESNET[3:]), (str(ROOT / "configs" / "gpt.toml"), WIDE_GPT)]
)
def test_the_early_check_loads_neither_compiler_nor_symbolic_algebra(config: str, changes: list[str]) -> None:
    program = (
        "import sys; from meshemu.config import load; from meshemu.emulator.early import check_early\n"
        f"try: check_early(load({config!r}, {changes!r}))\n"
        "except Exception as error: print(type(error).__name__)\n"
        "print(*sorted({'torch._dynamo', 'sympy', 'numba', 'h5py', 'pandas', 'mpi4py'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.split() == ["PlanError"], done.stderr
