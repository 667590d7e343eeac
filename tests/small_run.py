"""A run of a model of one's own, in the fewest lines: the text of its configuration, and of mine.py beside it."""

from pathlib import Path

MINE = """
import torch
from torch import nn
from torch.nn import functional as F

def drawn(model):
    # Numbers of its own: ranks that are threads of one process share torch's generator.
    g = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=g) / 4
    return model

def data(n_classes=3):
    # 64 samples of 6 numbers, 16 of them held out; the class is the largest of the first few numbers.
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    y = x[:, :n_classes].argmax(1)
    return x, y, x[:16], y[:16]

def loss(outputs, targets):
    return F.cross_entropy(outputs, targets)
"""
"""What most models of tests/ share; a test appends its own `model`, and what else it wants otherwise."""


def config_text(
    training: str, *, plan: str = '"data"', model: str = 'build = "mine.py:model"', batch_size: int = 8
) -> str:
    """A run on 2 x 2 devices with data from mine.py; training, model: the content of these tables, and more tables
    after it.
    """
    return f"""
plan = {plan}
[system]
grid = {{ rows = 2, cols = 2, bandwidth = "50 GB/s", latency = "500 ns" }}
[data]
build = "mine.py:data"
batch_size = {batch_size}
[model]
{model}
[training]
{training}
"""


def written(folder: Path, config: str, mine: str) -> Path:
    """The folder, with run.toml and mine.py in it."""
    (folder / "run.toml").write_text(config)
    (folder / "mine.py").write_text(mine)
    return folder
