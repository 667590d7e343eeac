"""Configurations: the models of those that are shipped fit their data, and models of several heads train from one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from shared_captures import Captures

import meshemu
from meshemu.config import load, parse
from meshemu.runtime.local import run_ranks
from meshemu.workload.data import batch, load_dataset
from meshemu.workload.losses import load_loss
from meshemu.workload.models import build_model
from meshemu.workload.outputs import summed

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.toml"))

SMALL = """
plan = { data = 4 }
[system]
grid = { rows = 2, cols = 2, bandwidth = "50 GB/s", latency = "500 ns" }
[model]
name = "hydranet"
dtype = "fp64"
[model.args]
image_size = [8, 16]
cameras = 2
widths = [8, 8]
depths = [1, 1]
stem_width = 8
fpn_width = 8
heads = 2
bev_cells = [4, 4]
loss_weights = { light = 0, lanes = 0.5 }
[data]
name = "driving_scenes"
args = { image_size = [8, 16], cameras = 2, bev_cells = [4, 4], targets = ["objects", "boxes", "lanes"] }
batch_size = 5
[training]
steps = 2
seed = 3
loss = "model"
optimizer = { name = "sgd", lr = 0.05 }
"""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_model_of_a_shipped_configuration_fits_its_data(path: Path) -> None:
    config = load(path)
    model = build_model(config.model.name or "", config.model.args)
    data = load_dataset(config.data.name or "", config.data.args)
    inputs, targets = data.train.take(np.arange(2))
    loss, _ = summed(load_loss(config.training.loss, model)(model(inputs), targets))
    loss.backward()
    assert bool(torch.isfinite(loss)) and loss > 0
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_a_model_of_several_heads_trains_from_a_configuration(tmp_path: Path) -> None:
    """On two ranks, each with a model and data of its own, as a plain loop of PyTorch trains it."""
    config = parse(SMALL, origin="SMALL", directory=tmp_path)
    capture = Captures().capture
    results = run_ranks(2, lambda comm: meshemu.run(config, tmp_path / "run.h5", comm=comm, capture=capture))

    model = build_model("hydranet", config.model.args, seed=3).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loss = load_loss("model", model)
    data = load_dataset("driving_scenes", config.data.args)
    expected = []
    for step in range(2):
        inputs, targets = batch(data, step, batch_size=5, seed=3)
        targets["boxes"] = targets["boxes"].double()
        value, _ = summed(loss(model(inputs.double()), targets))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        expected.append(value.item())
    assert results[0].losses == results[1].losses == pytest.approx(expected, rel=1e-11)
    assert expected[0] != expected[1]
