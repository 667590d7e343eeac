"""Back-pressure mode: closed forms, published cases, ranks, detours and bad input."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from test_network_engine import check_same, random_mesh, random_program

import meshemu
from meshemu.collectives import collective_program
from meshemu.errors import InputError, ScheduleError
from meshemu.hardware import System
from meshemu.mesh import flatten, message_ps, routes
from meshemu.network import Router, compare_modes, simulate_messages, time_program
from meshemu.network.credit import fabric
from meshemu.runtime.local import run_ranks

FLIT = {"flit_bytes": 64}


def grid(rows, cols, latency=0):
    """A flit of 64 B takes a cycle of 1 ns."""
    return flatten(System.grid(rows=rows, cols=cols, bandwidth="64 GB/s", latency=latency))


@pytest.mark.parametrize("pipeline", [1, 2, 5])
@pytest.mark.parametrize("n_flits, packet_flits", [(1, 1), (9, 1), (9, 4), (9, 9)])
@pytest.mark.parametrize("switching", ["wormhole", "virtual_cut_through"])
@pytest.mark.parametrize("latency_ps", [0, 3300])
def test_lone_message(pipeline, n_flits, packet_flits, switching, latency_ps):
    mesh = grid(3, 4, latency_ps)
    router = Router(flit_bytes=64, virtual_channels=1, pipeline_cycles=pipeline, switching=switching)
    found = simulate_messages(
        mesh, [0, 5], [11, 5], 64 * n_flits - 3, [0, 10**6], packet_bytes=64 * packet_flits, router=router
    )
    one, restarts = 1000, (n_flits - 1) // packet_flits if packet_flits < n_flits else 0
    hops = 5
    expected = one + hops * (pipeline * one + latency_ps) + pipeline * one + one + (n_flits - 1) * one
    if restarts == 0 or (pipeline <= 3 and packet_flits > 1) or pipeline <= 2:
        assert found.arrival_ps[0] == expected
        assert found.arrival_ps[1] - 10**6 == (pipeline + 2 + n_flits - 1) * one
    else:
        assert found.arrival_ps[0] > expected, "one virtual channel: a packet behind another starts the pipeline anew"
    assert found.depart_ps.tolist() == [0, 10**6]


def test_slow_link_sets_the_pace():
    mesh = grid(1, 4)
    slow = mesh.out_link[1, 1]
    mesh.bandwidth_bytes_per_s[slow] = 9 * 10**9  # 64 B in 7111.1 ps: no whole number
    router = Router(flit_bytes=64, virtual_channels=1)
    found = simulate_messages(mesh, [0], [3], [64 * 900], packet_bytes=64 * 900, router=router)
    pace = -(-900 * 64 * 1000 // 9)
    assert found.links.busy_ps[slow] == pace
    assert found.arrival_ps[0] == 1000 + 1000 + pace + 1000 + 1000 + 1000


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("credit", [None, "2500 ps"])
def test_a_buffer_smaller_than_its_credit_loop_sets_the_pace(slots, credit):
    mesh = grid(1, 2, latency=4000)
    router = Router(flit_bytes=64, virtual_channels=1, buffer_flits=slots, pipeline_cycles=3, credit_latency=credit)
    found = simulate_messages(mesh, [0], [1], [64 * 61], packet_bytes=64 * 61, router=router)
    loop = 1000 + 4000 + 2 * 1000 + (5000 if credit is None else 2500)
    alone = simulate_messages(mesh, [0], [1], [64], router=router).arrival_ps[0]
    assert found.arrival_ps[0] == alone + (60 // slots) * loop, "slots flits in each round trip of a credit"


def test_default_buffers_fill_the_link():
    mesh = grid(1, 2, latency=77_777)
    found = simulate_messages(
        mesh, [0], [1], [64 * 500], packet_bytes=64 * 500, router=Router(flit_bytes=64, virtual_channels=1)
    )
    assert found.links.busy_ps[0] == 500_000
    assert found.arrival_ps[0] == simulate_messages(mesh, [0], [1], [64], router=Router(**FLIT)).arrival_ps[0] + 499_000


def shares(router, senders, order=None):
    """Of what arrives at node 7 of a line of 8 while all senders flood it, the share of each."""
    n = 4000
    src = np.tile(senders, n)
    found = simulate_messages(grid(1, 8), src, np.full(len(src), 7), 64, packet_bytes=64, router=router)
    early = (found.arrival_ps > 500_000) & (found.arrival_ps <= 6_900_000)
    return np.bincount(src[early], minlength=8)[senders] / np.count_nonzero(early)


@pytest.mark.parametrize("virtual_channels, switching", [(1, "wormhole"), (4, "wormhole"), (2, "virtual_cut_through")])
def test_flooding_the_end_of_a_line(virtual_channels, switching):
    """Reference case 6: round robin halves the share of each node that is one further from the sink."""
    router = Router(flit_bytes=64, virtual_channels=virtual_channels, buffer_flits=4, switching=switching)
    halves = 0.5 ** np.arange(1, 8)
    with_sink = shares(router, np.arange(7, -1, -1))
    np.testing.assert_allclose(with_sink, [*halves, halves[-1]], atol=0.002)
    without = shares(router, np.arange(6, -1, -1))
    np.testing.assert_allclose(without, [*halves[:6], halves[5]], atol=0.002)
    fifo = shares(None, np.arange(6, -1, -1))
    assert fifo[:2].sum() > 0.99, "with unbounded FIFOs whoever is near has all of it"


BOOKSIM = Router(flit_bytes=64, pipeline_cycles=5, virtual_channels=16, buffer_flits=8)


def test_every_pair_alone_at_five_cycles_a_router():
    """Reference case 7 at zero load, exactly."""
    src, dst = np.divmod(np.arange(64 * 64), 64)
    ready = np.arange(64 * 64) * 10**6
    found = simulate_messages(grid(8, 8), src, dst, 64, ready, packet_bytes=64, router=BOOKSIM)
    assert (found.arrival_ps - ready).mean() / 1000 == 33.25 == 5 * 6.25 + 2


def uniform(load, n_cycles=13_000, warm=3000):
    """(mean latency in cycles, accepted flits per node and cycle) of single flits to anywhere."""
    rng = np.random.default_rng(7)
    cycle, src = np.nonzero(rng.random((n_cycles + warm, 64)) < load)
    dst = rng.integers(0, 64, len(src))
    found = simulate_messages(grid(8, 8), src, dst, 64, cycle * 1000, packet_bytes=64, router=BOOKSIM)
    measured = (cycle >= warm) & (cycle < n_cycles)
    arrived = (found.arrival_ps >= warm * 1000) & (found.arrival_ps < n_cycles * 1000)
    accepted = np.count_nonzero(arrived) / 64 / (n_cycles - warm)
    return (found.arrival_ps - cycle * 1000)[measured].mean() / 1000, accepted


@pytest.mark.parametrize("load, cycles, tolerance", [(0.1, 33.8, 0.005), (0.2, 34.8, 0.01)])
def test_uniform_traffic_meets_a_flit_simulator(load, cycles, tolerance):
    """Reference case 7 under load."""
    latency, accepted = uniform(load)
    assert latency == pytest.approx(cycles, rel=tolerance)
    assert accepted == pytest.approx(load, rel=0.02)


def test_uniform_traffic_saturates():
    latency, accepted = uniform(0.40, n_cycles=9000)
    assert latency < 2 * 33.25 and accepted == pytest.approx(0.40, rel=0.01)
    latency, accepted = uniform(0.46, n_cycles=9000)
    assert latency > 4 * 33.25 and 0.40 < accepted < 0.45


def test_message_classes_do_not_block_each_other():
    # Nodes 1 to 5 flood node 7 over full links; a message from node 0 to node 4 has to get by.
    src = np.concatenate([np.tile([1, 2, 3, 4, 5], 240), [0]])
    dst = np.concatenate([np.full(1200, 7), [4]])
    size = np.full(1201, 64 * 4)
    last = np.arange(1201) == 1200

    def late(classes, message_class):
        router = Router(flit_bytes=64, virtual_channels=1, message_classes=classes, buffer_flits=4)
        found = simulate_messages(
            grid(1, 8), src, dst, size, 100_000 * last, packet_bytes=256, router=router, message_class=message_class
        )
        return found.arrival_ps[-1] - 100_000

    assert late(2, last.astype(int)) < late(2, 0) / 4


@pytest.mark.parametrize("n_ranks", [2, 3, 4])
def test_results_do_not_depend_on_ranks(n_ranks):
    mesh = grid(4, 3, "20 ns")
    program, duration = random_program(mesh.n_devices, 5, 40)
    run = partial(time_program, program, mesh, duration, packet_bytes=256, router=Router(**FLIT), timeline_bins=5)
    single = run()
    for result in run_ranks(n_ranks, lambda comm: run(comm=comm)):
        check_same(result, single)


def test_a_refusal_reaches_every_rank():
    mesh = dead_centre()
    refused = partial(simulate_messages, mesh, *all_pairs(mesh), 64, router=Router(flit_bytes=64, virtual_channels=1))

    def message(comm):
        with pytest.raises(InputError) as refusal:
            refused(comm=comm)
        return str(refusal.value)

    assert len(set(run_ranks(3, message))) == 1


def dead_centre():
    system = System.grid(rows=5, cols=5, bandwidth="64 GB/s", latency=0).override({"dead": [[1, 1], [2, 2], [3, 3]]})
    return flatten(system)


def all_pairs(mesh):
    alive = np.flatnonzero(mesh.alive)
    src, dst = (ends.ravel() for ends in np.meshgrid(alive, alive))
    return src[src != dst], dst[src != dst]


@pytest.mark.parametrize("order", ["xy", "yx"])
def test_detours_need_virtual_channels_in_order(order):
    mesh = dead_centre()
    src, dst = (np.tile(ends, 5) for ends in all_pairs(mesh))
    router = Router(flit_bytes=64, virtual_channels=3, buffer_flits=1)
    found = simulate_messages(mesh, src, dst, 64 * 6, packet_bytes=64 * 6, router=router, order=order)
    paths = routes(mesh, src, dst, order)
    assert (found.arrival_ps >= message_ps(mesh, paths, 64 * 6)).all()
    with pytest.raises(InputError, match=r"takes virtual_channels = \d per message class, the router has 1"):
        one = Router(flit_bytes=64, virtual_channels=1)
        simulate_messages(mesh, src, dst, 64 * 6, packet_bytes=64 * 6, router=one, order=order)


def test_without_that_order_they_deadlock(monkeypatch):
    """The check is not idle: four flows around a dead centre, each into the next, stop for ever on one channel."""
    mesh = flatten(System.grid(rows=3, cols=3, bandwidth="64 GB/s", latency=0).override({"dead": [[1, 1]]}))
    src, dst = (np.tile(ends, 20) for ends in ([3, 1, 5, 7], [5, 7, 6, 0]))
    run = partial(simulate_messages, mesh, src, dst, 64 * 12, packet_bytes=64 * 12)
    with pytest.raises(InputError, match="takes virtual_channels = 2 per message class, the router has 1"):
        run(router=Router(flit_bytes=64, virtual_channels=1, buffer_flits=1))
    assert (run(router=Router(flit_bytes=64, virtual_channels=2, buffer_flits=1)).arrival_ps > 0).all()
    monkeypatch.setattr(fabric, "deadlock_free_levels", lambda _, paths, __: np.zeros(len(paths.route_links), np.int16))
    with pytest.raises(ScheduleError, match=r"deadlock: \d+ messages stay in the network"):
        run(router=Router(flit_bytes=64, virtual_channels=1, buffer_flits=1))


def test_disagreement():
    mesh = grid(4, 4, "1 ns")
    program = collective_program("all_reduce", "tree", mesh, 2**14)
    time = partial(time_program, program, mesh, np.zeros(program.n_ops, np.int64), packet_bytes=1024)
    found = compare_modes(lambda router: time(router=router), Router(flit_bytes=64, buffer_flits=2))
    assert found.end_ps == (time().end_ps, time(router=Router(flit_bytes=64, buffer_flits=2)).end_ps)
    assert found.end_ps[0] < found.end_ps[1]
    assert found.relative == found.end_ps[1] / found.end_ps[0] - 1
    assert found.wait_ps[0].shape == found.wait_ps[1].shape == (mesh.n_links,)


def test_public_face():
    system = System.grid(rows=2, cols=3, bandwidth="50 GB/s", latency="5 ns")
    program = meshemu.collective("all_reduce", "ring", system=system, size_bytes=6000)
    router = meshemu.Router(flit_bytes="32 B", credit_latency="2 ns", clock="1 GHz", virtual_channels=2)
    assert (router.flit_bytes, router.credit_latency, router.cycle_ps) == (32, 2000, 1000)
    timing = meshemu.time(program, system, router=router)
    assert timing.end_ps > meshemu.time(program, system).end_ps
    assert timing.links.bytes.sum() == meshemu.time(program, system).links.bytes.sum()
    found = meshemu.simulate_messages(system, [0, 1], [0, 5], 100, router=router, message_class=[0, 0])
    assert (found.arrival_ps > 0).all()


@pytest.mark.parametrize(
    "given, message",
    [
        ({"flit_bytes": 0}, "flit_bytes"),
        ({"flit_bytes": "3 ns"}, "flit_bytes = '3 ns'"),
        ({"buffer_flits": 0}, "buffer_flits = 0"),
        ({"virtual_channels": 2.5}, "virtual_channels = 2.5"),
        ({"message_classes": True}, "message_classes = True"),
        ({"virtual_channels": 11, "message_classes": 3}, "11 x 3 = 33: a link has at most 32"),
        ({"pipeline_cycles": 0}, "pipeline_cycles = 0"),
        ({"clock": "5 THz"}, "clock = '5 THz': a cycle is shorter"),
        ({"credit_latency": 0}, "credit_latency = 0 must be more than zero"),
        ({"switching": "store"}, "switching = 'store' is not one of wormhole, virtual_cut_through"),
        ({"local_ports": "two"}, "local_ports = 'two' is not one of one, per_link"),
    ],
)
def test_router_refused(given, message):
    with pytest.raises(InputError, match=message):
        Router(**given)


@pytest.mark.parametrize(
    "router, given, message",
    [
        ({}, {"dst": [1, 9, 3]}, "row 1: dst = 9 is no device"),
        ({}, {"size_bytes": [1, 1, 0]}, "row 2: size_bytes = 0"),
        ({}, {"message_class": [0, 0, 1]}, "row 2: message_class = 1 is none of the router, 0 <= message_class < 1"),
        ({}, {"message_class": [0, 0]}, "one integer for all or for each of 3 messages"),
        ({}, {"message_class": 0.5}, "float64"),
        ({}, {"packet_bytes": 63}, "packet_bytes = 63 < flit_bytes = 64"),
        ({"switching": "virtual_cut_through", "buffer_flits": 3}, {"packet_bytes": 256}, "buffer_flits = 3 < 4"),
        ({"buffer_flits": 10**9}, {"size_bytes": 2**36}, "at most 100,000,000 can be simulated"),
        ({"flit_bytes": 2**60}, {"packet_bytes": 2**60}, r"2\*\*62"),
        ({"credit_latency": 2**61}, {"size_bytes": 6400}, r"2\*\*62"),
    ],
)
def test_messages_refused(router, given, message):
    arguments = {"src": [0, 0, 0], "dst": [1, 2, 3], "size_bytes": [5, 5, 5]} | given
    with pytest.raises(InputError, match=message):
        simulate_messages(grid(2, 2), **arguments, router=Router(**(FLIT | router)))


def test_message_class_needs_a_router():
    with pytest.raises(InputError, match="message_class needs a router"):
        simulate_messages(grid(2, 2), [0], [1], 64, message_class=[1])


def test_what_is_no_router():
    with pytest.raises(InputError, match="router = 3 must be a Router"):
        simulate_messages(grid(2, 2), [0], [1], 64, router=3)


def test_nothing_to_do():
    found = simulate_messages(grid(1, 1), [], [], [], router=Router())
    assert found.end_ps == 0
    alone = simulate_messages(grid(1, 1), [0], [0], [64], router=Router(flit_bytes=64))
    assert alone.arrival_ps[0] > 0


PRINT_TIMES = """
from test_network_credit_cases import times
print(times())
"""


def times() -> str:
    mesh = random_mesh(4)
    rng = np.random.default_rng(0)
    src, dst = rng.integers(0, mesh.n_devices, (2, 60))
    router = Router(flit_bytes=16, buffer_flits=2, virtual_channels=2, message_classes=2, pipeline_cycles=3)
    found = simulate_messages(
        mesh, src, dst, 100, packet_bytes=48, router=router, message_class=src % 2, timeline_bins=4
    )
    program, duration = random_program(mesh.n_devices, 3)
    timing = time_program(program, mesh, duration, packet_bytes=200, router=router, timeline_bins=4)
    return "\n".join(
        f"{result.arrival_ps.tolist()} {result.timeline.link_busy_ps.tolist()} "
        f"{ {name: column.tolist() for name, column in vars(result.links).items()} }"
        for result in (found, timing)
    )


def test_compiled_equals_interpreted():
    root = Path(__file__).resolve().parent.parent
    paths = os.pathsep.join([str(root), str(root / "tests")])
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-W", "error", "-c", PRINT_TIMES]
    interpreted = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert len(interpreted) > 1000
    assert interpreted == times() + "\n"
