"""Devices are split over ranks evenly, along the cut that the messages of a step have to cross least."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models_under_test import classes, grid, images
from torch import nn
from torch.nn import functional as F

from meshemu.emulator.prepare import prepare
from meshemu.emulator.timed_step import TimingOptions
from meshemu.execute.split import even_split
from meshemu.execute.training import Trainer
from meshemu.mesh import flatten, split_bounds
from meshemu.runtime.local import run_ranks
from meshemu.workload.placement import make_plan

ROWS = [0] * 13 + [1] * 12
COLUMNS = np.array(ROWS).reshape(5, 5).T.ravel().tolist()
Messages = list[tuple[int, int, int]]


def split_of(messages: Messages, n_ranks: int = 2, plan: Any = "data", flops: Any = (0,) * 25) -> list[int]:
    """The split of a 5 x 5 mesh for messages (src, dst, bytes) and the work of every device."""
    src, dst, size = np.array(messages, np.int64).reshape(-1, 3).T
    return even_split(make_plan(plan, flatten(grid(5, 5))), n_ranks, 5, np.array(flops), src, dst, size).tolist()


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], ROWS),
        ([(6, 16, 1)], COLUMNS),
        ([(6, 8, 3), (6, 16, 4)], COLUMNS),
        ([(6, 8, 4), (6, 16, 3)], ROWS),
        ([(6, 8, 4), (6, 16, 3), (21, 1, 3)], COLUMNS),
    ],
)
def test_ranks_are_split_where_the_fewest_bytes_cross(messages: Messages, expected: list[int]) -> None:
    assert split_of(messages) == expected


@pytest.mark.parametrize(("flops", "expected"), [(-60, COLUMNS), (60, COLUMNS), (70, ROWS)])
def test_few_bytes_are_worth_one_percent_of_the_work_and_no_more(flops: int, expected: list[int]) -> None:
    """Device 3 is rank 0's in ROWS and rank 1's in COLUMNS, device 20 the other way round; rank 0 has 13 devices."""
    work = [1000] * 25
    work[3], work[20] = 1000 - flops, 1000 + flops
    assert split_of([(6, 16, 1)], flops=work) == expected


def test_what_devices_outside_the_plan_send_does_not_count() -> None:
    plan = {"data": 10}  # 5 x 2 or 2 x 5 of the devices
    devices = make_plan(plan, flatten(grid(5, 5))).devices
    inside = split_of([], plan=plan)
    outside = next(d for d in range(25) if d not in devices)
    messages = [pair for d in devices for pair in ((d, outside, 10**9), (outside, d, 10**9))]
    assert split_of(messages, plan=plan) == inside


ENDS = st.integers(0, 24)


@given(st.lists(st.tuples(ENDS, ENDS, st.integers(0, 1000)), max_size=12), st.integers(1, 7))
def test_a_split_is_even_and_never_worse_than_runs_of_positions(messages: Messages, n_ranks: int) -> None:
    def crossing_bytes(rank: Any) -> int:
        return sum(size for src, dst, size in messages if rank[src] != rank[dst])

    found = split_of(messages, n_ranks)
    lengths = np.diff(split_bounds(25, n_ranks))
    assert np.bincount(found).tolist() == lengths.tolist()
    assert crossing_bytes(found) <= crossing_bytes(np.repeat(np.arange(n_ranks), lengths))


def test_a_gradient_goes_down_the_columns_first_and_so_does_the_cut() -> None:
    batch = (images(25, 48), classes(25))

    def samples_of(comm: Any) -> list[int]:
        model = nn.Linear(48, 5).double()  # of this rank: while a step is captured, its parameters are others
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        prepared = prepare(
            model, batch, lambda call, item: F.cross_entropy(call(item[0]), item[1]), system=grid(5, 5), plan="data",
            options=TimingOptions(collective="rows_columns"), comm=comm, optimizer=optimizer,
        )  # fmt: skip
        samples = Trainer(model, optimizer, prepared.executor(comm), 0).samples
        assert samples is not None
        return samples.tolist()

    assert run_ranks(2, samples_of) == [np.flatnonzero(np.equal(COLUMNS, rank)).tolist() for rank in range(2)]
