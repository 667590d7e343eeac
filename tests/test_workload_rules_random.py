"""Random operators: the same numbers however a tensor is cut, of the right distribution, new ones every step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models_under_test import captured, classes, images, partitioned
from operators_under_test import Call, layouts_of, plan_of, run_cut
from torch import Tensor, nn
from torch.nn import functional as F

from meshemu.errors import UnsupportedOpError

aten = torch.ops.aten
SHAPE = (20, 30, 20)
X = images(*SHAPE)
CUT = X[:4, :5, :6].contiguous()

DRAWS: dict[str, tuple[Any, tuple[Any, ...], tuple[float, float]]] = {
    # operator, arguments after the tensor whose shape is drawn, (mean, standard deviation)
    "bernoulli": (aten.bernoulli.p, (0.3,), (0.3, 0.21**0.5)),
    "bernoulli of tensors": (aten.bernoulli.Tensor, (torch.full(SHAPE, 0.7, dtype=X.dtype),), (0.7, 0.21**0.5)),
    "rand_like": (aten.rand_like.default, (), (0.5, 12**-0.5)),
    "randn_like": (aten.randn_like.default, (), (0, 1)),
    "normal": (aten.normal_functional.default, (2.0, 3.0), (2, 3)),
    "uniform": (aten.uniform.default, (-1.0, 3.0), (1, 4 * 12**-0.5)),
    "exponential": (aten.exponential.default, (2.0,), (0.5, 0.5)),
    "geometric": (aten.geometric.default, (0.25,), (4, 12**0.5)),
    "log_normal": (aten.log_normal.default, (0.0, 0.25), (1.0317, 0.2620)),
    "randint_like": (aten.randint_like.low_dtype, (-2, 5), (1, 2)),
}


def drawn(name: str, tensor: Tensor, **options: Any) -> Tensor:
    target, rest, _ = DRAWS[name]
    rest = tuple(r[: len(tensor), : tensor.shape[1], : tensor.shape[2]] if isinstance(r, Tensor) else r for r in rest)
    call = Call(target, (tensor, *rest), {}, torch.empty_like(tensor))
    layouts = options.pop("layouts", None) or next(iter(layouts_of(call, plan_of(1), 1, 0)))
    (output,) = run_cut(call, layouts, options.pop("plan", plan_of(1)), **options).outputs
    assert output is not None
    return output


@pytest.mark.parametrize("name", DRAWS)
def test_distribution(name: str) -> None:
    numbers = drawn(name, X)
    mean, deviation = DRAWS[name][2]
    error = deviation / numbers.numel() ** 0.5
    assert abs(float(numbers.mean()) - mean) < 5 * error
    assert float(numbers.std()) == pytest.approx(deviation, rel=0.06)
    assert not torch.equal(numbers, drawn(name, X, seed=1))


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("sizes", [(3,), (2, 3)])
def test_numbers_do_not_depend_on_placement(name: str, sizes: tuple[int, ...]) -> None:
    whole = drawn(name, CUT)
    plan = plan_of(*sizes)
    target, rest, _ = DRAWS[name]
    call = Call(target, (CUT, *(r[:4, :5, :6] if isinstance(r, Tensor) else r for r in rest)), {}, whole)
    for layouts in layouts_of(call, plan, 6, 0):
        assert torch.equal(drawn(name, CUT, plan=plan, layouts=layouts), whole)


MODELS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: F.dropout(x, 0.4),
    "dropout of channels": lambda x: F.dropout2d(x, 0.4),
    "alpha dropout": lambda x: F.alpha_dropout(x, 0.4, training=True),
    "alpha dropout of channels": lambda x: F.feature_alpha_dropout(x, 0.4, training=True),
    "noise": lambda x: x + torch.randn_like(x) * torch.rand(x.shape[1:]) + torch.normal(0.0, 2.0, (4, 1, 1)),
    "gumbel": lambda x: F.gumbel_softmax(x, dim=1),
    "random slopes": lambda x: F.rrelu(x, training=True),
    "shuffled": lambda x: x[:, torch.randperm(4)] + x[:, torch.randint(4, (4,))],
    "probabilities": lambda x: x * torch.bernoulli(x.detach().sigmoid()),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_step_with_random_numbers_does_not_depend_on_the_plan(name: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return MODELS[name](self.c(x))

    torch.manual_seed(0)
    model, batch = Model().double(), (images(5, 3, 9, 7), classes(5))
    graph = captured(model, batch, lambda y, _t: y.square().sum())
    reference = partitioned(graph, "data", 1, 1).run(model, batch, seed=3)
    for plan, rows, cols in [("data", 1, 3), ({"spatial": [2, 3]}, 2, 3)]:
        step = partitioned(graph, plan, rows, cols).run(model, batch, seed=3)
        torch.testing.assert_close(step.loss, reference.loss, rtol=1e-11, atol=0)
        for parameter, gradient in reference.gradients.items():
            torch.testing.assert_close(step.gradients[parameter], gradient, rtol=1e-9, atol=1e-10)
    later = partitioned(graph, "data", 1, 1).run(model, batch, seed=3, step=1)
    assert not torch.equal(later.loss, reference.loss)


def test_a_permutation_is_one() -> None:
    call = Call(aten.randperm.default, (50,), {}, torch.arange(50))
    (order,) = run_cut(call, [], plan_of(2)).outputs
    assert order is not None
    assert sorted(order.tolist()) == list(range(50)) != order.tolist()


@pytest.mark.parametrize("target", [aten.multinomial.default, aten.poisson.default])
def test_what_cannot_be_drawn_element_by_element_is_refused(target: Any) -> None:
    args = (X[0].abs(), 2) if target is aten.multinomial.default else (X[0].abs(),)
    with pytest.raises(UnsupportedOpError, match=str(target)):
        run_cut(
            Call(target, args, {}, target(*args)),
            next(iter(layouts_of(Call(target, args, {}, None), plan_of(2), 1, 0))),
            plan_of(2),
        )
