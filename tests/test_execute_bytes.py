"""The executor moves exactly the messages of the Program, and their sizes follow closed forms."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from models_under_test import Partitioned, captured, classes, images, partitioned
from torch import Tensor, nn
from torch.nn import functional as F

from meshemu.collectives import build
from meshemu.execute.transport import Exchange
from meshemu.program.ir import Program
from meshemu.runtime.local import run_ranks

Messages = dict[tuple[int, int], list[int]]


def of_program(program: Program) -> Messages:
    """(src, dst) -> sizes in bytes, in order."""
    messages: Messages = defaultdict(list)
    for src, dst, size in zip(program.src.tolist(), program.dst.tolist(), program.size_bytes.tolist(), strict=True):
        messages[src, dst].append(size)
    return dict(messages)


def moved(step: Partitioned, model: nn.Module, batch: Any, monkeypatch: pytest.MonkeyPatch) -> Messages:
    """The same of a run with one rank per device, where every message crosses ranks."""
    messages: Messages = defaultdict(list)
    plain_run = Exchange.run

    def recording_run(self: Exchange, send: Mapping[int, Sequence[Sequence[Tensor]]]) -> dict[int, list[Tensor]]:
        for peer, sent in send.items():
            messages[self.comm.rank, peer] += [sum(part.numel() * part.itemsize for part in parts) for parts in sent]
        return plain_run(self, send)

    monkeypatch.setattr(Exchange, "run", recording_run)
    run_ranks(step.mesh.n_devices, lambda comm: step.run(model, batch, comm=comm))
    return dict(messages)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, stride=2, padding=2), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(4, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.Flatten(), nn.Linear(72, 5),
    )  # fmt: skip


@pytest.mark.parametrize(
    "plan, rows, cols, algorithm",
    [
        ("spatial", 2, 3, "ring"), ("spatial", 2, 3, "tree"), ("spatial", 4, 4, "rows_columns"),
        ("data", 2, 3, "rows_columns"), ("data", 2, 3, "tree"), ("data", 1, 5, "ring"),
    ],
)  # fmt: skip
def test_every_message_of_the_program_is_moved_and_no_other(
    plan: str, rows: int, cols: int, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = network(), (images(6, 3, 13, 11).float(), classes(6))
    step = partitioned(captured(model, batch, F.cross_entropy), plan, rows, cols, bucket_bytes=500, algorithm=algorithm)
    messages = moved(step, model, batch, monkeypatch)
    assert messages == of_program(step.program)
    assert sum(map(len, messages.values())) == step.program.n_messages > 50


def labelled(program: Program, word: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Messages whose label has `word` in it."""
    return np.asarray([word in program.labels[label] for label in program.label[program.send_op]], bool)


@pytest.mark.parametrize("rows, cols", [(2, 2), (1, 4), (2, 4), (3, 3)])
def test_ring_all_reduce_of_gradients(rows: int, cols: int) -> None:
    n, batch = rows * cols, (images(18, 72), classes(18, n=4))
    program = partitioned(captured(nn.Linear(72, 4).double(), batch, F.cross_entropy), "data", rows, cols).program
    gradients = labelled(program, "gradients")
    sent = np.bincount(program.src[gradients], program.size_bytes[gradients], minlength=n)
    size_bytes = (72 * 4 + 4) * 8
    ring = build("all_reduce", "ring", rows, cols)
    assert sent.sum() == 2 * (n - 1) * size_bytes
    assert abs(sent - 2 * (n - 1) / n * size_bytes).max() <= 2 * 8 * ring.n_chunks / n


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("rows, cols", [(2, 2), (3, 4), (1, 6)])
def test_a_halo_is_the_border_of_the_kernel(rows: int, cols: int, kernel: int) -> None:
    """Windows of all blocks together cover (H + 2 p (rows - 1)) x (W + 2 p (cols - 1)) elements of each image."""
    n, channels, height, width, reach = 2, 3, 12 * rows, 10 * cols, kernel // 2
    batch = images(n, channels, height, width), classes(n)
    model = nn.Conv2d(channels, 4, kernel, padding=reach).double()
    program = partitioned(captured(model, batch, lambda y, t: y.square().mean()), "spatial", rows, cols).program
    halo = int(program.size_bytes[labelled(program, "halo")].sum())
    windows = (height + 2 * reach * (rows - 1)) * (width + 2 * reach * (cols - 1))
    assert halo == (windows - height * width) * n * channels * 8


def test_the_adjoint_of_a_halo_sends_as_much_back() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 5, padding=2)).double()
    batch = images(2, 3, 12, 10), classes(2)
    program = partitioned(captured(model, batch, lambda y, t: y.square().mean()), "spatial", 2, 2).program
    forward, back = labelled(program, "halo") & ~labelled(program, "adjoint"), labelled(program, "adjoint")
    assert program.size_bytes[forward].sum() == program.size_bytes[back].sum() > 0
    there = sorted(zip(program.src[forward], program.dst[forward], program.size_bytes[forward], strict=True))
    assert there == sorted(zip(program.dst[back], program.src[back], program.size_bytes[back], strict=True))


def test_nothing_moves_between_whole_patches() -> None:
    """A stride as large as the kernel, on blocks that it divides, needs no neighbour."""
    model, batch = nn.Conv2d(3, 4, 4, stride=4).double(), (images(2, 3, 16, 16), classes(2))
    program = partitioned(captured(model, batch, lambda y, t: y.square().mean()), "spatial", 2, 2).program
    assert not labelled(program, "halo").any()
