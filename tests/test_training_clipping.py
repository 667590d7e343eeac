"""Clipping by global norm: torch.nn.utils.clip_grad_norm_ on gradients of any layout, each element counted once."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_under_test import classes, grid, images
from shared_captures import Captures
from torch import Tensor, nn
from torch.nn import functional as F

import meshemu
from meshemu.cost import TensorSpec, op_work
from meshemu.errors import InputError
from meshemu.execute.blocks import Host
from meshemu.execute.executor import Executor, StepResult
from meshemu.mesh import flatten, regions
from meshemu.program.verify import verify
from meshemu.runtime.local import SingleComm, run_ranks
from meshemu.workload.choice import choose_schedules
from meshemu.workload.clipping import clip
from meshemu.workload.emission import build_program
from meshemu.workload.layout import Layout, Split
from meshemu.workload.lowering import Lowering
from meshemu.workload.placement import make_plan
from meshemu.workload.spmd import Collective, Spmd

MESH = flatten(grid(2, 4))
PLAN = make_plan({"data": 2, "spatial": [2, 2]}, MESH)
SIZES = {"data": 2, "h": 2, "w": 2}


@dataclass(frozen=True)
class Gradient:
    """A gradient as it lies on the devices; partial: the sum of the two items of dim 0, one for each of "data"."""

    tensor: Tensor
    layout: Layout
    partial: bool = False


def clipped(gradients: dict[str, Gradient], max_norm: float) -> tuple[Spmd, Callable[[Any], StepResult]]:
    """The instructions that clip, and a function that runs them on a communicator."""
    low = Lowering(PLAN)
    inputs, values, tensors = {}, {}, {}
    for name, gradient in gradients.items():
        tensor, layout = gradient.tensor, gradient.layout
        tensors[name] = tensor
        if gradient.partial:
            lying = Layout((Split(0, ("data",), ((0, 1), (1, 2))),))
            inputs[name] = low.value(tensor.shape, tensor.dtype, lying)
            values[name] = low.value(tensor.shape[1:], tensor.dtype, Layout(partial=("data",)))
            low.compute(lambda block: block.sum(0), [inputs[name]], [values[name]], op_class="sum")
        else:
            inputs[name] = values[name] = low.value(tensor.shape, tensor.dtype, layout)
    results, norm = clip(low, values, max_norm)
    spmd = Spmd(
        instructions=tuple(low.instructions), inputs=inputs, constants={}, constant_tensors={}, loss=None,
        gradients=results, buffers={}, gradient_norm=norm,
    )  # fmt: skip
    schedules = choose_schedules(spmd, PLAN, MESH, "tree", lambda _format, size_bytes: size_bytes)
    verify(build_program(spmd, PLAN, MESH.n_devices, schedules, {}))

    def run(comm: Any) -> StepResult:
        ranks = regions(MESH.rows, MESH.cols, comm.size)[np.asarray(PLAN.devices)].astype(np.int64)
        return Executor(spmd, Host(PLAN, comm.rank, ranks), schedules, comm).run(tensors, seed=0, step=0)

    return spmd, run


def by_torch(gradients: dict[str, Gradient], max_norm: float) -> tuple[float, dict[str, Tensor]]:
    parameters = {}
    for name, gradient in gradients.items():
        whole = gradient.tensor.sum(0) if gradient.partial else gradient.tensor
        parameters[name] = nn.Parameter(torch.zeros_like(whole))
        parameters[name].grad = whole.clone()
    norm = nn.utils.clip_grad_norm_(parameters.values(), max_norm)
    return float(norm), {name: p.grad for name, p in parameters.items() if p.grad is not None}


def cut(shape: tuple[int, ...], dims: list[tuple[int, tuple[str, ...], list[int]]]) -> Layout:
    """dims: (dim, axes, inner bounds in any order)."""
    splits = []
    for dim, axes, bounds in dims:
        stops = [0, *sorted(min(b, shape[dim]) for b in bounds), shape[dim]]
        splits.append(Split(dim, axes, tuple(pairwise(stops))))
    return Layout(tuple(splits))


@st.composite
def gradients(draw: Any) -> dict[str, Gradient]:
    """Tensors of any rank, cut over any axes at any places, empty blocks included."""
    found = {}
    for i in range(draw(st.integers(1, 5))):
        shape = tuple(draw(st.lists(st.integers(1, 5), max_size=3)))
        axes = draw(st.permutations(tuple(SIZES)))[: draw(st.integers(0, 3))]
        dims: dict[int, list[str]] = {}
        for axis in axes:
            if shape:
                dims.setdefault(draw(st.integers(0, len(shape) - 1)), []).append(axis)
        cuts = []
        for dim, over in dims.items():
            parts = int(np.prod([SIZES[axis] for axis in over]))
            cuts.append((dim, tuple(over), draw(st.lists(st.integers(0, 5), min_size=parts - 1, max_size=parts - 1))))
        tensor = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(i))
        found[f"p{i}"] = Gradient(tensor, cut(shape, cuts))
    return found


@settings(max_examples=25, derandomize=True, deadline=None)
@given(gradients=gradients(), max_norm=st.sampled_from([1e-3, 0.5, 1e3]))
def test_any_layout_is_clipped_as_torch_clips_the_whole(gradients: dict[str, Gradient], max_norm: float) -> None:
    spmd, run = clipped(gradients, max_norm)
    result = run(SingleComm())
    norm, expected = by_torch(gradients, max_norm)
    assert result.gradient_norm is not None
    torch.testing.assert_close(float(result.gradient_norm), norm, rtol=1e-12, atol=0)
    for name, wanted in expected.items():
        torch.testing.assert_close(result.gradients[name], wanted, rtol=1e-12, atol=1e-300)
        assert spmd.gradients[name].layout == gradients[name].layout
    collectives = [i for i in spmd.instructions if isinstance(i, Collective)]
    cut_over = {frozenset(g.layout.axes) for g in gradients.values()} - {frozenset()}
    assert sorted(map(sorted, cut_over)) == sorted(sorted(c.axes) for c in collectives)
    assert all([v.shape for v in c.sources] == [()] for c in collectives)


MIXED = {
    "replicated": Gradient(images(3, 4), Layout()),
    "scalar": Gradient(images(1).reshape(()), Layout()),
    "rows": Gradient(images(5, 2, seed=2), cut((5, 2), [(0, ("data",), [3])])),
    "empty on most": Gradient(images(2, seed=3), cut((2,), [(0, ("data", "h", "w"), [0, 1, 1, 1, 2, 2, 2])])),
    "both": Gradient(images(4, 4, seed=4), cut((4, 4), [(0, ("w",), [1]), (1, ("h",), [2])])),
    "sum": Gradient(images(2, 6, seed=5), Layout(), partial=True),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_ranks_and_formats_stay(dtype: torch.dtype) -> None:
    mixed = {name: Gradient(g.tensor.to(dtype), g.layout, g.partial) for name, g in MIXED.items()}
    _, run = clipped(mixed, 0.7)
    norm, expected = by_torch(mixed, 0.7)
    alone = run(SingleComm())
    assert alone.gradient_norm is not None
    assert alone.gradient_norm.dtype == torch.float32
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(float(alone.gradient_norm), norm, rtol=tolerance, atol=0)
    for name, wanted in expected.items():
        torch.testing.assert_close(alone.gradients[name], wanted, rtol=tolerance, atol=1e-7)
    for n_ranks in (2, 3, 4):
        for result in run_ranks(n_ranks, run):
            assert torch.equal(result.gradient_norm, alone.gradient_norm)
            assert all(torch.equal(result.gradients[name], alone.gradients[name]) for name in mixed)


def test_the_norm_has_the_widest_format() -> None:
    mixed = {"a": Gradient(images(3, 4), Layout()), "b": Gradient(images(5).float(), Layout())}
    norm = clipped(mixed, 1.0)[1](SingleComm()).gradient_norm
    assert norm is not None and norm.dtype == torch.float64
    assert float(norm) == pytest.approx(by_torch(mixed, 1.0)[0], rel=1e-6)


def test_the_norm_does_not_depend_on_where_numbers_lie_in_memory() -> None:
    """Those of a block are added up in the order of its dims, however a kernel has left it."""
    rows = images(129, 67).float()
    columns = rows.t().contiguous().t()
    norms = [clipped({"a": Gradient(g, Layout())}, 1.0)[1](SingleComm()).gradient_norm for g in (rows, columns)]
    assert rows.square().sum() != columns.square().sum()
    assert norms[0] == norms[1]


def test_one_gradient_of_two_parameters_counts_twice() -> None:
    low = Lowering(PLAN)
    value = low.value((3,), torch.float64)
    results, norm = clip(low, {"a": value, "b": value}, 1.0)
    spmd = Spmd(
        instructions=tuple(low.instructions), inputs={"a": value}, constants={}, constant_tensors={}, loss=None,
        gradients=results, buffers={}, gradient_norm=norm,
    )  # fmt: skip
    host = Host(PLAN, 0, np.zeros(PLAN.n_positions, np.int64))
    tensor = torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64)
    result = Executor(spmd, host, {}, SingleComm()).run({"a": tensor}, seed=0, step=0)
    assert float(result.gradient_norm) == pytest.approx(50**0.5, rel=1e-15)
    torch.testing.assert_close(result.gradients["b"], tensor / (50**0.5 + 1e-6), rtol=1e-15, atol=0)
    assert len(low.instructions) == 3


def test_blocks_that_overlap_are_no_gradient() -> None:
    low = Lowering(PLAN)
    window = low.value((4,), torch.float32, Layout((Split(0, ("h",), ((0, 3), (1, 4))),)))
    with pytest.raises(AssertionError, match="overlap"):
        clip(low, {"a": window}, 1.0)


def test_a_nan_spreads_as_in_torch() -> None:
    bad = {"a": Gradient(torch.tensor([1.0, float("nan")]), Layout()), "b": Gradient(torch.ones(2), Layout())}
    result = clipped(bad, 1.0)[1](SingleComm())
    assert torch.isnan(result.gradients["b"]).all() == torch.isnan(by_torch(bad, 1.0)[1]["b"]).all()


def test_work() -> None:
    blocks = [TensorSpec((3, 4), 4), TensorSpec((5,), 4)]
    scalar = TensorSpec((), 4)
    work = op_work("square_sum", blocks, [scalar], {})
    assert (work.flops, work.read_bytes, work.write_bytes) == (34, 68, 4)
    work = op_work("clip_scale", [scalar, *blocks], blocks, {})
    assert (work.flops, work.read_bytes, work.write_bytes) == (17, 72, 68)


CAPTURES = Captures()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(24, 5),
    ).double()  # fmt: skip


@pytest.mark.parametrize("plan", ["data", "spatial", {"shard": 4}, {"tensor": 2, "data": 2}], ids=str)
def test_training_equals_plain_pytorch(plan: Any) -> None:
    plain, emulated = network(), network()
    batch = images(4, 3, 8, 8), classes(4)
    optimizer, norms, losses = torch.optim.SGD(plain.parameters(), lr=0.5), [], []
    for _ in range(4):
        optimizer.zero_grad()
        loss = F.cross_entropy(plain(batch[0]), batch[1])
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(plain.parameters(), 0.3)))
        optimizer.step()
        losses.append(float(loss.detach()))
    with CAPTURES.of(network):
        result = meshemu.emulate(
            emulated, batch, F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.5), clip_norm=0.3,
            system=grid(2, 2), plan=plan, steps=4,
        )  # fmt: skip
    assert min(norms) > 0.3
    torch.testing.assert_close(result.losses, losses, rtol=1e-9, atol=0)
    torch.testing.assert_close(result.gradient_norms, norms, rtol=1e-9, atol=0)
    for (name, p), q in zip(plain.named_parameters(), emulated.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-8, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")


def test_an_infinite_bound_measures_and_changes_nothing() -> None:
    with CAPTURES.of(network):
        results = [
            meshemu.emulate(
                network(), (images(4, 3, 8, 8), classes(4)), F.cross_entropy, clip_norm=bound, system=grid(2, 2)
            )
            for bound in (None, float("inf"))
        ]
    (without,), (norm,) = (result.gradient_norms for result in results)
    assert without == pytest.approx(norm, rel=1e-12)
    assert norm == pytest.approx(sum(float(g.square().sum()) for g in results[0].gradients.values()) ** 0.5)
    assert all(torch.equal(g, results[1].gradients[name]) for name, g in results[0].gradients.items())


@pytest.mark.parametrize("bound", [0, -1.0, float("nan"), "1"])
def test_a_bound_that_is_no_positive_number_is_refused(bound: Any) -> None:
    with pytest.raises(InputError, match=r"clip_norm = .*: must be a number above 0"):
        meshemu.emulate(
            network(), (images(4, 3, 8, 8), classes(4)), F.cross_entropy, clip_norm=bound, system=grid(2, 2)
        )
