"""Windows: ranks agree on how far each may run, count what they do, and skip times without events."""

import numpy as np
import pytest
from test_network_engine import check_same

from meshemu.collectives import collective_program
from meshemu.hardware import System
from meshemu.mesh import flatten
from meshemu.network import simulate_messages, time_program
from meshemu.network.results import EngineCounters, RankCounters
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


@pytest.mark.parametrize("n_ranks, size_bytes", [(2, 4096), (3, 4096), (4, 4096), (2, 30_000)])
def test_all_reduce_on_the_nodes_of_a_die(n_ranks, size_bytes):
    mesh = flatten(System.preset("dojo-die"))
    assert (mesh.n_devices, mesh.alive.sum()) == (360, 354)
    program = collective_program("all_reduce", "tree", mesh, size_bytes, itemsize=4)
    free = np.zeros(program.n_ops, np.int64)
    single = time_program(program, mesh, free, packet_bytes=64)
    assert single.links.bytes.sum() > 2 * 353 * size_bytes
    for result in run_ranks(n_ranks, lambda comm: time_program(program, mesh, free, packet_bytes=64, comm=comm)):
        check_same(result, single)
