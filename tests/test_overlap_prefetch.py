"""What runs beside the compute: parameters that are pooled ahead of their use, gradients that are reduced early."""

from typing import Any

import numpy as np
import torch
from models_under_test import captured, grid
from torch import nn
from torch.nn import functional as F

from meshemu.cost.memory_use import MEMORY_CATEGORIES
from meshemu.cost.op_classes import VIEWS
from meshemu.emulator.timed_step import TimingOptions, time_step
from meshemu.hardware import DeviceSpec, System
from meshemu.mesh import flatten
from meshemu.program.ir import OpKind, Program
from meshemu.program.verify import verify
from meshemu.runtime.local import SingleComm, run_ranks
from meshemu.workload.choice import choose_schedules
from meshemu.workload.emission import build_program
from meshemu.workload.memory import MemoryWalk
from meshemu.workload.partitioning import partition
from meshemu.workload.placement import make_plan

WIDTH, LAYERS = 64, 5
SPEC = DeviceSpec(
    name="test device", n_nodes=1, matrix_flops_per_s={"fp32": 10**11}, vector_flops_per_s={"fp32": 10**11},
    sram_bytes=2**30, load_bytes_per_s=10**12, store_bytes_per_s=10**12, op_launch_ps=1000, combine_ps=1000,
)  # fmt: skip
SYSTEM = System.grid(rows=1, cols=4, bandwidth="50 GB/s", latency="500 ns", device=SPEC)


def step_of(plan: Any, bucket_bytes: int = 25_000_000) -> tuple[Any, Any, Any]:
    """(plan, instructions, schedules) of linear layers on four devices."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)])
    graph = captured(model, (torch.zeros(32, WIDTH), torch.zeros(32, WIDTH)), F.mse_loss)
    mesh = flatten(grid(1, 4))
    placed = make_plan(plan, mesh)
    spmd = partition(graph, placed, bucket_bytes)
    return placed, spmd, choose_schedules(spmd, placed, mesh, "ring", lambda _format, size_bytes: size_bytes)


def timed(program: Program, comm: Any = None) -> Any:
    return time_step(program, SYSTEM, np.zeros(4, np.int64), TimingOptions(), comm or SingleComm())


def starts_of(program: Program, start_ps: Any, label: str) -> Any:
    """When each message of device 0 with such a label is sent."""
    labels = np.asarray([text.startswith(label) for text in program.labels])[program.label]
    return start_ps[labels & (program.kind == OpKind.SEND) & (program.device == 0)]


def test_parameters_are_pooled_so_many_modules_ahead() -> None:
    """Gathers of the forward pass: the first `prefetch` start at once, each of the others after the layer before."""
    plan, spmd, schedules = step_of({"shard": 4})
    times = []
    for prefetch in (0, 1, 2, 3):
        program = build_program(spmd, plan, 4, schedules, {}, prefetch)
        verify(program)
        step = timed(program)
        ops = step.timing.ops
        products = np.asarray(["mm" in name for name in program.op_classes])[program.op_class]
        layers = np.flatnonzero(products & (program.kind == OpKind.COMPUTE) & (program.device == 0))[:LAYERS]
        for layer in range(LAYERS):
            first = int(starts_of(program, ops.start_ps, f"parameters {layer}").min())
            waits_for = layer - prefetch - 1 if prefetch else layer - 1
            ended = int(ops.end_ps[layers[waits_for]]) if waits_for >= 0 else 0
            assert first >= ended
            if prefetch and layer < prefetch:
                assert first == 0
            if not prefetch and layer:
                assert first == ended
        times.append(step.summary.time_ps)
        for other in run_ranks(2, lambda comm, program=program: timed(program, comm)):
            assert np.array_equal(other.timing.ops.end_ps, ops.end_ps)
    assert times[0] > times[1] >= times[2] >= times[3]


def test_what_is_pooled_ahead_takes_memory() -> None:
    plan, spmd, _ = step_of({"shard": 4})
    communication = MEMORY_CATEGORIES.index("communication")
    pooled = WIDTH * WIDTH * 4
    most = [
        int(MemoryWalk(spmd, plan, {}, VIEWS, prefetch=prefetch).use(4).live_bytes[:, communication].max())
        for prefetch in (0, 1, 2)
    ]
    assert most[0] >= pooled
    assert [more - most[0] for more in most] == [0, pooled, 2 * pooled]


def test_buckets_are_reduced_while_the_backward_pass_runs() -> None:
    """With one bucket for each layer, all but the last are sent before the last product; with one for all, none is."""
    exposed = []
    for bucket_bytes in (1, 10**9):
        plan, spmd, schedules = step_of({"data": 4}, bucket_bytes)
        program = build_program(spmd, plan, 4, schedules, {})
        step = timed(program)
        computes = (program.kind == OpKind.COMPUTE) & (program.device == 0)
        last = int(step.timing.ops.start_ps[computes].max())
        first_sent = int(starts_of(program, step.timing.ops.start_ps, "gradients").min())
        assert (first_sent < last) == (bucket_bytes == 1)
        exposed.append(step.summary.exposed_comm_ps)
    assert exposed[0] != exposed[1]
