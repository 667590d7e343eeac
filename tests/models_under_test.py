"""The same training step twice: by plain autograd in one process, and partitioned over a mesh; with their comparison.

Gradients are judged relative to the largest element of their tensor, or to a thousandth of the largest gradient of the
model where that is more: a bias before a batch norm and a key bias of attention have an exact gradient of zero, and
what rounding leaves of it has no scale of its own.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from meshemu.collectives import Schedule
from meshemu.comm import Comm
from meshemu.execute.blocks import Host
from meshemu.execute.executor import Executor
from meshemu.hardware import System
from meshemu.mesh import Mesh, flatten, regions
from meshemu.program.ir import Program
from meshemu.program.verify import verify
from meshemu.runtime.local import SingleComm
from meshemu.workload.capture import capture
from meshemu.workload.choice import choose_schedules
from meshemu.workload.emission import build_program
from meshemu.workload.graph import Graph
from meshemu.workload.partitioning import partition
from meshemu.workload.placement import make_plan
from meshemu.workload.plan import Plan
from meshemu.workload.spmd import Spmd

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Step:
    """What one training step yields, before any update."""

    loss: Tensor
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]


def grid(rows: int, cols: int) -> System:
    return System.grid(rows=rows, cols=cols, bandwidth="50 GB/s", latency="500 ns")


def call(function: Callable[..., Any], inputs: Any) -> Any:
    """As meshemu.emulate calls a model: a tuple is positional, a dict is keywords."""
    if isinstance(inputs, Mapping):
        return function(**inputs)
    return function(*inputs) if isinstance(inputs, tuple) else function(inputs)


def plain_step(model: nn.Module, batch: tuple[Any, Any], loss_fn: Loss) -> Step:
    """The step by autograd, on a copy of the model."""
    model = copy.deepcopy(model)
    loss = loss_fn(call(model, batch[0]), batch[1])
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return Step(loss.detach(), gradients, dict(model.named_buffers()))


def captured(model: nn.Module, batch: tuple[Any, Any], loss_fn: Loss) -> Graph:
    return capture(model, batch, lambda run, item: loss_fn(call(run, item[0]), item[1]))


@dataclass(frozen=True)
class Partitioned:
    """A captured step on a grid of devices."""

    mesh: Mesh
    plan: Plan
    spmd: Spmd
    schedules: dict[int, Schedule]
    program: Program

    def run(
        self, model: nn.Module, batch: tuple[Any, Any], *, comm: Comm | None = None, seed: int = 0, step: int = 0
    ) -> Step:
        """One step with real tensors; the model is left as it is."""
        comm = comm or SingleComm()
        ranks = regions(self.mesh.rows, self.mesh.cols, comm.size)[np.asarray(self.plan.devices)].astype(np.int64)
        executor = Executor(self.spmd, Host(self.plan, comm.rank, ranks), self.schedules, comm)
        leaves = {f"batch.{i}": leaf for i, leaf in enumerate(torch.utils._pytree.tree_leaves(batch))}
        state = {name: t.detach().clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}
        result = executor.run({**state, **leaves}, seed=seed, step=step)
        return Step(result.loss, result.gradients, result.buffers)


def partitioned(
    graph: Graph,
    plan: Any,
    rows: int,
    cols: int,
    *,
    bucket_bytes: int = 25_000_000,
    algorithm: str = "ring",
    micro_batches: int = 1,
) -> Partitioned:
    """Partition `graph` over rows x cols devices and check its Program."""
    mesh = flatten(grid(rows, cols))
    placed = make_plan(plan, mesh)
    spmd = partition(graph, placed, bucket_bytes, micro_batches=micro_batches)
    schedules = choose_schedules(spmd, placed, mesh, algorithm, lambda _format, size_bytes: size_bytes)
    program = build_program(spmd, placed, mesh.n_devices, schedules, {})
    verify(program)
    return Partitioned(mesh, placed, spmd, schedules, program)


def largest(tensors: Mapping[str, Tensor]) -> float:
    floating = (t.detach() for t in tensors.values() if t.numel() and t.is_floating_point())
    return max((float(t.abs().max()) for t in floating), default=0.0)


def assert_close(name: str, got: Tensor, wanted: Tensor, tolerance: float, floor: float = 0.0) -> None:
    """|got - wanted| <= tolerance * max(|wanted|, floor), element by element against the tensor's largest."""
    assert got.shape == wanted.shape, f"{name}: shape {tuple(got.shape)} instead of {tuple(wanted.shape)}"
    assert got.dtype == wanted.dtype, f"{name}: {got.dtype} instead of {wanted.dtype}"
    if not wanted.numel():
        return
    got, wanted = got.detach().double(), wanted.detach().double()
    scale = max(float(wanted.abs().max()), floor, 1e-300)
    error = float((got - wanted).abs().max()) / scale
    assert error <= tolerance, f"{name}: relative error {error:.3g} > {tolerance:g}"


def assert_same_step(got: Step, wanted: Step, tolerance: float = 1e-10) -> None:
    assert_close("loss", got.loss.reshape(()), wanted.loss.reshape(()), tolerance)
    assert set(got.gradients) == set(wanted.gradients)
    floor = 1e-3 * largest(wanted.gradients)
    for name, gradient in wanted.gradients.items():
        assert_close(f"gradient of {name}", got.gradients[name], gradient, tolerance, floor)
    assert set(got.buffers) == set(wanted.buffers)
    for name, buffer in wanted.buffers.items():
        assert_close(f"buffer {name}", got.buffers[name], buffer, tolerance)


def images(*shape: int, seed: int = 1) -> Tensor:
    """Reproducible fp64 numbers."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def classes(*shape: int, n: int = 5, seed: int = 2) -> Tensor:
    return torch.randint(n, shape, generator=torch.Generator().manual_seed(seed))
