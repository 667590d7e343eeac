"""Threads of a device: which ops run beside which, on both engines and any number of ranks, and what steps gain."""

from copy import deepcopy
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_under_test import captured, grid
from stored_step import stored_step
from test_network_engine import check_same, random_mesh, random_program
from test_overlap_prefetch import SPEC
from torch import nn
from torch.nn import functional as F

from meshemu import emulate
from meshemu.analysis.critical_path import critical_path
from meshemu.config import toml_text
from meshemu.cost import durations_ps
from meshemu.cost.op_classes import VIEWS
from meshemu.cost.threads import Threads, units_of
from meshemu.emulator.retiming import retime
from meshemu.emulator.timed_step import TimingOptions, time_step
from meshemu.errors import InputError
from meshemu.hardware import System
from meshemu.mesh import flatten
from meshemu.network import time_program
from meshemu.network.oracle import reference_program
from meshemu.program.builder import ProgramBuilder
from meshemu.program.ir import OpKind, Program
from meshemu.program.units import Unit, Units
from meshemu.program.verify import verify
from meshemu.runtime.local import SingleComm, run_ranks
from meshemu.study.machine import open_step
from meshemu.study.machine import timed as timed_on
from meshemu.workload.choice import choose_schedules
from meshemu.workload.emission import build_program
from meshemu.workload.memory import MemoryWalk
from meshemu.workload.partitioning import partition
from meshemu.workload.placement import make_plan


def any_units(program: Program, seed: int) -> Units:
    """Units at random, some ops without one, one to three servers for combinations."""
    rng = np.random.default_rng(seed)
    of_op = rng.choice([-1, 1, 2, 5], program.n_ops)
    combines = (program.kind == OpKind.REDUCE) & (rng.random(program.n_ops) < 0.8)
    return Units(np.where(combines, Unit.COMBINE, of_op).astype(np.int32), int(rng.integers(1, 4)))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_both_engines_agree_on_units(seed: int) -> None:
    mesh = random_mesh(seed)
    program, duration = random_program(mesh.n_devices, seed)
    units = any_units(program, seed)
    found = time_program(program, mesh, duration, packet_bytes=100, timeline_bins=5, units=units)
    check_same(found, reference_program(program, mesh, duration, packet_bytes=100, timeline_bins=5, units=units))


@pytest.mark.parametrize("n_ranks", [2, 3, 4])
def test_units_do_not_depend_on_ranks(n_ranks: int) -> None:
    mesh = flatten(System.grid(rows=4, cols=3, bandwidth="100 GB/s", latency="20 ns"))
    program, duration = random_program(mesh.n_devices, 5, 60)
    units = any_units(program, 1)
    single = time_program(program, mesh, duration, packet_bytes=64, units=units)
    for found in run_ranks(
        n_ranks, lambda comm: time_program(program, mesh, duration, packet_bytes=64, units=units, comm=comm)
    ):
        check_same(found, single)


@pytest.mark.parametrize(
    ("units", "words"),
    [
        (Units(np.zeros(1, np.int32)), "the Program has 2 ops"),
        (Units(np.array([0, -2], np.int32)), "op 1: unit -2"),
        (Units(np.array([5000, 0], np.int32)), "op 0: unit 5000"),
        (Units(np.zeros(2, np.int32), 0), "combining = 0"),
    ],
)
def test_units_that_are_none(units: Units, words: str) -> None:
    builder = ProgramBuilder(2)
    builder.compute([0, 1], label="a", op_class="add", number_format="fp32", flops=1, read_bytes=1, write_bytes=1)
    with pytest.raises(InputError, match=words):
        time_program(builder.build(), flatten(grid(1, 2)), [1, 1], units=units)


def independent(op_classes: list[str], kinds: list[OpKind]) -> Program:
    """Ops of one device that wait for nothing."""
    builder = ProgramBuilder(2)
    work = {"number_format": "fp32", "flops": 1, "read_bytes": 1, "write_bytes": 1}
    for op_class, kind in zip(op_classes, kinds, strict=True):
        add = builder.reduce if kind == OpKind.REDUCE else builder.compute
        add([0], label=op_class, op_class=op_class, **work)
    return builder.build()


def starts_of(program: Program, threads: Threads) -> list[int]:
    duration = [100, 10, 30, 5][: program.n_ops]
    mesh = flatten(grid(1, 2))
    return time_program(program, mesh, duration, units=units_of(program, threads)).ops.start_ps.tolist()


def test_a_product_runs_beside_a_vector_op() -> None:
    program = independent(["mm", "add", "convolution", "relu_"], [OpKind.COMPUTE] * 4)
    assert starts_of(program, Threads()) == [0, 100, 110, 140]
    assert starts_of(program, Threads(compute=2)) == [0, 0, 100, 10]
    assert starts_of(program, Threads(communication=2)) == [0, 100, 110, 140]


def test_two_combinations_at_once() -> None:
    """The third takes the server that is free first, the fourth the one after it."""
    program = independent(["reduce_sum"] * 4, [OpKind.REDUCE] * 4)
    assert starts_of(program, Threads()) == [0, 100, 110, 140]
    assert starts_of(program, Threads(communication=2)) == [0, 0, 10, 40]
    assert starts_of(program, Threads(compute=2)) == [0, 100, 110, 140]
    assert starts_of(program, Threads(compute=2, communication=2)) == [0, 0, 10, 40]
    mixed = independent(["reduce_sum", "add"], [OpKind.REDUCE, OpKind.COMPUTE])
    assert starts_of(mixed, Threads(compute=2)) == [0, 0], "a combination takes neither unit of compute"


def test_numbers_of_threads() -> None:
    for compute, communication, words in ((0, 1, "compute_threads = 0"), (1, 3, "communication_threads = 3")):
        with pytest.raises(InputError, match=rf"timing\.{words}: must be 1 or 2"):
            TimingOptions(compute_threads=compute, communication_threads=communication)


def test_a_stored_run_is_timed_with_its_threads(tmp_path: Path) -> None:
    program = independent(["reduce_sum"] * 4, [OpKind.REDUCE] * 4)
    system = System.grid(rows=1, cols=2, bandwidth="50 GB/s", latency="500 ns", device=SPEC)
    options = TimingOptions(communication_threads=2)
    path = stored_step(tmp_path / "a.h5", program, system, toml_text(options.tables()), options)
    both, one = 2 * (SPEC.combine_ps + 10), 4 * (SPEC.combine_ps + 10)  # a flop takes 10 ps
    step = open_step(path)
    assert retime(path, [], tmp_path / "b.h5").timing.end_ps == timed_on(step, step.machine).time_ps == both
    changed = retime(path, ["timing.communication_threads=1"], tmp_path / "c.h5")
    assert changed.timing.end_ps == one
    assert retime(tmp_path / "c.h5", [], tmp_path / "d.h5").timing.end_ps == one
    with pytest.raises(InputError, match=r"timing\.compute_threads cannot be changed here"):
        retime(path, ["timing.compute_threads=2"], tmp_path / "e.h5")
    with pytest.raises(InputError, match=r"timing\.communication_threads"):
        retime(path, ["timing.communication_threads=3"], tmp_path / "f.h5")


SYSTEM = System.grid(rows=2, cols=2, bandwidth="50 GB/s", latency="500 ns", device=SPEC)


@cache
def step_of(compute_threads: int) -> tuple[Program, int]:
    """(Program, most bytes) of a small perceptron on four devices, whose layers have two branches."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for one, other in zip(self.layers[::2], self.layers[1::2], strict=True):
                x = torch.tanh(one(x)) + torch.sigmoid(other(x))
            return x

    torch.manual_seed(0)
    graph = captured(Branches(), (torch.zeros(64, 32), torch.zeros(64, 32)), F.mse_loss)
    mesh = flatten(SYSTEM)
    plan = make_plan({"data": 4}, mesh)
    spmd = partition(graph, plan, 1)
    schedules = choose_schedules(spmd, plan, mesh, "ring", lambda _format, size_bytes: size_bytes)
    program = build_program(spmd, plan, 4, schedules, {}, compute_threads=compute_threads)
    use = MemoryWalk(spmd, plan, {}, VIEWS, compute_threads=compute_threads).use(4)
    return program, use.most_bytes


def timed(program: Program, compute: int, communication: int, comm=None):
    options = TimingOptions(compute_threads=compute, communication_threads=communication)
    return time_step(program, SYSTEM, np.zeros(4, np.int64), options, comm or SingleComm())


def most_at_once(step, device: int, kind: OpKind) -> int:
    """The most ops of a kind that a device has under way at a time."""
    program, ops = step.program, step.timing.ops
    own = np.flatnonzero((program.device == device) & (program.kind == kind) & (ops.end_ps > ops.start_ps))
    changes = sorted([(int(t), 1) for t in ops.start_ps[own]] + [(int(t), -1) for t in ops.end_ps[own]])
    return int(np.cumsum([change for _, change in changes]).max())


def test_a_step_with_two_threads_of_each_kind() -> None:
    one, bytes_of_one = step_of(1)
    two, bytes_of_two = step_of(2)
    verify(two)
    plain, both = timed(one, 1, 1), timed(two, 2, 2)
    assert both.summary.time_ps < plain.summary.time_ps
    assert bytes_of_one < bytes_of_two <= 2 * bytes_of_one
    assert both.summary.flops == plain.summary.flops
    for device in range(4):
        assert most_at_once(plain, device, OpKind.COMPUTE) == 1
        assert most_at_once(both, device, OpKind.COMPUTE) == 2
        assert most_at_once(plain, device, OpKind.REDUCE) == 1
    durations = durations_ps(one, SYSTEM.device)
    computes = (one.kind == OpKind.COMPUTE) & (one.device == 0)
    assert plain.summary.device_compute_ps[0] == durations[computes].sum()
    assert both.summary.device_compute_ps[0] < durations[computes].sum()
    assert (both.summary.device_compute_ps + both.summary.device_idle_ps == both.summary.time_ps).all()
    assert not [one for one in plain.assumptions if one.key == "threads"]
    (words,) = [one.sentence for one in both.assumptions if one.key == "threads"]
    assert "2 compute and 2 communication threads" in words
    for other in run_ranks(3, lambda comm: timed(two, 2, 2, comm)):
        check_same(other.timing, both.timing)


def test_a_thread_takes_every_other_op_of_a_device() -> None:
    """Op i waits for op i - 2, so that no op is under way beside one that came two before it."""
    program, _ = step_of(2)
    ops = np.flatnonzero((program.kind == OpKind.COMPUTE) & (program.device == 1))
    waits = {int(op): set(program.dep[program.dep_ptr[op] : program.dep_ptr[op + 1]].tolist()) for op in ops}
    assert all(int(before) in waits[int(op)] for before, op in zip(ops[:-2], ops[2:], strict=True))
    assert not all(int(before) in waits[int(op)] for before, op in pairwise(ops))


@pytest.mark.parametrize("threads", [(1, 1), (2, 2)])
def test_the_critical_path_is_the_step(threads: tuple[int, int]) -> None:
    program, _ = step_of(threads[0])
    step = timed(program, *threads)
    times = step.timing.ops
    path = critical_path(program, step.mesh, times.start_ps, times.end_ps)
    assert path.total_ps == step.summary.time_ps
    for before, op in pairwise(path.ops):
        if program.kind[op] in (OpKind.COMPUTE, OpKind.REDUCE):
            assert times.end_ps[before] == times.start_ps[op], "nothing on the path waits for nothing"


class Factored(nn.Module):
    """Its operator that looks whether the factors are right makes no value."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        square = x.mT @ x + torch.eye(3)
        return self.head(torch.linalg.cholesky(square)[:, 0])  # type: ignore[no-any-return]


@pytest.mark.parametrize("plan", ["data", {"pipeline": 2, "micro_batches": 2}], ids=str)
def test_an_operator_without_a_result_holds_back_what_it_reads(plan: str | dict[str, int]) -> None:
    """As any other: values are those of one thread."""
    torch.manual_seed(0)
    model, batch = Factored(), (torch.randn(8, 2, 3), torch.arange(8) % 4)
    system = System.grid(rows=2, cols=2, bandwidth="10 GB/s", latency="1 us")

    def losses(compute_threads: int) -> list[float]:
        options = TimingOptions(compute_threads=compute_threads)
        return emulate(deepcopy(model), batch, F.cross_entropy, system=system, plan=plan, options=options).losses

    assert losses(1) == losses(2)
