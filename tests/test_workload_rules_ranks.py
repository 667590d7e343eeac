"""Operators whose blocks meet on many devices give the same bits on any number of ranks, and PyTorch's numbers."""

import pytest
import torch
from models_under_test import Step, assert_same_step, captured, classes, images, partitioned, plain_step
from torch import Tensor, nn
from torch.nn import functional as F

from meshemu.runtime.local import run_ranks
from meshemu.workload import attention_kernels
from meshemu.workload.spmd import Collective, Compute, Fetch

BATCH = images(2, 3, 7, 4), classes(2)


class Tokens(nn.Module):
    """Rows of an image as tokens: they stay cut, so that keys go round a ring."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 12, (1, 4))
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.embed(x).squeeze(3).view(2, 3, 2, 2, 7).transpose(3, 4).contiguous().unbind(1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return F.layer_norm(y.transpose(2, 3).flatten(1, 2), (7,)).cumsum(2).softmax(2)


class Shapes(nn.Module):
    """Windows, joins, resizing and transposed convolution along cut dims."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, 2, 1)
        self.up = nn.ConvTranspose2d(4, 3, 3, 2, 1, (0, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.down(x).roll((1, -1), (2, 3)).flip(2))
        y = torch.cat([y, F.interpolate(y[:, :, 1:], size=x.shape[2:], mode="bicubic")], 1)
        y = F.pad(y, (1, 2, 0, 1), mode="reflect")
        return torch.cat([y, y[:, :, :3]], 2) / y.std((2, 3), keepdim=True) + y.amax((2, 3), keepdim=True)


def squares(outputs: Tensor, _targets: Tensor) -> Tensor:
    return (outputs.square() + outputs.sin()).sum()


MODELS = {"ring": lambda: Tokens(False), "causal ring": lambda: Tokens(True), "shapes": Shapes}


@pytest.mark.parametrize("name", MODELS)
def test_bits_do_not_depend_on_ranks(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().double()
    graph = captured(model, BATCH, squares)
    for plan, rows, cols in [({"spatial": [3, 1]}, 3, 1), ({"data": 2, "spatial": [3, 1]}, 3, 2)]:
        step = partitioned(graph, plan, rows, cols)
        alone = step.run(model, BATCH)
        assert_same_step(alone, plain_step(model, BATCH, squares))
        for n_ranks in (2, 3):
            for result in run_ranks(n_ranks, lambda comm: step.run(model, BATCH, comm=comm)):  # noqa: B023
                assert_same_bits(result, alone)


def assert_same_bits(got: Step, wanted: Step) -> None:
    assert torch.equal(got.loss, wanted.loss)
    assert all(torch.equal(got.gradients[name], gradient) for name, gradient in wanted.gradients.items())


def test_tokens_stay_cut() -> None:
    """Attention over rows gathers no keys: their blocks go round, two steps forward and two backward."""
    torch.manual_seed(0)
    spmd = partitioned(captured(Tokens(True).double(), BATCH, squares), {"spatial": [3, 1]}, 3, 1).spmd
    gathers = [i.label for i in spmd.instructions if isinstance(i, Fetch | Collective) and i.label.endswith("gather")]
    assert not spmd.gathered
    assert not [label for label in gathers if "scaled_dot" in label]
    steps = [i for i in spmd.instructions if isinstance(i, Compute) and i.target is attention_kernels.attend_more]
    assert len(steps) == 2
