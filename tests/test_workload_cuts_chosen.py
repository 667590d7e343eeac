"""Which dim of a parameter the axes "tensor" and "shard" cut."""

from itertools import takewhile
from typing import Any

import pytest
from models_under_test import captured, classes, images, partitioned
from torch import Tensor, nn

from meshemu.workload.spmd import Collective, Compute, Fetch, Spmd, inputs_of


def of_squares(outputs: Tensor, _targets: Tensor) -> Tensor:
    return outputs.square().mean()


def spmd_of(model: nn.Module, inputs: Tensor, plan: Any, cols: int) -> Spmd:
    return partitioned(captured(model.double(), (inputs, classes(8)), of_squares), plan, 1, cols).spmd


def cut_dims(spmd: Spmd, name: str) -> list[int]:
    return [split.dim for split in spmd.inputs[name].layout.splits]


@pytest.mark.parametrize("shape, dims", [((3, 12), [0]), ((12, 3), [1]), ((3, 3), [0]), ((2, 2), [])])
def test_a_shard_is_of_the_largest_dim_that_is_as_large_as_the_axis(shape: tuple[int, int], dims: list[int]) -> None:
    """A Linear of (in, out) has a weight of (out, in); one with no dim as large as the axis is stored whole."""
    spmd = spmd_of(nn.Linear(*shape), images(8, shape[0]), {"shard": 3}, 3)
    assert cut_dims(spmd, "weight") == dims


def test_a_product_that_puts_out_more_than_it_takes_in_is_cut_by_columns() -> None:
    """8 to 16 by columns; 16 to 64 by columns again, its activation gathered; 64 to 8 by rows."""
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 8))
    spmd = spmd_of(model, images(8, 8), {"tensor": 2}, 2)
    assert [cut_dims(spmd, f"{i}.weight") for i in (0, 2, 4)] == [[0], [0], [1]]


def test_columns_where_the_plan_wants_them() -> None:
    """Although the activation arrives cut, and the product puts out no more than it takes in."""
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))
    spmd = spmd_of(model, images(8, 8), {"tensor": 2, "modules": {"2": "column"}}, 2)
    assert [cut_dims(spmd, f"{i}.weight") for i in (0, 2)] == [[0], [0]]


@pytest.mark.parametrize("transposed", [False, True])
def test_a_convolution_is_cut_by_its_output_channels(transposed: bool) -> None:
    """They are dim 0 of the weight, of a transposed convolution dim 1; the next one is cut by its input channels."""
    conv = nn.ConvTranspose2d if transposed else nn.Conv2d
    model = nn.Sequential(conv(3, 8, 2), nn.Tanh(), conv(8, 4, 2))  # type: ignore[operator]
    spmd = spmd_of(model, images(8, 3, 5, 5), {"tensor": 2}, 2)
    out, into = (1, 0) if transposed else (0, 1)
    assert [cut_dims(spmd, f"{i}.weight") for i in (0, 2)] == [[out], [into]]


class Shared(nn.Module):
    """A vector that is added to what is cut, and to what is whole if `twice`."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.twice, self.shift = twice, nn.Parameter(images(8).float())
        self.up, self.down = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down((self.up(x) + self.shift).tanh())
        return y + self.shift if self.twice else y


@pytest.mark.parametrize("twice, dims", [(False, [0]), (True, [])])
def test_a_vector_is_stored_cut_if_it_is_read_cut_everywhere(twice: bool, dims: list[int]) -> None:
    spmd = spmd_of(Shared(twice), images(8, 8), {"tensor": 2}, 2)
    assert cut_dims(spmd, "up.weight") == [0]
    assert cut_dims(spmd, "shift") == dims


class Twice(nn.Module):
    """One weight multiplies two activations; of the second, heads of four features stay together."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.heads, self.down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.heads(x).view(-1, 3, 4).tanh().reshape(-1, 12)
        return self.down(self.up(x).tanh()) + self.down(heads)  # type: ignore[no-any-return]


def test_what_moves_is_the_activation_and_not_the_weight() -> None:
    """The weight is cut as the first activation is; the second arrives cut elsewhere."""
    spmd = spmd_of(Twice(), images(8, 8), {"tensor": 2}, 2)
    assert cut_dims(spmd, "down.weight") == [1]
    forward = takewhile(lambda i: not (isinstance(i, Compute) and i.op_class == "mean"), spmd.instructions)
    moved = {value.shape for i in forward if isinstance(i, Fetch | Collective) for value in inputs_of(i)}
    assert (8, 12) in moved
    assert not moved & {(4, 12), (12, 4)}
