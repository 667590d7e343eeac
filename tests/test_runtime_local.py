"""Ranks as threads: every collective, private copies, failures that end all, and no endless waits."""

import time

import numpy as np
import pytest

from meshemu.errors import InputError, MeshemuError
from meshemu.runtime.local import SingleComm, run_ranks
from meshemu.runtime.mpi import as_comm


def use_all(comm):
    """Every method of a Comm, as plain values that do not depend on its implementation."""
    rank, size = comm.rank, comm.size
    sent = [np.full((rank + peer, 3), 10 * rank + peer, np.int64) for peer in range(size)]
    right, left = (rank + 1) % size, (rank - 1) % size
    inbox = np.zeros(left + 1, np.uint8)
    comm.exchange({right: np.full(rank + 1, rank, np.uint8)}, {left: inbox})
    comm.barrier()
    return {
        "rows": [part.tolist() for part in comm.all_to_all_rows(sent)],
        "exchanged": inbox.tolist(),
        "min": comm.min(5 - rank),
        "max": comm.max(rank**2),
        "sum": comm.sum(np.array([[rank, 1], [2**60, -rank]])).tolist(),
        "broadcast": comm.broadcast({"from": rank}, root=size - 1),
        "gather": comm.gather(rank, root=0),
        "all_gather": comm.all_gather((rank, "x")),
    }


def expected(rank, size):
    left = (rank - 1) % size
    total = sum(range(size))
    return {
        "rows": [[[10 * peer + rank] * 3] * (rank + peer) for peer in range(size)],
        "exchanged": [left] * (left + 1),
        "min": 5 - (size - 1),
        "max": (size - 1) ** 2,
        "sum": [[total, size], [size * 2**60, -total]],
        "broadcast": {"from": size - 1},
        "gather": list(range(size)) if rank == 0 else None,
        "all_gather": [(peer, "x") for peer in range(size)],
    }


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_all_methods(size):
    assert run_ranks(size, use_all) == [expected(rank, size) for rank in range(size)]


def test_single_rank():
    assert use_all(SingleComm()) == expected(0, 1)
    with pytest.raises(InputError, match="one rank cannot exchange"):
        SingleComm().exchange({1: np.zeros(1, np.uint8)}, {})


def test_many_rounds_with_uneven_ranks():
    def work(comm):
        seen = []
        for turn in range(200):
            if turn % comm.size == comm.rank:
                time.sleep(0.0005)
            seen.append(tuple(comm.all_gather(turn * 10 + comm.rank)))
        return seen

    for seen in run_ranks(3, work):
        assert seen == [tuple(turn * 10 + rank for rank in range(3)) for turn in range(200)]


def test_values_are_copies():
    def work(comm):
        values = comm.all_gather([comm.rank])
        comm.barrier()
        values[0].append(99)
        comm.barrier()
        return values

    assert run_ranks(2, work) == [[[0, 99], [1]], [[0, 99], [1]]]


def test_failure_ends_all_and_is_raised():
    def work(comm):
        if comm.rank == 1:
            raise InputError("rank 1 cannot")
        comm.barrier()

    with pytest.raises(InputError, match="rank 1 cannot"):
        run_ranks(3, work)


def test_endless_wait_is_an_error():
    with pytest.raises(MeshemuError, match=r"waits for ever: ranks \[0\] wait, \[1\] have ended"):
        run_ranks(2, lambda comm: comm.barrier() if comm.rank == 0 else None)
    with pytest.raises(MeshemuError, match="waits for ever"):
        run_ranks(2, lambda comm: comm.exchange({}, {1 - comm.rank: np.zeros(1, np.uint8)}))


def test_buffer_size_is_checked():
    def work(comm):
        comm.exchange({1 - comm.rank: np.zeros(3, np.uint8)}, {1 - comm.rank: np.zeros(4, np.uint8)})

    with pytest.raises(InputError, match=r"expects 4 bytes of [01], got 3"):
        run_ranks(2, work)


def test_as_comm():
    assert as_comm(None).size == 1
    single = SingleComm()
    assert as_comm(single) is single
    with pytest.raises(InputError, match="not int"):
        as_comm(4)
    with pytest.raises(InputError, match="at least 1, not 0"):
        run_ranks(0, use_all)
