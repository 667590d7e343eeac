"""The critical path adds up to the step and puts time where it belongs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_run import make_case
from tree_engines import routed_mesh

from meshemu.analysis.critical_path import critical_path
from meshemu.hardware import System
from meshemu.mesh import flatten
from meshemu.network import time_program
from meshemu.program.builder import ProgramBuilder

WORK = {"flops": 1, "read_bytes": 1, "write_bytes": 1, "number_format": "fp32"}


def line(n: int) -> "object":
    return flatten(System.grid(rows=1, cols=n, bandwidth="1 GB/s", latency="10 ns"))


def test_one_message_between_two_computations() -> None:
    """compute 500 -> message of 100 bytes over 2 hops -> compute 300."""
    mesh, builder = line(3), ProgramBuilder(3)
    (first,) = builder.compute([0], label="a", op_class="conv", **WORK)
    _, send, recv = builder.messages([0], [2], [100], label="m")
    builder.depend(send, first)
    (last,) = builder.compute([2], label="b", op_class="norm", **WORK)
    builder.depend([last], recv)
    program = builder.build()
    duration = np.array([500, 0, 0, 300])
    timing = time_program(program, mesh, duration)
    path = critical_path(program, mesh, timing.ops.start_ps, timing.ops.end_ps)
    assert path.compute_ps_by_class == {"conv": 500, "norm": 300}
    assert (path.latency_ps, path.serialisation_ps, path.waiting_ps, path.combine_ps) == (20_000, 100_000, 0, 0)
    assert path.ops == (first, send[0], recv[0], last) and path.n_messages == 1
    assert path.total_ps == timing.end_ps == 120_800


def test_contention_counts_as_waiting() -> None:
    """Two messages of 100 bytes share a link: the second waits for the first."""
    mesh, builder = line(2), ProgramBuilder(2)
    builder.messages([0, 0], [1, 1], [100, 100], label="m")
    program = builder.build()
    timing = time_program(program, mesh, np.zeros(4, np.int64))
    path = critical_path(program, mesh, timing.ops.start_ps, timing.ops.end_ps)
    assert (path.serialisation_ps, path.waiting_ps, path.latency_ps) == (100_000, 100_000, 10_000)


def test_queueing_for_the_unit_follows_the_op_that_held_it() -> None:
    mesh, builder = line(1), ProgramBuilder(1)
    builder.compute([0, 0, 0], label="x", op_class="conv", **WORK)
    program = builder.build()
    timing = time_program(program, mesh, np.array([5, 7, 11]))
    path = critical_path(program, mesh, timing.ops.start_ps, timing.ops.end_ps)
    assert path.ops == (0, 1, 2) and path.compute_ps == 23 and path.communication_ps == 0


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 4), cols=st.integers(1, 4), size=st.integers(1, 20_000), compute_ps=st.integers(0, 10**7),
    seed=st.integers(0, 99),
)
def test_parts_add_up_to_the_step(rows: int, cols: int, size: int, compute_ps: int, seed: int) -> None:
    case = make_case(rows, cols, message_bytes=size)
    program = case.program
    random = np.random.default_rng(seed)
    duration = random.integers(0, compute_ps + 1, program.n_ops) * np.isin(program.kind, (0, 3))
    timing = time_program(program, case.mesh, duration, packet_bytes=int(random.integers(1000, 5000)))
    path = critical_path(program, case.mesh, timing.ops.start_ps, timing.ops.end_ps)
    assert path.total_ps == timing.end_ps
    assert min(path.compute_ps, path.combine_ps, path.latency_ps, path.serialisation_ps, path.waiting_ps) >= 0
    assert sum(path.compute_ps_by_class.values()) == path.compute_ps
    assert (np.diff(timing.ops.end_ps[list(path.ops)]) >= 0).all()


def test_an_empty_program_has_an_empty_path() -> None:
    program = ProgramBuilder(1).build()
    none = np.zeros(0, np.int64)
    assert critical_path(program, line(1), none, none).total_ps == 0


@pytest.mark.parametrize("order", ["xy", "yx"])
def test_routes_of_the_run_are_used(order: str) -> None:
    """A slow link lies on the xy route only."""
    system = System.preset("dojo-tray")  # tile edges are slower than die edges
    mesh = flatten(system)
    builder = ProgramBuilder(mesh.n_devices)
    builder.messages([0], [17], [10**6], label="m")
    program = builder.build()
    timing = time_program(program, mesh, np.zeros(2, np.int64), order=order)
    path = critical_path(program, mesh, timing.ops.start_ps, timing.ops.end_ps, order=order)
    assert path.waiting_ps == 0 and path.total_ps == timing.end_ps


def test_a_reduction_follows_its_last_sender_and_a_multicast_its_own_way() -> None:
    """Devices 0, 1, 2 add into 3; 1 computes for 500 ns, so its part decides. Then 3 multicasts, and 0 is farthest."""
    mesh = routed_mesh(System.grid(rows=1, cols=4, bandwidth="1 GB/s", latency="10 ns"), "7 ns")
    builder = ProgramBuilder(4)
    late = builder.compute([1], label="late", op_class="conv", **WORK)
    message, send, recv = builder.messages([0, 1, 2], 3, 100, label="r", tree=[0, 0, 0])
    builder.depend(send[1], late)
    add = builder.reduce(3, label="add", op_class="sum", message=message[:1], **WORK)
    builder.depend(add, recv[:1])
    _, out, back = builder.messages(3, [0, 1, 2], 50, label="m", tree=[0, 0, 0])
    builder.depend(out[:1], add)
    program = builder.build()
    duration = np.zeros(program.n_ops, np.int64)
    duration[late], duration[add] = 500_000, 900
    timing = time_program(program, mesh, duration)
    path = critical_path(program, mesh, timing.ops.start_ps, timing.ops.end_ps)
    assert path.ops == (late[0], send[1], recv[0], add[0], out[0], back[0])
    # Part 1 merges at 1 and at 2, then goes over two links; the copy of 0 over three.
    assert path.latency_ps == 2 * 10_000 + 2 * 7_000 + 3 * 10_000
    assert (path.compute_ps, path.combine_ps, path.waiting_ps) == (500_000, 900, 0)
    assert path.serialisation_ps == 100_000 + 50_000
    assert path.total_ps == timing.end_ps


def test_a_send_that_forks_lasts_until_its_slowest_first_link() -> None:
    mesh = routed_mesh(System.grid(rows=1, cols=3, bandwidth="1 GB/s", latency="10 ns"))
    mesh.bandwidth_bytes_per_s[mesh.out_link[1, 3]] = 10**8
    builder = ProgramBuilder(3)
    _, send, _ = builder.messages(1, [0, 2], 100, label="m", tree=[0, 0])
    after = builder.compute([1], label="after", op_class="conv", **WORK)
    builder.depend(after, send[:1])
    program = builder.build()
    duration = np.zeros(program.n_ops, np.int64)
    duration[after] = 10**8
    timing = time_program(program, mesh, duration)
    path = critical_path(program, mesh, timing.ops.start_ps, timing.ops.end_ps)
    assert (path.serialisation_ps, path.waiting_ps, path.latency_ps) == (1_000_000, 0, 0)
    assert path.ops == (send[0], after[0]) and path.total_ps == timing.end_ps
