"""What holds for any traffic: conservation, causality, capacity, monotonicity, and independence of rows and ranks.

Both engines are held to it, the compiled one and the reference.
"""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshemu.hardware import System
from meshemu.mesh import Mesh, flatten, message_ps, rate, routes
from meshemu.network import MessageTimes, simulate_messages
from meshemu.network.oracle import reference_messages
from meshemu.network.row_order import row_order
from meshemu.runtime.local import run_ranks

FEW = settings(max_examples=25, deadline=None, derandomize=True)
SEEDS = st.integers(0, 10**6)
Rows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


ENGINES: dict[str, Callable[..., MessageTimes]] = {"compiled": simulate_messages, "reference": reference_messages}
each_engine = pytest.mark.parametrize("engine", ENGINES.values(), ids=list(ENGINES))


def a_mesh(seed: int) -> Mesh:
    """A small grid of unequal links, some devices dead."""
    rng = np.random.default_rng(seed)
    rows, cols = int(rng.integers(2, 6)), int(rng.integers(1, 6))
    system = System.grid(rows=rows, cols=cols, bandwidth="50 GB/s", latency="500 ns")
    if rows > 2 and cols > 2:
        system = system.override({"dead": [[int(rng.integers(1, rows - 1)), int(rng.integers(1, cols - 1))]]})
    mesh = flatten(system)
    mesh.bandwidth_bytes_per_s[:] = rng.choice([10**10, 3 * 10**11, 7 * 10**11, 10**12], mesh.n_links)
    mesh.latency_ps[:] = rng.choice([1, 7, 300, 5000], mesh.n_links)
    return mesh


def some_rows(mesh: Mesh, seed: int, n: int) -> Rows:
    """Messages between live devices, many of them ready at one time and some of them equal."""
    rng = np.random.default_rng(seed)
    alive = np.flatnonzero(mesh.alive)
    at = rng.integers(0, len(alive), n)
    src, dst = alive[at], alive[(at + rng.integers(1, len(alive), n)) % len(alive)]
    rows = src, dst, rng.choice([1, 64, 65, 1000, 3000], n), rng.choice([0, 0, 0, 5, 3000], n)
    twice = rng.integers(0, n, n // 8)
    return tuple(np.concatenate([column, column[twice]]) for column in rows)


@each_engine
@FEW
@given(seed=SEEDS, n=st.integers(1, 80), packet_bytes=st.sampled_from([50, 128, 4096]))
def test_conservation_causality_capacity(engine, seed, n, packet_bytes):
    mesh = a_mesh(seed)
    src, dst, size, ready = some_rows(mesh, seed, n)
    found = engine(mesh, src, dst, size, ready, packet_bytes=packet_bytes, timeline_bins=6)
    way = routes(mesh, src, dst)
    carried, packets = np.zeros((2, mesh.n_links), np.int64)
    for row, route in enumerate(way.index):
        carried[way.links(route)] += size[row]
        packets[way.links(route)] += -(-size[row] // packet_bytes)
    np.testing.assert_array_equal(found.links.bytes, carried)
    np.testing.assert_array_equal(found.links.packets, packets)
    assert (found.depart_ps >= ready).all()
    assert (found.arrival_ps >= ready + message_ps(mesh, way, size)).all(), "contention makes nothing faster"
    num, den = np.array([rate(int(b)) for b in mesh.bandwidth_bytes_per_s]).T
    assert (found.links.busy_ps * den >= carried * num).all()
    assert (found.timeline.link_busy_ps <= found.timeline.bin_ps).all()
    np.testing.assert_array_equal(found.timeline.link_busy_ps.sum(0), found.links.busy_ps)
    assert ((found.links.max_queue > 0) == (found.links.wait_ps > 0)).all()


@each_engine
@FEW
@given(seed=SEEDS)
def test_the_order_of_rows_changes_nothing(engine, seed):
    mesh = a_mesh(seed)
    rows = some_rows(mesh, seed, 60)
    shuffled = np.random.default_rng(seed).permutation(len(rows[0]))
    first = engine(mesh, *rows, packet_bytes=200, timeline_bins=5)
    second = engine(mesh, *(column[shuffled] for column in rows), packet_bytes=200, timeline_bins=5)
    for name, values in vars(first.links).items():
        np.testing.assert_array_equal(vars(second.links)[name], values, name)
    np.testing.assert_array_equal(first.timeline.link_busy_ps, second.timeline.link_busy_ps)
    # Rows that are equal are interchangeable: as a set of rows with their times nothing changes.
    before = sorted(zip(*rows, first.depart_ps, first.arrival_ps, strict=True))
    after = sorted(zip(*(column[shuffled] for column in rows), second.depart_ps, second.arrival_ps, strict=True))
    assert before == after


@FEW
@given(seed=SEEDS, packet_bytes=st.sampled_from([50, 4096]))
def test_both_engines_agree(seed, packet_bytes):
    mesh = a_mesh(seed)
    rows = some_rows(mesh, seed, 50)
    first, second = (engine(mesh, *rows, packet_bytes=packet_bytes) for engine in ENGINES.values())
    np.testing.assert_array_equal(first.arrival_ps, second.arrival_ps)
    np.testing.assert_array_equal(first.depart_ps, second.depart_ps)
    for name, values in vars(first.links).items():
        np.testing.assert_array_equal(vars(second.links)[name], values, name)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=SEEDS)
def test_splitting_the_mesh_changes_nothing(seed):
    mesh = a_mesh(seed)
    np.maximum(mesh.latency_ps, 300, out=mesh.latency_ps)  # the shorter, the more exchanges
    rows = some_rows(mesh, seed, 50)
    single = simulate_messages(mesh, *rows, packet_bytes=300, timeline_bins=5)
    for n_ranks in range(2, min(4, mesh.n_devices) + 1):
        for found in run_ranks(
            n_ranks, lambda comm: simulate_messages(mesh, *rows, packet_bytes=300, timeline_bins=5, comm=comm)
        ):
            np.testing.assert_array_equal(found.arrival_ps, single.arrival_ps)
            np.testing.assert_array_equal(found.depart_ps, single.depart_ps)
            np.testing.assert_array_equal(found.timeline.link_busy_ps, single.timeline.link_busy_ps)
            for name, values in vars(single.links).items():
                np.testing.assert_array_equal(vars(found.links)[name], values, name)


@each_engine
@FEW
@given(seed=SEEDS, packet_bytes=st.sampled_from([100, 4096]))
def test_a_lone_message_is_monotonic(engine, seed, packet_bytes):
    """Slower or longer links, or more bytes, never let it arrive earlier; a later start shifts it."""
    mesh = a_mesh(seed)
    (src, dst, size, ready), rng = some_rows(mesh, seed, 1), np.random.default_rng(seed)
    row = tuple(column[:1] for column in (src, dst, size, ready))

    def arrival(*changed: np.ndarray) -> int:
        return int(engine(mesh, *(changed or row), packet_bytes=packet_bytes).arrival_ps[0])

    before = arrival()
    assert before == ready[0] + message_ps(mesh, routes(mesh, *row[:2]), row[2])[0]
    assert arrival(*row[:3], row[3] + 777) == before + 777
    assert arrival(*row[:2], row[2] + 10, row[3]) >= before
    links = routes(mesh, *row[:2]).links(0)
    slow = rng.choice(links)
    bandwidth, latency = mesh.bandwidth_bytes_per_s.copy(), mesh.latency_ps.copy()
    mesh.bandwidth_bytes_per_s[slow] //= int(rng.integers(2, 20))
    slower = arrival()
    assert slower >= before
    mesh.bandwidth_bytes_per_s[:] = bandwidth
    mesh.latency_ps[slow] += 99
    assert arrival() == before + 99
    mesh.latency_ps[:] = latency
    others = np.setdiff1d(np.arange(mesh.n_links), links)
    mesh.bandwidth_bytes_per_s[others] = 10**9
    assert arrival() == before, "links that are not on its route do not matter"


@each_engine
@FEW
@given(seed=SEEDS, n=st.integers(2, 12))
def test_a_shared_link_is_never_idle_while_packets_wait(engine, seed, n):
    """All to one neighbour over one link: it is busy from the first head to the last tail, whoever sends."""
    rng = np.random.default_rng(seed)
    mesh = flatten(System.grid(rows=1, cols=n + 1, bandwidth="50 GB/s", latency="1 ns"))
    size = rng.integers(1000, 3000, n)
    found = engine(mesh, np.arange(n), np.full(n, n), size, np.zeros(n, np.int64), packet_bytes=100)
    last = mesh.out_link[n - 1, 1]
    assert found.links.busy_ps[last] == size.sum() * 20
    assert found.end_ps == size.sum() * 20 + 1000, "the nearest sender starts at once and the others close up behind it"


def test_devices_take_turns():
    """Among messages that meet at one time each device has its turn before one has its second."""
    mesh = flatten(System.grid(rows=1, cols=4, bandwidth="50 GB/s", latency="1 ns"))
    src = np.array([0, 0, 0, 2, 2, 2])
    dst = np.array([1, 2, 3, 0, 1, 3])
    order = row_order(mesh.n_devices, src, dst, np.full(6, 8), np.zeros(6, np.int64))
    assert list(zip(src[order], dst[order], strict=True)) == [(0, 1), (2, 3), (0, 2), (2, 0), (0, 3), (2, 1)]
    later = row_order(mesh.n_devices, src, dst, np.full(6, 8), np.array([9, 0, 0, 0, 0, 0]))
    assert later[-1] == 0
    by_size = row_order(mesh.n_devices, np.zeros(3, int), np.ones(3, int), np.array([5, 4, 5]), np.zeros(3, int))
    assert by_size.tolist() == [1, 0, 2], "rows that are equal keep their order"
