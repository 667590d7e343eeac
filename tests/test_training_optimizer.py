"""Optimizers: element by element, with the work that torch does, from a configuration, group by group."""

import warnings
from typing import Any

import pytest
import torch
from models_under_test import classes, grid, images
from shared_captures import Captures
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import meshemu
from meshemu.config import OPTIMIZER_NAMES
from meshemu.cost import TensorSpec, Update, op_work
from meshemu.cost.op_classes import OPTIMIZERS
from meshemu.errors import InputError
from meshemu.execute.optimizer import ELEMENTWISE, bind_optimizer, make_optimizer, updates_of

CAPTURES = Captures()
OPTIONS: dict[str, dict[str, Any]] = {
    "sgd": {}, "sgd_momentum": {"momentum": 0.9}, "sgd_nesterov": {"momentum": 0.9, "nesterov": True},
    "adam": {}, "adam_amsgrad": {"amsgrad": True}, "adamw": {}, "adamw_amsgrad": {"amsgrad": True},
    "nadam": {}, "nadamw": {"decoupled_weight_decay": True}, "radam": {}, "radamw": {"decoupled_weight_decay": True},
    "adamax": {}, "adagrad": {}, "adadelta": {}, "rmsprop": {}, "rmsprop_momentum": {"momentum": 0.9},
    "rmsprop_centered": {"centered": True}, "rmsprop_centered_momentum": {"centered": True, "momentum": 0.9},
    "rprop": {}, "asgd": {"t0": 1},
}  # fmt: skip
CLASS_OF = {"nadamw": "nadam", "radamw": "radam"}
DECAYS = [False, True]


def make(op_class: str, parameters: Any, decay: bool) -> torch.optim.Optimizer:
    kind = ELEMENTWISE[CLASS_OF.get(op_class, op_class.partition("_")[0])]
    options = OPTIONS[op_class] | ({"weight_decay": 0.1 if decay else 0.0} if op_class != "rprop" else {})
    return kind(parameters, lr=0.01, **options)


def random(n: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_every_variant_is_tried() -> None:
    assert set(OPTIONS) == set(OPTIMIZERS)
    assert {CLASS_OF.get(name, name.partition("_")[0]) for name in OPTIONS} == set(OPTIMIZER_NAMES) == set(ELEMENTWISE)


@pytest.mark.parametrize("op_class", OPTIONS)
def test_two_pieces_step_as_the_whole_bit_for_bit(op_class: str) -> None:
    """In fp32 and fp64; in bf16 torch rounds the elements of a vector register and those left over differently."""
    for dtype, cut in ((torch.float32, 1), (torch.float32, 37), (torch.float64, 13)):
        start = random(61, 0, dtype)
        whole = nn.Parameter(start.clone())
        pieces = [nn.Parameter(start[:cut].clone()), nn.Parameter(start[cut:].clone())]
        optimizers = [make(op_class, [p], True) for p in (whole, *pieces)]
        for step in range(10):
            gradient = random(61, step + 1, dtype)
            for p, g in zip((whole, *pieces), (gradient, gradient[:cut], gradient[cut:]), strict=True):
                p.grad = g.clone()
            for optimizer in optimizers:
                optimizer.step()
        assert torch.equal(torch.cat([p.detach() for p in pieces]), whole.detach())
        assert not torch.equal(whole.detach(), start)


def test_the_optimizers_of_torch_that_are_left_out_do_not_step_in_pieces() -> None:
    """Or cannot step at all on gradients of their own: what is refused is refused for a reason."""
    kinds = {k for k in vars(torch.optim).values() if isinstance(k, type) and issubclass(k, torch.optim.Optimizer)}
    left_out = kinds - set(ELEMENTWISE.values()) - {torch.optim.Optimizer}
    assert {kind.__name__ for kind in left_out} == {"LBFGS", "Adafactor", "Muon", "SparseAdam"}
    for kind in (torch.optim.Adafactor, torch.optim.Muon):
        whole = nn.Parameter(random(24, 0).view(6, 4))
        pieces = [nn.Parameter(p.clone()) for p in whole.detach().split(3)]
        for parameter, gradient in zip((whole, *pieces), (random(24, 1), *random(24, 1).split(12)), strict=True):
            parameter.grad = gradient.view(parameter.shape).clone()
            kind([parameter]).step()
        assert not torch.equal(torch.cat([p.detach() for p in pieces]), whole.detach())


class Flops(TorchDispatchMode):
    """Flops per element of the operators on tensors of N elements, a division by a number being a multiplication."""

    N = 6
    FREE = ("clone", "copy_", "zeros_like", "detach")

    def __init__(self) -> None:
        super().__init__()
        self.per_element = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [a for a in args if isinstance(a, torch.Tensor) and a.numel() == self.N]
        name = func._opname
        if tensors and name not in self.FREE:
            scaled = name in ("add_", "add") and abs((kwargs or {}).get("alpha", 1)) != 1
            by_number = name in ("div", "div_") and len(tensors) == 1
            spec = TensorSpec((self.N,), 4)
            flops = op_work(name, [spec] * len(tensors), [spec], {}).flops // self.N
            # Masked assignment chooses; index_put is listed as a movement.
            self.per_element += 2 if scaled else 1 if by_number or name == "index_put_" else flops
        return out


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("op_class", OPTIONS)
def test_work_and_states_are_those_of_torch(op_class: str, decay: bool) -> None:
    parameter = nn.Parameter(random(Flops.N, 0))
    optimizer = make(op_class, [parameter], decay)
    for step in range(20):  # past the first steps, which some do differently
        parameter.grad = random(Flops.N, step)
        with Flops() as counted:
            optimizer.step()
    states = [s for s in optimizer.state[parameter].values() if isinstance(s, torch.Tensor) and s.shape == (Flops.N,)]
    module = nn.Module()
    module.p = parameter
    (update,) = updates_of(module, optimizer).values()
    assert update == Update(op_class, decay and op_class != "rprop")
    assert update.n_states == len(states)
    work = update.work(TensorSpec((Flops.N,), 4))
    assert work.flops == counted.per_element * Flops.N
    assert (work.read_bytes, work.write_bytes) == (4 * Flops.N * (2 + len(states)), 4 * Flops.N * (1 + len(states)))


class Model(nn.Module):
    """Some names, one of them tied, one frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3, bias=False)
        self.tied = nn.Linear(4, 3, bias=False)
        self.tied.weight = self.head.weight
        self.trunk.bias.requires_grad_(False)


def groups_of(options: dict[str, Any]) -> list[tuple[list[str], dict[str, Any]]]:
    model = Model()
    names = {p: name for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, options)
    return [
        ([names[p] for p in group["params"]], {k: v for k, v in group.items() if k in ("lr", "weight_decay", "betas")})
        for group in optimizer.param_groups
    ]


def test_the_first_matching_group_wins_and_the_rest_has_the_common_options() -> None:
    groups = [{"match": "norm.*", "lr": 3.0}, {"match": "*.bias"}, {"match": "tied*", "betas": [0.5, 0.6]}]
    with pytest.raises(InputError, match=r"groups\[1\].match = '\*\.bias' matches only parameters that an earlier"):
        groups_of({"name": "adamw", "groups": groups})
    del groups[1]
    found = groups_of({"name": "adamw", "lr": 1.0, "weight_decay": 0.25, "groups": groups})
    assert found == [
        (["norm.weight", "norm.bias"], {"lr": 3.0, "weight_decay": 0.25, "betas": (0.9, 0.999)}),
        (["head.weight"], {"lr": 1.0, "weight_decay": 0.25, "betas": (0.5, 0.6)}),
        (["trunk.weight"], {"lr": 1.0, "weight_decay": 0.25, "betas": (0.9, 0.999)}),
    ]
    assert [names for names, _ in groups_of({"name": "sgd", "groups": [{"match": "*", "lr": 0.0}]})] == [
        ["trunk.weight", "norm.weight", "norm.bias", "head.weight"]
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"momentun": 1}, "training.optimizer.momentun: unknown key, did you mean 'momentum'?"),
        ({"zz": 1}, "training.optimizer.zz: unknown key, valid are lr, momentum, dampening, weight_decay, nesterov"),
        ({"foreach": True}, "training.optimizer.foreach: unknown key"),
        ({"lr": -1.0}, "training.optimizer.lr = -1.0: Invalid learning rate: -1.0"),
        ({"lr": True}, "training.optimizer.lr = True: should be a finite number"),
        ({"lr": float("inf")}, "training.optimizer.lr = inf: should be a finite number"),
        ({"momentum": "0.9"}, "training.optimizer.momentum = '0.9': should be a finite number"),
        ({"nesterov": "no"}, "training.optimizer.nesterov = 'no': should be true or false"),
        ({"nesterov": True}, "training.optimizer.nesterov = True: Nesterov momentum requires a momentum"),
        ({"nesterov": True, "momentum": -1.0}, "training.optimizer.momentum = -1.0: Invalid momentum value"),
        ({"name": "adam", "betas": [0.9]}, "training.optimizer.betas = (0.9,): should be a list of 2 finite numbers"),
        ({"name": "adam", "betas": [0.9, 1.0]}, "training.optimizer.betas = (0.9, 1.0): Invalid beta parameter"),
        ({"name": "rprop", "weight_decay": 0.1}, "training.optimizer.weight_decay: unknown key, valid are lr, etas"),
        ({"groups": [{"match": "nope.*"}]}, "groups[0].match = 'nope.*' matches no parameter; there are trunk.weight"),
        ({"groups": [{"match": "trunk.bias"}]}, "groups[0].match = 'trunk.bias' matches only parameters that are fro"),
        ({"groups": [{"match": "*", "lr": -2.0}]}, "training.optimizer.groups[0].lr = -2.0: Invalid learning rate"),
        ({"groups": [{"match": "*", "lrr": 2.0}]}, "training.optimizer.groups[0].lrr: unknown key, did you mean 'lr'"),
    ],
)
def test_what_is_wrong_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        make_optimizer(Model(), {"name": "sgd", **options})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


class Doubled(torch.optim.Adam):
    """A step of its own."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        return super().step(closure)


class Renamed(torch.optim.Adam):
    """The same step."""


def test_an_optimizer_that_the_cost_model_does_not_know_is_refused() -> None:
    model = Model()
    for kind in (torch.optim.LBFGS, torch.optim.Adafactor, Doubled):
        with pytest.raises(InputError, match=rf"optimizer {kind.__name__} is none of those .* SGD, Adam, AdamW, NAdam"):
            bind_optimizer(model, lambda p: kind(p))  # noqa: B023
    assert updates_of(model, bind_optimizer(model, Renamed))["trunk.weight"].op_class == "adam"


def test_groups_are_timed_each_as_what_it_is() -> None:
    """Momentum and decay of one group only: two kinds of updates, each of its own parameters."""
    model = nn.Sequential(nn.Linear(6, 50), nn.ReLU(), nn.Linear(50, 3))
    options = {"name": "sgd", "lr": 0.1, "groups": [{"match": "0.*", "momentum": 0.9, "weight_decay": 0.1}]}
    result = meshemu.emulate(
        model, (images(4, 6).float(), classes(4, n=3)), F.cross_entropy, optimizer=make_optimizer(model, options),
        system=meshemu.System.preset("dojo-tile"), plan={"data": 2}, execute=False,
    )  # fmt: skip
    program = result.program
    flops = {
        name: program.flops[program.op_class == i].tolist()
        for i, name in enumerate(program.op_classes)
        if name.startswith("sgd")
    }
    assert flops == {"sgd_momentum": [6 * 350] * 2, "sgd": [2 * 153] * 2}
    plain = meshemu.emulate(
        model, (images(4, 6).float(), classes(4, n=3)), F.cross_entropy,
        system=meshemu.System.preset("dojo-tile"), plan={"data": 2}, execute=False,
    )  # fmt: skip
    state = result.prepared.timed.peak_memory_bytes - plain.prepared.timed.peak_memory_bytes
    assert set(state.tolist()) == {0, 4 * 350}


@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_training_equals_plain_pytorch(name: str) -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).double()

    plain, emulated = model(), model()
    batch = images(5, 6), classes(5)
    optimizer = ELEMENTWISE[name](plain.parameters(), lr=0.01)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(plain(batch[0]), batch[1]).backward()
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = {"name": name, "lr": 0.01}
        optimizer = make_optimizer(emulated, options)
        with CAPTURES.of(test_training_equals_plain_pytorch):
            meshemu.emulate(emulated, batch, F.cross_entropy, optimizer=optimizer, system=grid(2, 2), steps=4)
    for a, b in zip(emulated.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
