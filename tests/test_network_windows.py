"""Windows: ranks agree on how far each may run, count what they do, and skip times without events."""

from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_network_engine import check_same, random_mesh, random_program, random_traffic
from test_network_trees import line

from meshemu.collectives import collective_program
from meshemu.hardware import System
from meshemu.mesh import flatten
from meshemu.network import simulate_messages, time_program
from meshemu.network.engine import NO_ROWS, Region
from meshemu.network.events import HEADER, NEVER
from meshemu.network.results import EngineCounters, RankCounters
from meshemu.network.state import HORIZON
from meshemu.program.builder import ProgramBuilder
from meshemu.runtime.local import run_ranks


def test_empty_time_is_skipped():
    mesh = flatten(System.grid(rows=2, cols=4, bandwidth="1 TB/s", latency="10 ns"))
    src, dst, ready = [0, 7, 0, 7], [7, 0, 7, 0], [0, 0, 10**15, 10**15]
    single = simulate_messages(mesh, src, dst, 1000, ready)
    for result in run_ranks(2, lambda comm: simulate_messages(mesh, src, dst, 1000, ready, comm=comm)):
        check_same(result, single)
        assert 2 <= result.counters.windows <= 20


@pytest.mark.parametrize("n_ranks", [1, 2, 3])
def test_each_rank_counts_what_it_does(n_ranks):
    mesh = flatten(System.grid(rows=4, cols=3, bandwidth="1 TB/s", latency="100 ns"))
    program = collective_program("all_reduce", "ring", mesh, 12_000)
    free = np.zeros(program.n_ops, np.int64)
    for result in run_ranks(n_ranks, lambda comm: time_program(program, mesh, free, comm=comm)):
        ranks = result.counters.ranks
        assert len(ranks) == n_ranks
        assert sum(rank.events for rank in ranks) == result.counters.events > 0
        assert all(rank.events > 0 and rank.busy_s > 0 and (rank.sent > 0) == (n_ranks > 1) for rank in ranks)
        assert 1 <= result.counters.imbalance <= n_ranks


def test_imbalance():
    ranks = tuple(RankCounters(events=1, sent=0, busy_s=busy) for busy in (3.0, 1.0))
    assert EngineCounters(events=2, packet_hops=2, windows=1, wall_s=4.0, ranks=ranks).imbalance == 1.5
    assert EngineCounters(events=0, packet_hops=0, windows=0, wall_s=0.0).imbalance == 1.0


def test_times_in_which_nothing_crosses_take_no_windows():
    """Two halves of a line talk among themselves for long, and once in a while with each other."""
    mesh = flatten(System.grid(rows=1, cols=8, bandwidth="1 TB/s", latency="100 ns"))
    rng = np.random.default_rng(0)
    half, at, step = rng.integers(0, 2, 4000), rng.integers(0, 4, 4000), rng.integers(1, 4, 4000)
    src, dst = 4 * half + at, 4 * half + (at + step) % 4
    ready = rng.integers(0, 10**9, 4000)
    src, dst = np.append(src, [3, 4, 3]), np.append(dst, [4, 3, 4])
    ready = np.append(ready, [10**8, 4 * 10**8, 9 * 10**8])
    single = simulate_messages(mesh, src, dst, 3000, ready)
    for result in run_ranks(2, lambda comm: simulate_messages(mesh, src, dst, 3000, ready, comm=comm)):
        check_same(result, single)
        assert result.counters.windows <= 20


def test_a_step_of_a_ring_that_crosses_takes_about_one_window():
    """Two regions of ten columns: 2 x 19 steps of the rings along rows cross, those along columns do not."""
    mesh = flatten(System.grid(rows=8, cols=20, bandwidth="50 GB/s", latency="500 ns"))
    program = collective_program("all_reduce", "rows_columns", mesh, 3_200_000, itemsize=4)
    free = np.zeros(program.n_ops, np.int64)
    single = time_program(program, mesh, free)
    for result in run_ranks(2, lambda comm: time_program(program, mesh, free, comm=comm)):
        check_same(result, single)
        assert result.counters.windows < 1.5 * 2 * 19


@contextmanager
def rows_in_time():
    """The promise of a window: rows of other ranks are never earlier than the last horizon."""
    run, horizons = Region.run, {}

    def checked(region, rows=NO_ROWS):
        events = rows[rows[:, 2] != HEADER]
        assert events[:, 0].min(initial=NEVER) >= horizons.get(id(region), 0)
        last = run(region, rows)
        horizons[id(region)] = int(region.state.scalar[HORIZON])
        return last

    with mock.patch.object(Region, "run", checked):
        yield


def test_a_train_that_is_cut_far_from_the_other_rank_is_felt_there():
    """A long message crosses; one that stays on the first rank comes between its packets, later and later."""
    mesh = flatten(System.grid(rows=1, cols=8, bandwidth="1 TB/s", latency="100 ns"))
    src, dst, size = [0, 1, 0, 1], [7, 3, 2, 2], [10**6, 10**4, 5000, 3000]
    ready = [0, 300_000, 500_000, 900_000]
    single = simulate_messages(mesh, src, dst, size, ready, packet_bytes=1000)
    assert single.counters.events < 3000, "trains"
    with rows_in_time():
        for result in run_ranks(
            2, lambda comm: simulate_messages(mesh, src, dst, size, ready, packet_bytes=1000, comm=comm)
        ):
            check_same(result, single)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 60), n_ranks=st.integers(2, 4), long=st.booleans())
def test_nothing_comes_in_before_what_has_run(seed, n, n_ranks, long):
    mesh = random_mesh(seed)
    n_ranks = min(n_ranks, mesh.n_devices)
    src, dst, size, ready = random_traffic(mesh, seed, n)
    size = size * 40 if long else size
    program, duration = random_program(mesh.n_devices, seed, n_rounds=n // 2 + 1)
    single = time_program(program, mesh, duration, packet_bytes=64)
    alone = simulate_messages(mesh, src, dst, size, ready, packet_bytes=64)

    def both(comm):
        timed = time_program(program, mesh, duration, packet_bytes=64, comm=comm)
        return timed, simulate_messages(mesh, src, dst, size, ready, packet_bytes=64, comm=comm)

    with rows_in_time():
        for timed, arrived in run_ranks(n_ranks, both):
            check_same(timed, single)
            check_same(arrived, alone)


OF_OPS = (
    "kind", "device", "label", "op_class", "number_format", "flops", "read_bytes", "write_bytes", "message",
    "collective", "chunk_lo", "chunk_hi", "shape", "producer", "producer_bytes", "interface",
)  # fmt: skip


def renumbered(program, old):
    """The same ops in the order `old`: perhaps that of time no longer."""
    new = np.argsort(old)
    of_ops = {name: getattr(program, name)[old] for name in OF_OPS}
    of_messages = {"send_op": new[program.send_op], "recv_op": new[program.recv_op]}
    deps = [new[program.dep[program.dep_ptr[op] : program.dep_ptr[op + 1]]] for op in old]
    dep_ptr = np.cumsum([0, *map(len, deps)])
    return replace(program, **of_ops | of_messages, dep=np.concatenate(deps), dep_ptr=dep_ptr)


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_ops_that_are_not_in_the_order_of_time(n_ranks):
    mesh = flatten(System.grid(rows=2, cols=4, bandwidth="50 GB/s", latency="500 ns"))
    program, duration = random_program(mesh.n_devices, 7, n_rounds=80)
    old = np.random.default_rng(3).permutation(program.n_ops)
    program = renumbered(program, old)
    single = time_program(program, mesh, duration[old], packet_bytes=64)
    with rows_in_time():
        for result in run_ranks(
            n_ranks, lambda comm: time_program(program, mesh, duration[old], packet_bytes=64, comm=comm)
        ):
            check_same(result, single)


WORK = {"label": "x", "op_class": "y", "number_format": "fp32", "flops": 1, "read_bytes": 1, "write_bytes": 1}


def check_in_time(program, mesh, duration):
    single = time_program(program, mesh, duration)
    with rows_in_time():
        for result in run_ranks(2, lambda comm: time_program(program, mesh, duration, comm=comm)):
            check_same(result, single)


@pytest.mark.parametrize("order", ["of time", "backward", "RECV first"])
@pytest.mark.parametrize("held_up, before", [("SEND", "SEND"), ("RECV", "RECV"), ("SEND", "RECV")])
def test_what_a_message_that_stays_holds_up_is_felt_elsewhere(held_up, before, order):
    """The first of two computes is there so that, when the second one begins, nothing else is pending.

    They hold up one end of a message between devices of the first rank; another one, that crosses, waits for `before`.
    """
    mesh = flatten(System.grid(rows=1, cols=4, bandwidth="1 TB/s", latency="100 ns"))
    builder = ProgramBuilder(4)
    first, second = (int(builder.compute([1], **WORK)[0]) for _ in range(2))
    src, dst = (1, 0) if held_up == "SEND" else (0, 1)
    _, sends, recvs = builder.messages([src], [dst], [1000], label="stays")
    _, crossing, _ = builder.messages([src if before == "SEND" else dst], [2], [1000], label="crosses")
    ends = {"SEND": int(sends[0]), "RECV": int(recvs[0])}
    for op, on in ((second, first), (ends[held_up], second), (int(crossing[0]), ends[before])):
        builder.depend(op, on)
    program = builder.build()
    ops = np.arange(program.n_ops)
    old = {"of time": ops, "backward": ops[::-1], "RECV first": np.argsort(ops != ends["RECV"], kind="stable")}[order]
    check_in_time(renumbered(program, old), mesh, np.where(old <= second, 10**7, 0))


def test_a_tree_that_waits_for_an_op_is_felt_elsewhere():
    builder = ProgramBuilder(8)
    (compute,) = builder.compute([1], **WORK)
    _, sends, _ = builder.messages(1, [0, 4, 6], 1000, label="m", tree=[0] * 3)
    builder.depend(sends, int(compute))
    program = builder.build()
    check_in_time(program, line(8, "70 ps"), np.where(np.arange(program.n_ops) == compute, 10**7, 0))


def test_what_comes_back_through_another_region_is_felt_there_again():
    """Of two links in the east both are dead: a message goes round through the west, and is answered there."""
    mesh = flatten(
        System.grid(rows=2, cols=4, bandwidth="1 TB/s", latency="100 ns").override(
            {"dead_links": [[[0, 2], [1, 2]], [[0, 3], [1, 3]]]}
        )
    )
    builder = ProgramBuilder(8)
    _, _, recv = builder.messages([2], [6], [1000], label="round")
    _, send, _ = builder.messages([6], [4], [1000], label="answer")
    builder.depend(send, recv)
    program = builder.build()
    check_in_time(program, mesh, np.zeros(program.n_ops, np.int64))


@pytest.mark.parametrize(
    "algorithm, shape, size_bytes, packet_bytes",
    [("rows_columns", (12, 10), 3_200_000, 4096), ("ring", (6, 5), 2**20, 1024), ("tree", (5, 7), 10**6, 4096)],
)
def test_large_all_reduce_on_one_to_four_ranks(algorithm, shape, size_bytes, packet_bytes):
    """As on 60 x 50 devices: each gets 1/n of the buffer, trains pass undisturbed, combinations take time."""
    mesh = flatten(System.grid(rows=shape[0], cols=shape[1], bandwidth="50 GB/s", latency="500 ns"))
    program = collective_program("all_reduce", algorithm, mesh, size_bytes, itemsize=4)
    duration = program.flops // 2
    single = time_program(program, mesh, duration, packet_bytes=packet_bytes)
    for n_ranks in (2, 3, 4):
        for result in run_ranks(
            n_ranks, lambda comm: time_program(program, mesh, duration, packet_bytes=packet_bytes, comm=comm)
        ):
            check_same(result, single)


@pytest.mark.parametrize("n_ranks, size_bytes", [(2, 4096), (2, 10**6), (3, 10**6), (4, 10**6)])
def test_all_reduce_on_the_nodes_of_a_die(n_ranks, size_bytes):
    mesh = flatten(System.preset("dojo-die"))
    assert (mesh.n_devices, mesh.alive.sum()) == (360, 354)
    program = collective_program("all_reduce", "tree", mesh, size_bytes, itemsize=4)
    free = np.zeros(program.n_ops, np.int64)
    single = time_program(program, mesh, free, packet_bytes=64)
    assert single.links.bytes.sum() > 2 * 353 * size_bytes
    for result in run_ranks(n_ranks, lambda comm: time_program(program, mesh, free, packet_bytes=64, comm=comm)):
        check_same(result, single)


def test_more_rows_come_in_at_once_than_a_rank_has_room_for():
    """Its heap grows before it takes them in, and none is lost."""
    mesh = flatten(System.grid(rows=1, cols=4, bandwidth="50 GB/s", latency="1 ms"))
    n = 3000
    single = simulate_messages(mesh, [0] * n, [3] * n, 64)
    came = []
    run = Region.run

    def counted(region, rows=NO_ROWS):
        came.append((len(rows), len(region.state.heap)))
        return run(region, rows)

    with mock.patch.object(Region, "run", counted):
        for result in run_ranks(2, lambda comm: simulate_messages(mesh, [0] * n, [3] * n, 64, comm=comm)):
            check_same(result, single)
    assert any(n_rows > room for n_rows, room in came)
