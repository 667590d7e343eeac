"""The compiled engine equals the plain Python model, on any number of ranks."""

from math import gcd

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshemu.hardware import System
from meshemu.mesh import Mesh, flatten, rate, routes
from meshemu.network import simulate_messages, time_program
from meshemu.network.oracle import reference_messages, reference_program
from meshemu.program.builder import ProgramBuilder
from meshemu.program.ir import Program
from meshemu.runtime.local import run_ranks

FEW = settings(max_examples=40, deadline=None, derandomize=True)


def random_mesh(seed: int) -> Mesh:
    """A small grid whose links all differ: some slow, some with rates that are no whole number of ps per byte."""
    rng = np.random.default_rng(seed)
    rows, cols = (int(n) for n in rng.integers(1, 5, 2))
    mesh = flatten(System.grid(rows=max(rows, 2), cols=cols, bandwidth="50 GB/s", latency="500 ns"))
    mesh.bandwidth_bytes_per_s[:] = rng.choice([10**10, 3 * 10**11, 7 * 10**11, 10**12, 9 * 10**12], mesh.n_links)
    mesh.latency_ps[:] = rng.choice([1, 7, 300, 5000], mesh.n_links)
    return mesh


def random_traffic(mesh: Mesh, seed: int, n: int):
    rng = np.random.default_rng(seed)
    src = rng.integers(0, mesh.n_devices, n)
    dst = (src + rng.integers(1, mesh.n_devices, n)) % mesh.n_devices
    size = rng.choice([1, 2, 63, 64, 65, 1000, 5000], n)
    ready = rng.choice([0, 0, 0, 5, 100, 3000], n)
    return src, dst, size, ready


def random_program(n_devices: int, seed: int, n_rounds: int = 12) -> tuple[Program, np.ndarray]:
    """Computes, messages and reduces with random dependencies on earlier ops of their device."""
    rng = np.random.default_rng(seed)
    builder = ProgramBuilder(n_devices)
    mine: list[list[int]] = [[] for _ in range(n_devices)]
    work = {"label": "x", "op_class": "y", "number_format": "fp32", "flops": 1, "read_bytes": 1, "write_bytes": 1}

    def add(device: int, op: int) -> None:
        if mine[device]:
            for on in rng.choice(mine[device], rng.integers(0, 3)):
                builder.depend(op, int(on))
        mine[device].append(op)

    for _ in range(n_rounds):
        src = int(rng.integers(n_devices))
        dst = int((src + rng.integers(1, n_devices)) % n_devices)
        add(src, int(builder.compute([src], **work)[0]))
        message, send, recv = builder.messages([src], [dst], [int(rng.choice([1, 64, 777]))], label="m")
        add(src, int(send[0]))
        add(dst, int(recv[0]))
        add(dst, int(builder.reduce([dst], message=message, **work)[0]))
    program = builder.build()
    return program, rng.choice([0, 0, 1, 10, 2000], program.n_ops)


def arrays_of(result) -> dict[str, np.ndarray]:
    """All results of an engine run that must not depend on the number of ranks."""
    links = {f"link {name}": value for name, value in vars(result.links).items()}
    ops = {f"op {name}": value for name, value in vars(result.ops).items()} if hasattr(result, "ops") else {}
    return links | ops | {
        "depart": result.depart_ps,
        "arrival": result.arrival_ps,
        "bins": result.timeline.link_busy_ps,
        "scalars": np.array([result.timeline.bin_ps, result.end_ps, result.counters.packet_hops]),
    }  # fmt: skip


def check_same(found, expected, about: str = "") -> None:
    for name, value in arrays_of(expected).items():
        np.testing.assert_array_equal(arrays_of(found)[name], value, err_msg=f"{about} {name}")


def check_messages(found, mesh: Mesh, src, dst, size, ready, packet_bytes: int) -> None:
    """All that the engine found equals the reference."""
    n_bins = len(found.timeline.link_busy_ps)
    check_same(found, reference_messages(mesh, src, dst, size, ready, packet_bytes=packet_bytes, timeline_bins=n_bins))


@FEW
@given(seed=st.integers(0, 10**6), n=st.integers(1, 60), packet_bytes=st.sampled_from([1, 16, 64, 100, 4096]))
def test_messages_equal_reference(seed, n, packet_bytes):
    mesh = random_mesh(seed)
    src, dst, size, ready = random_traffic(mesh, seed, n)
    size = np.minimum(size, 300 * packet_bytes)
    found = simulate_messages(mesh, src, dst, size, ready, packet_bytes=packet_bytes, timeline_bins=7)
    check_messages(found, mesh, src, dst, size, ready, packet_bytes)


@pytest.mark.parametrize("n_ranks", [1, 2, 3])
@pytest.mark.parametrize("packet_bytes", [1, 64])
def test_ties_behind_a_packet_that_takes_no_time(n_ranks, packet_bytes):
    # At 9 bytes per ps a 65th byte adds nothing: the next train's head ties with the last packet's and may go first.
    mesh = flatten(System.grid(rows=1, cols=4, bandwidth="9 TB/s", latency="10 ns"))
    rng = np.random.default_rng(packet_bytes)
    src, dst = np.zeros(40, np.int64), rng.choice([2, 3], 40)
    size, ready = rng.choice([65, 64, 66, 70, 1], 40), rng.permutation(40)
    for found in run_ranks(
        n_ranks,
        lambda comm: simulate_messages(
            mesh, src, dst, size, ready, packet_bytes=packet_bytes, timeline_bins=4, comm=comm
        ),
    ):
        check_messages(found, mesh, src, dst, size, ready, packet_bytes)


@FEW
@given(seed=st.integers(0, 10**6), packet_bytes=st.sampled_from([16, 100, 4096]))
def test_programs_equal_reference(seed, packet_bytes):
    mesh = random_mesh(seed)
    program, duration = random_program(mesh.n_devices, seed)
    found = time_program(program, mesh, duration, packet_bytes=packet_bytes, timeline_bins=5)
    check_same(found, reference_program(program, mesh, duration, packet_bytes=packet_bytes, timeline_bins=5))


@pytest.mark.parametrize("n_ranks", [2, 3, 4, 5])
@pytest.mark.parametrize("seed", range(4))
def test_messages_do_not_depend_on_ranks(n_ranks, seed):
    mesh = flatten(System.grid(rows=4, cols=3, bandwidth="700 GB/s", latency="20 ns"))
    traffic = random_traffic(mesh, seed, 200)
    single = simulate_messages(mesh, *traffic, packet_bytes=100, timeline_bins=9)
    several = run_ranks(
        n_ranks, lambda comm: simulate_messages(mesh, *traffic, packet_bytes=100, timeline_bins=9, comm=comm)
    )
    assert several[0].counters.windows > 1
    for result in several:
        check_same(result, single)


@pytest.mark.parametrize("n_ranks", [2, 3, 4, 5])
@pytest.mark.parametrize("latency", ["20 ns", "1 ps", "0 ns"])
def test_programs_do_not_depend_on_ranks(n_ranks, latency):
    mesh = flatten(System.grid(rows=4, cols=3, bandwidth="100 GB/s", latency=latency))
    program, duration = random_program(mesh.n_devices, 5, 60)
    single = time_program(program, mesh, duration, packet_bytes=64)
    several = run_ranks(n_ranks, lambda comm: time_program(program, mesh, duration, packet_bytes=64, comm=comm))
    for result in several:
        check_same(result, single)


@FEW
@given(seed=st.integers(0, 10**6))
def test_conservation_causality_capacity(seed):
    mesh = random_mesh(seed)
    src, dst, size, ready = random_traffic(mesh, seed, 80)
    found = simulate_messages(mesh, src, dst, size, ready, packet_bytes=128, timeline_bins=6)
    paths = routes(mesh, src, dst)
    hops = np.diff(paths.route_ptr)[paths.index]
    latency = np.array([mesh.latency_ps[paths.links(i)].sum() for i in paths.index])
    assert found.links.bytes.sum() == (size * hops).sum()
    assert (found.depart_ps >= ready).all()
    assert (found.arrival_ps > found.depart_ps + latency).all()
    assert (found.links.busy_ps <= found.end_ps).all()
    num, den = np.array([rate(int(b)) for b in mesh.bandwidth_bytes_per_s]).T
    assert (found.links.busy_ps * den >= found.links.bytes * num).all(), "no link carries more than its bandwidth"
    assert (found.timeline.link_busy_ps <= found.timeline.bin_ps).all()
    np.testing.assert_array_equal(found.timeline.link_busy_ps.sum(0), found.links.busy_ps)


@FEW
@given(size=st.integers(1, 10**5), packet_bytes=st.integers(1, 10**4), bandwidth=st.sampled_from([10, 50, 250, 1000]))
def test_lone_message_does_not_depend_on_packets(size, packet_bytes, bandwidth):
    packet_bytes = max(packet_bytes, size // 500)
    mesh = flatten(System.grid(rows=3, cols=3, bandwidth=f"{bandwidth} GB/s", latency="70 ns"))
    found = simulate_messages(mesh, [0], [8], [size], packet_bytes=packet_bytes)
    assert 1000 % gcd(1000, bandwidth) == 0
    assert found.arrival_ps[0] == 4 * 70_000 + size * (1000 // bandwidth)
