"""A rank makes the samples that its devices read and no others; what lies in their place is never looked at."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from models_under_test import classes, grid, images
from shared_captures import Captures
from torch import nn
from torch.nn import functional as F

import meshemu
from meshemu.emulator.prepare import prepare
from meshemu.emulator.timed_step import TimingOptions
from meshemu.execute.training import Trainer
from meshemu.runtime.local import SingleComm, run_ranks
from meshemu.workload.data import batch, load_dataset

IMAGES, LABELS = images(12, 3, 8, 8), classes(12)
CAPTURES = Captures()


torch.manual_seed(0)
NETWORK = nn.Sequential(  # made once: ranks in threads share torch's random numbers
    nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
    nn.Linear(16, 5),
).double()  # fmt: skip


def trained(comm: Any, plan: Any, micro_batches: int, *, spoil: bool) -> tuple[list[int], list[float], str]:
    """(samples of the rank, losses, digest of the parameters) of two steps; spoil: all other samples are NaN."""
    model = deepcopy(NETWORK)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    prepared = prepare(
        model, (IMAGES, LABELS), lambda call, item: F.cross_entropy(call(item[0]), item[1]), system=grid(2, 2),
        plan=plan, options=TimingOptions(), comm=comm, optimizer=optimizer, micro_batches=micro_batches,
        capture=CAPTURES.capture,
    )  # fmt: skip
    trainer = Trainer(model, optimizer, prepared.executor(comm), 0)
    samples = trainer.samples
    assert samples is not None
    inputs, labels = IMAGES.clone(), LABELS.clone()
    others = np.setdiff1d(np.arange(len(LABELS)), samples)
    if spoil:
        inputs[others], labels[others] = float("nan"), -(10**9)
    outcomes = [trainer.step((inputs, labels), step) for step in range(2)]
    return samples.tolist(), [o.loss for o in outcomes], outcomes[-1].parameters_sha256


CASES = {
    "data": ("data", 1, [6, 6]),
    "data, micro-batches": ("data", 2, [6, 6]),
    "spatial": ("spatial", 1, [12, 12]),
    "data of a part of the mesh": ({"data": 2}, 1, [6, 6]),
    "data and tensor": ({"data": 2, "tensor": 2}, 1, None),
    "pipeline": ({"pipeline": 2}, 1, None),
}


@pytest.mark.parametrize("name", CASES)
def test_samples_of_other_ranks_do_not_count(name: str) -> None:
    plan, micro_batches, counts = CASES[name]
    _, *alone = trained(SingleComm(), plan, micro_batches, spoil=False)
    results = run_ranks(2, lambda comm: trained(comm, plan, micro_batches, spoil=True))
    assert [result[1:] for result in results] == [tuple(alone)] * 2
    assert sorted({i for samples, _, _ in results for i in samples}) == list(range(12))
    if counts is not None:
        assert [len(samples) for samples, _, _ in results] == counts


@pytest.mark.parametrize("name, args", [
    ("digits", {"image_size": 8}),
    ("random_tokens", {"n_samples": 7}),
    ("driving_scenes", {"image_size": [6, 8], "bev_cells": [4, 4], "voxels": [4, 4, 2], "n_samples": 9}),
])  # fmt: skip
def test_some_rows_of_a_batch_are_those_of_the_whole(name: str, args: dict[str, Any]) -> None:
    dataset = load_dataset(name, args)
    whole, some = (torch.utils._pytree.tree_leaves(batch(dataset, 1, 6, 3, rows)) for rows in (None, np.array([1, 4])))
    for complete, part in zip(whole, some, strict=True):
        assert part.shape == complete.shape and part.dtype == complete.dtype
        assert torch.equal(part[[1, 4]], complete[[1, 4]])
    none = torch.utils._pytree.tree_leaves(batch(dataset, 1, 6, 3, np.zeros(0, np.int64)))
    assert [leaf.shape for leaf in none] == [leaf.shape for leaf in whole]


def test_only_the_rows_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load_dataset("random_tokens", {"n_samples": 20})
    asked: list[int] = []
    take = type(dataset.train).take
    monkeypatch.setattr(
        type(dataset.train), "take", lambda self, indices: asked.extend(indices.tolist()) or take(self, indices)
    )
    batch(dataset, 0, 10, 0)
    everything, asked[:] = list(asked), []
    batch(dataset, 0, 10, 0, np.array([2, 3, 7]))
    assert asked == [everything[i] for i in (2, 3, 7)]


def test_a_configured_run_makes_only_its_own_samples(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from meshemu.workload import data

    config = tmp_path / "c.toml"
    config.write_text(
        '[system.grid]\nrows = 2\ncols = 2\nbandwidth = "50 GB/s"\nlatency = "500 ns"\n'
        '[model]\nname = "gpt"\nargs = {vocab_size = 96, context = 4, width = 8, heads = 2, layers = 1}\n'
        '[data]\nname = "random_tokens"\nbatch_size = 8\nargs = {context = 4, n_samples = 16}\n'
        '[training]\nsteps = 2\noptimizer = {name = "sgd", lr = 0.1}\n[plan]\ndata = 4\n'
    )  # fmt: skip
    made: list[Any] = []
    plain_batch = data.batch

    def recorded(*args: Any) -> Any:
        made.append(None if args[4] is None else args[4].tolist())
        return plain_batch(*args)

    monkeypatch.setattr(data, "batch", recorded)
    capture = Captures().capture
    alone = meshemu.run(config, tmp_path / "a.h5", capture=capture).losses
    assert made == [list(range(8))] * 2
    made.clear()
    results = run_ranks(2, lambda comm: meshemu.run(config, tmp_path / "b.h5", comm=comm, capture=capture).losses)
    assert results == [alone, alone]
    assert sorted(map(tuple, made)) == [(0, 1, 4, 5)] * 2 + [(2, 3, 6, 7)] * 2  # of the devices of a column
