"""What cannot be captured is refused in one line; capturing leaves the model as it was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models_under_test import captured, classes, images
from torch import Tensor, nn
from torch.nn import functional as F

from meshemu.errors import CaptureError, InputError
from meshemu.workload.graph import Role, module_of


class Wrapped(nn.Module):
    def __init__(self, then: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 5)
        self.then = then

    def forward(self, x: Tensor) -> Any:
        return self.then(self.inner(x))


def frozen() -> nn.Module:
    return nn.Linear(6, 5).requires_grad_(False)


def failing(_x: Tensor) -> Tensor:
    raise KeyError("first line\nsecond line")


def branching(x: Tensor) -> Tensor:
    return x * 2 if x.sum() > 0 else x


OUTSIDE = nn.Linear(6, 5).double()
KEPT = list(OUTSIDE.parameters())

REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "control flow": (lambda: Wrapped(branching), F.cross_entropy, "Wrapped cannot be captured as one graph: .*"),
    "item": (lambda: Wrapped(lambda x: x * x.max().item()), F.cross_entropy, "data"),
    "shape from data": (lambda: Wrapped(lambda x: x[x > 0]), lambda y, t: y.sum(), "aten.nonzero.default depends"),
    "vector loss": (lambda: nn.Linear(6, 5), lambda y, t: y.sum(1), r"one element, not a tensor of shape \(4,\)"),
    "loss of no tensor": (lambda: nn.Linear(6, 5), lambda y, t: 1.0, "one element, not float"),
    "detached loss": (lambda: nn.Linear(6, 5), lambda y, t: y.detach().sum(), "does not depend differentiably"),
    "nothing to train": (frozen, F.cross_entropy, "Linear has no trainable parameter"),
    "exception in forward": (lambda: Wrapped(failing), F.cross_entropy, "KeyError: 'first line.*second line"),
    "wrong shapes": (lambda: nn.Linear(7, 5), F.cross_entropy, "Linear cannot be captured as one graph: RuntimeError"),
    "parameter from outside": (lambda: OUTSIDE, lambda y, t: y.mean() + KEPT[0].sum(), "weight is read from outside"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_is_refused_in_one_line(name: str) -> None:
    make, loss, message = REFUSED[name]
    with pytest.raises(CaptureError, match=message) as caught:
        captured(make().double(), (images(4, 6), classes(4)), loss)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_batch_leaf_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(CaptureError, match="batch leaf 1 is a int, not a tensor"):
        captured(nn.Linear(6, 5).double(), (images(4, 6), 3), lambda y, t: y.sum())


def test_errors_of_the_loss_that_are_meant_for_the_user_stay_as_they_are() -> None:
    def loss(_y: Tensor, _t: Tensor) -> Tensor:
        raise InputError("targets do not fit")

    with pytest.raises(InputError, match=r"^targets do not fit$"):
        captured(nn.Linear(6, 5).double(), (images(4, 6), classes(4)), loss)


def shared_layer() -> nn.Module:
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.BatchNorm1d(6), layer)


def tied_weights() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize("make", [shared_layer, tied_weights])
def test_capturing_leaves_the_model_as_it_was(make: Callable[[], nn.Module]) -> None:
    model = make().double()
    before = {name: (id(t), t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    graph = captured(model, (images(4, 6), classes(4)), F.cross_entropy)
    after = model.state_dict(keep_vars=True)
    assert {name: id(t) for name, t in after.items()} == {name: key for name, (key, _) in before.items()}
    for name, (_, value) in before.items():
        torch.testing.assert_close(after[name].detach(), value.detach(), rtol=0, atol=0)
    assert [i.name for i in graph.inputs if i.role is Role.PARAMETER] == [n for n, _ in model.named_parameters()]


def test_nodes_know_their_module() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5)).double()
    graph = captured(model, (images(4, 6), classes(4)), F.cross_entropy)
    found = {str(node.target): module_of(node) for node in graph.nodes}
    assert found["aten.relu.default"] == "1"
    assert found["aten.threshold_backward.default"] == "1"
    assert [module_of(n) for n in graph.nodes if "addmm" in str(n.target)] == ["0", "2"]
