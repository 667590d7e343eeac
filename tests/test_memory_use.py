"""What devices hold, by category, against what the executor holds and against numbers counted by hand."""

import threading
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from models_under_test import captured, classes, images, partitioned
from torch import Tensor, nn
from torch.nn import functional as F

from meshemu.collectives import build
from meshemu.cost.memory_use import MEMORY_CATEGORIES, breakdown
from meshemu.cost.op_classes import VIEWS
from meshemu.execute import executor
from meshemu.execute.blocks import Host
from meshemu.execute.executor import Executor
from meshemu.runtime.local import run_ranks
from meshemu.workload.formats.storage import storage_of
from meshemu.workload.layout import Layout
from meshemu.workload.memory import MemoryWalk
from meshemu.workload.receive_buffers import ReceiveBuffers
from meshemu.workload.spmd import Collective, PushAdd, Value

ATTENTION = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.1).double()
CONVOLUTION = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, stride=2),
    nn.GELU(), nn.Flatten(), nn.Linear(72, 4),
).double()  # fmt: skip


def held_bytes(environment: dict[int, dict[Any, Tensor]], state: list[Tensor]) -> int:
    """Bytes of all storages behind the blocks of an environment, and behind the parameters and buffers."""
    blocks = [block for values in environment.values() for block in values.values()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (*blocks, *state) if t.numel()}
    return sum(storages.values())


def measured(step: Any, model: nn.Module, batch: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Bytes that the executor holds after every instruction, by rank, where each rank hosts one device."""
    state = [*model.parameters(), *model.buffers()]
    rows: dict[int, list[int]] = defaultdict(list)
    run = executor._run

    def spy(task: Any, environment: Any, *rest: Any) -> None:
        run(task, environment, *rest)
        rows[threading.get_ident()].append(held_bytes(environment, state))

    monkeypatch.setattr(executor, "_run", spy)

    def one_rank(comm: Any) -> list[int]:
        host = Host(step.plan, comm.rank, np.arange(comm.size))
        inputs = {name: t.detach() for name, t in [*model.named_parameters(), *model.named_buffers()]}
        inputs |= {f"batch.{i}": leaf for i, leaf in enumerate(batch)}
        Executor(step.spmd, host, step.schedules, comm).run(inputs, seed=0, step=0)
        return rows.pop(threading.get_ident())

    return run_ranks(step.plan.n_positions, one_rank)


@pytest.mark.parametrize(
    ("model", "batch", "loss", "plan", "n", "tolerance"),
    [
        (ATTENTION, (images(4, 6, 16), images(4, 6, 16)), F.mse_loss, {"data": 1}, 1, 0.0),
        (CONVOLUTION, (images(6, 3, 16, 16), classes(6, n=4)), F.cross_entropy, {"data": 1}, 1, 0.0),
        # The block of the batch is a view of the whole batch, which the rank was given.
        (ATTENTION, (images(4, 6, 16), images(4, 6, 16)), F.mse_loss, {"data": 2}, 2, 0.02),
    ],
)
def test_the_peak_is_what_the_executor_holds(
    model: Any, batch: Any, loss: Any, plan: Any, n: int, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = partitioned(captured(model, batch, loss), plan, 1, n)
    use = MemoryWalk(step.spmd, step.plan, {}, VIEWS).use(n)
    for device, held in enumerate(measured(step, model, batch, monkeypatch)):
        assert abs(int(use.total_bytes[device]) - max(held)) <= tolerance * max(held), device
    live = use.live_bytes.sum(axis=1)
    assert live.max() == use.most_bytes
    assert len(live) == len(use.points) == len(step.spmd.instructions) + 1


def test_categories_of_a_data_parallel_step() -> None:
    """A linear layer of 16 x 8 and its bias on 4 of 8 samples a device, fp64, with two tensors of optimizer state."""
    model = nn.Linear(16, 8).double()
    step = partitioned(captured(model, (images(8, 16), images(8, 8)), F.mse_loss), {"data": 2}, 1, 2)
    states = dict.fromkeys(step.spmd.gradients, 2)
    use = MemoryWalk(step.spmd, step.plan, states, VIEWS, schedules=step.schedules).use(2)
    parameters = 8 * (16 * 8 + 8)
    at_end = dict(zip(MEMORY_CATEGORIES, use.live_bytes[-1].tolist(), strict=True))
    assert at_end["weights"] == parameters
    assert at_end["optimizer"] == 2 * parameters
    # While gradients are reduced, the device's terms, their sum and the arriving half of a ring are held.
    assert at_end["gradients"] == 2 * parameters
    assert at_end["communication"] == parameters // 2
    beginning = dict(zip(MEMORY_CATEGORIES, use.live_bytes[0].tolist(), strict=True))
    assert beginning == {"weights": parameters, "optimizer": 2 * parameters, "batch": 8 * 4 * (16 + 8)} | dict.fromkeys(
        ("gradients", "activations", "communication"), 0
    )
    assert (use.peak_bytes[:, 0] == use.peak_bytes[:, 1]).all()


def test_windows_count_as_communication() -> None:
    """A 3 x 3 convolution on two halves of 8 rows: each device fetches its 4 rows and one of the other."""
    model = nn.Conv2d(1, 1, 3, padding=1, bias=False).double()
    step = partitioned(captured(model, (images(1, 1, 8, 6), images(1, 1, 8, 6)), F.mse_loss), {"spatial": [2, 1]}, 2, 1)
    use = MemoryWalk(step.spmd, step.plan, {}, VIEWS).use(2)
    communication = use.live_bytes[:, MEMORY_CATEGORIES.index("communication")]
    assert 5 * 6 * 8 <= communication.max() <= 6 * 8 * 8  # padding may be part of the window


@pytest.mark.parametrize(("algorithm", "chunks"), [("ring", 1), ("tree", None)])
def test_buffers_for_terms_that_arrive(algorithm: str, chunks: int | None) -> None:
    """A ring of 4 brings one of 4 chunks at a time; a tree brings what its inner devices get from below."""
    step = partitioned(captured(nn.Linear(4, 4), (torch.rand(4, 4), torch.rand(4, 4)), F.mse_loss), {"data": 4}, 1, 4)
    schedule = build("all_reduce", algorithm, 1, 4)
    source = Value(10_000, (103,), torch.float32, Layout((), ("data",)))
    reduce = Collective("all_reduce", (source,), (Value(10_001, (103,), torch.float32),), ("data",), "sum", "sum")
    bytes_ = ReceiveBuffers(step.plan, storage_of(step.spmd)).most_bytes(reduce, schedule)
    assert bytes_ is not None
    if chunks is not None:
        assert bytes_.tolist() == [26 * 4 * chunks] * 4
    else:
        receives = np.unique(schedule.dst[schedule.reduce])
        assert (bytes_[receives] > 0).all()
        assert (np.delete(bytes_, receives) == 0).all()


def test_windows_arrive_where_their_blocks_are() -> None:
    """A kernel of 2 x 1 on two halves of 8 rows: device 0 reads a row of device 1, which gets its gradient back."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, (2, 1), bias=False)).double()
    step = partitioned(captured(model, (images(1, 1, 8, 6), images(1, 1, 7, 6)), F.mse_loss), {"spatial": [2, 1]}, 2, 1)
    (pushed,) = (one for one in step.spmd.instructions if isinstance(one, PushAdd))
    arriving = ReceiveBuffers(step.plan, storage_of(step.spmd)).most_bytes(pushed, None)
    assert arriving is not None
    assert arriving.tolist() == [0, 6 * 8]


def test_gathering_needs_no_buffer() -> None:
    step = partitioned(captured(nn.Linear(4, 4), (torch.rand(4, 4), torch.rand(4, 4)), F.mse_loss), {"shard": 4}, 1, 4)
    buffers = ReceiveBuffers(step.plan, storage_of(step.spmd))
    gathers = [i for i, one in enumerate(step.spmd.instructions) if getattr(one, "kind", "") == "all_gather"]
    assert gathers
    for i in gathers:
        assert buffers.most_bytes(step.spmd.instructions[i], step.schedules[i]) is None


def test_a_sum_in_words() -> None:
    assert breakdown((1000, 0, 2000, 0, 0, 5)) == "weights 1 kB + optimizer 2 kB + batch 5 B"
