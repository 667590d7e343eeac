"""The MPI adapter does what the ranks-as-threads do, and times equal those of one rank bit for bit."""

import os

import numpy as np
import pytest
from test_network_engine import check_same, random_program, random_traffic
from test_runtime_local import expected, use_all

from meshemu.errors import InputError
from meshemu.hardware import System
from meshemu.mesh import flatten
from meshemu.network import simulate_messages, time_program
from meshemu.runtime import mpi


@pytest.mark.mpi
def test_all_methods_over_mpi(comm, collective_assert):
    found = use_all(mpi.as_comm(comm))
    collective_assert(found == expected(comm.Get_rank(), comm.Get_size()), f"got {found}")


@pytest.mark.mpi
def test_large_buffers_travel_in_pieces(comm, collective_assert, monkeypatch):
    monkeypatch.setattr(mpi, "PIECE_BYTES", 1000)
    rank, size = comm.Get_rank(), comm.Get_size()
    adapter = mpi.as_comm(comm)
    outbox = {peer: (np.arange(4567) * (rank + 2) + peer).astype(np.uint8) for peer in range(size)}
    inbox = {peer: np.zeros(4567, np.uint8) for peer in range(size)}
    adapter.exchange(outbox, inbox)
    for peer in range(size):
        same = np.array_equal(inbox[peer], (np.arange(4567) * (peer + 2) + rank).astype(np.uint8))
        collective_assert(same, f"bytes from {peer} differ")
    total = adapter.sum(np.arange(3000))
    collective_assert(np.array_equal(total, size * np.arange(3000)), "sum differs")


@pytest.mark.mpi
def test_many_rows_follow_the_first(comm, collective_assert, monkeypatch):
    """Fewer than go at once, as many, one more, and many more; twice, so that nothing is left over from the first."""
    monkeypatch.setattr(mpi, "FEW_ROWS", 4)
    rank, size = comm.Get_rank(), comm.Get_size()
    adapter, numbers = mpi.as_comm(comm), (0, 3, 4, 5, 100_000)

    def sent(turn, source, target):
        n = numbers[(turn + source + 2 * target) % len(numbers)]
        return np.arange(3 * n).reshape(n, 3) * (source + 1) + target + turn

    for turn in range(2 * len(numbers)):
        found = adapter.all_to_all_rows([sent(turn, rank, peer) for peer in range(size)])
        for peer in range(size):
            collective_assert(np.array_equal(found[peer], sent(turn, peer, rank)), f"rows from {peer} differ")


@pytest.mark.mpi
def test_world_is_what_the_launcher_started(collective_assert):
    world = mpi.world()
    collective_assert(world.size == int(os.environ.get("PMI_SIZE", os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))))


@pytest.mark.mpi
@pytest.mark.parametrize("latency", ["20 ns", "0 ns"])
def test_times_over_mpi_equal_one_rank(comm, collective_assert, latency):
    mesh = flatten(System.grid(rows=4, cols=3, bandwidth="100 GB/s", latency=latency))
    adapter = mpi.as_comm(comm)
    traffic = random_traffic(mesh, 3, 300)
    program, duration = random_program(mesh.n_devices, 7, 60)
    verdict = ""
    try:
        check_same(
            simulate_messages(mesh, *traffic, packet_bytes=100, timeline_bins=9, comm=adapter),
            simulate_messages(mesh, *traffic, packet_bytes=100, timeline_bins=9),
        )
        check_same(
            time_program(program, mesh, duration, packet_bytes=64, comm=adapter),
            time_program(program, mesh, duration, packet_bytes=64),
        )
    except AssertionError as error:
        verdict = str(error)
    collective_assert(not verdict, verdict)


def test_launcher_of_another_library_is_noticed():
    mpi._check_size(4, {"PMI_RANK": "0", "PMI_SIZE": "4"})
    mpi._check_size(1, {})
    with pytest.raises(InputError, match="started 4 ranks but MPI sees 1"):
        mpi._check_size(1, {"PMI_RANK": "2", "PMI_SIZE": "4"})
