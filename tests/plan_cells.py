"""One cell of the table of models x plans: five steps of training, emulated, against plain PyTorch.

What must be equal: the loss of every step, the gradients of the last one, parameters and buffers after it. Errors are
relative to the largest element of a tensor; or to a regime's `floor` times the largest of all gradients (of all
parameters) where that is more: a bias before a batch norm and a key bias of attention have a gradient of zero in exact
arithmetic, and what rounding leaves of it has no scale of its own.

The plain training goes through the same micro-batches, and draws the same random numbers: every operator that draws
gets them from the counter-based kernels, over the whole tensor, in the order in which plain PyTorch runs operators.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from models_under_test import call, grid
from shared_captures import Captures
from subjects import SUBJECTS
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import meshemu
from meshemu.errors import InputError
from meshemu.execute.compute import step_seed
from meshemu.workload.random_kernels import Stream, bernoulli
from meshemu.workload.spmd import Gathered

STEPS = 5
SAMPLES = 8
SEED = 3
CAPTURES = Captures()

Optimizers = Callable[[Iterable[Tensor]], torch.optim.Optimizer]


def sgd(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)


def adamw(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


@dataclass(frozen=True)
class Regime:
    """A number format, an optimizer, the error that is allowed for both, and what the least size of a tensor is taken
    to be, relative to the largest.
    """

    dtype: torch.dtype
    optimizer: Optimizers
    tolerance: float
    floor: float


REGIMES: Mapping[str, Regime] = MappingProxyType({
    "fp64 with SGD": Regime(torch.float64, sgd, 1e-10, 1e-3),
    "fp64 with AdamW": Regime(torch.float64, adamw, 1e-8, 1e-3),
    "fp32 with SGD": Regime(torch.float32, sgd, 1e-4, 1e-2),
})  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """A plan and the mesh that it is laid out on."""

    spec: Mapping[str, Any]
    rows: int
    cols: int

    @property
    def micro_batches(self) -> int:
        """How many a step goes through."""
        return int(self.spec.get("micro_batches", 1))


PLANS: Mapping[str, Layout] = MappingProxyType({
    "data": Layout({"data": 3}, 1, 3),
    "zero 1": Layout({"shard": 3, "zero": 1}, 1, 3),
    "zero 2": Layout({"shard": 4, "zero": 2}, 2, 2),
    "zero 3": Layout({"shard": 3}, 1, 3),
    "tensor": Layout({"tensor": 2}, 1, 2),
    "spatial": Layout({"spatial": [2, 2]}, 2, 2),
    "pipeline": Layout({"pipeline": 3, "micro_batches": 2}, 1, 3),
    "data x tensor": Layout({"data": 2, "tensor": 2}, 2, 2),
    "data x zero 3 x tensor": Layout({"data": 2, "shard": 2, "tensor": 2}, 2, 4),
    "data x spatial": Layout({"data": 2, "spatial": [1, 2]}, 2, 2),
    "zero 2 x spatial x tensor": Layout({"shard": 2, "zero": 2, "spatial": [2, 1], "tensor": 2}, 2, 4),
    "pipeline x data": Layout({"pipeline": 2, "data": 2, "micro_batches": 2}, 2, 2),
    "pipeline x zero 3 x tensor": Layout(
        {"pipeline": 2, "shard": 2, "tensor": 2, "micro_batches": 2, "order": "gpipe"}, 2, 4
    ),
})  # fmt: skip
"""Uneven where that costs nothing: eight samples on three devices."""


@dataclass(frozen=True)
class Trained:
    """What training leaves: losses of all steps, the last gradients, parameters and buffers by name."""

    losses: list[float]
    gradients: Mapping[str, Tensor]
    state: Mapping[str, Tensor]


@dataclass(frozen=True)
class Cell:
    """One model under one plan. errors: by regime. refusal: why there are none, "" if there are."""

    errors: Mapping[str, float] = field(default_factory=dict)
    size_bytes: int = 0
    gathered: tuple[Gathered, ...] = ()
    refusal: str = ""

    @property
    def passed(self) -> bool:
        """Whether every error is within its tolerance; what is refused did not fail."""
        return all(error <= REGIMES[name].tolerance for name, error in self.errors.items())


def evaluate(model_name: str, plan_name: str, regimes: Iterable[str] = tuple(REGIMES)) -> Cell:
    """The cell of a model and a plan."""
    subject, layout = SUBJECTS[model_name], PLANS[plan_name]
    if "spatial" in layout.spec and not subject.has_images:
        return Cell(refusal="no images")
    errors: dict[str, float] = {}
    result = None
    for name in regimes:
        try:
            result, got = emulated(model_name, layout, REGIMES[name])
        except InputError as error:
            return Cell(refusal=str(error))
        errors[name] = greatest_error(got, plain(model_name, name, layout.micro_batches), REGIMES[name].floor)
    if result is None:
        return Cell()
    return Cell(errors, int(result.prepared.timed.program.size_bytes.sum()), tuple(result.prepared.gathered))


def emulated(model_name: str, layout: Layout, regime: Regime) -> tuple[meshemu.EmulationResult, Trained]:
    """Five steps under a plan."""
    model, batch, loss_fn = SUBJECTS[model_name].made(SAMPLES, regime.dtype)
    with CAPTURES.of(model_name, regime.dtype):
        result = meshemu.emulate(
            model, batch, loss_fn, optimizer=regime.optimizer, system=grid(layout.rows, layout.cols),
            plan=dict(layout.spec), steps=STEPS, seed=SEED,
        )  # fmt: skip
    return result, Trained(result.losses, result.gradients, model.state_dict())


@cache
def plain(model_name: str, regime_name: str, micro_batches: int) -> Trained:
    """Five steps of plain PyTorch, gradients accumulated over micro-batches."""
    regime = REGIMES[regime_name]
    model, batch, loss_fn = SUBJECTS[model_name].made(SAMPLES, regime.dtype)
    optimizer, losses = regime.optimizer(model.parameters()), []
    for step in range(STEPS):
        optimizer.zero_grad()
        terms, draws = [], CountedDraws(SEED, step)
        for k in range(micro_batches):
            inputs, targets = pytree.tree_map(lambda leaf: leaf.chunk(micro_batches)[k], batch)  # noqa: B023
            with draws:
                terms.append(_total(loss_fn(call(model, inputs), targets)) / micro_batches)
            terms[-1].backward()
        optimizer.step()
        losses.append(float(torch.stack(terms).sum().detach()))
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return Trained(losses, gradients, model.state_dict())


def _total(loss: Any) -> Tensor:
    """A loss, or the sum of its terms."""
    if isinstance(loss, Mapping):
        return torch.stack(list(loss.values())).sum()
    assert isinstance(loss, Tensor)
    return loss


CALM = frozenset({torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default})
"""Operators that plain PyTorch takes where there is nothing to draw."""


class CountedDraws(TorchDispatchMode):
    """Operators that draw get the numbers that the emulator's have, by their place in the order of all that draw."""

    def __init__(self, seed: int, step: int) -> None:
        super().__init__()
        self.seed, self.step, self.n_draws = seed, step, 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded not in operator.tags or operator in CALM:
            return operator(*args, **(kwargs or {}))
        assert operator is torch.ops.aten.bernoulli_.float, f"{operator} draws in a way that is not counted"
        self.n_draws += 1
        target, p = (*args, 0.5)[:2]  # its default, which is left out
        shape = tuple(target.shape)
        drawn = bernoulli(shape, {}, Stream(shape, target.dtype), step_seed(self.seed, self.step, self.n_draws), p)
        return target.copy_(drawn)


def greatest_error(got: Trained, wanted: Trained, floor: float) -> float:
    """Of losses, gradients, parameters and buffers, each relative to its own size or to the floor."""
    assert got.gradients.keys() == wanted.gradients.keys()
    assert got.state.keys() == wanted.state.keys()
    losses = (abs(a - b) / abs(b) for a, b in zip(got.losses, wanted.losses, strict=True))
    tensors = ((got.gradients, wanted.gradients), (got.state, wanted.state))
    return max(*losses, *(_error(one, other, floor) for one, other in tensors))


def _error(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor], floor: float) -> float:
    sizes = {name: float(t.double().abs().max()) for name, t in wanted.items() if t.numel()}
    least = floor * max(size for name, size in sizes.items() if wanted[name].is_floating_point())
    errors = []
    for name, size in sizes.items():
        assert got[name].shape == wanted[name].shape and got[name].dtype == wanted[name].dtype, name
        errors.append(float((got[name].double() - wanted[name].double()).abs().max()) / max(size, least))
    return max(errors)
