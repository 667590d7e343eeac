"""Steps of training that a host is measured by: small models of several kinds, with batches of their own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from meshemu.execute.optimizer import Optimizer
from meshemu.workload.models import build_model

__all__ = ["CASES", "OVERHEAD_CASES", "PARALLEL_CASES", "HostStep", "host_step"]

_CLASSES = 10
_CONTEXT = 64


@dataclass(frozen=True, eq=False)
class HostStep:
    """A model in training with one batch (inputs, targets)."""

    name: str
    batch_size: int
    model: nn.Module
    batch: tuple[torch.Tensor, torch.Tensor]
    loss: Callable[[Any, Any], torch.Tensor]
    optimizer: Optimizer

    def forward(self) -> torch.Tensor:
        """The loss of the batch."""
        inputs, targets = self.batch
        return self.loss(self.model(inputs), targets)


def host_step(name: str, batch_size: int) -> HostStep:
    """A step of the model `name`, one of those in CASES, always with the same values."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, batch = _MODELS[name](batch_size)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    return HostStep(name, batch_size, model.train(), batch, _loss, optimizer)


def _loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1))


Built = tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]


def _images(model: nn.Module, batch_size: int, side: int, channels: int = 3) -> Built:
    return model, (torch.rand(batch_size, channels, side, side), torch.randint(_CLASSES, (batch_size,)))


def _mlp(batch_size: int, width: int, depth: int) -> Built:
    hidden = [layer for _ in range(depth - 1) for layer in (nn.Linear(width, width), nn.ReLU())]
    model = nn.Sequential(*hidden, nn.Linear(width, _CLASSES))
    return model, (torch.rand(batch_size, width), torch.randint(_CLASSES, (batch_size,)))


def _convolutions(batch_size: int) -> Built:
    """Plain convolutions without normalisation, as in VGG."""
    layers: list[nn.Module] = []
    for inner, outer in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(inner, outer, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return _images(nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, _CLASSES)), batch_size, 32)


def _resnet(batch_size: int) -> Built:
    arguments = {"depths": [1, 1, 1, 1], "width": 32, "num_classes": _CLASSES}
    return _images(build_model("resnet50", arguments), batch_size, 64)


def _regnet(batch_size: int) -> Built:
    arguments = {"widths": [24, 56, 152], "depths": [1, 1, 2], "num_classes": _CLASSES}
    return _images(build_model("regnet", arguments), batch_size, 64)


def _gpt(batch_size: int, width: int, layers: int) -> Built:
    arguments = {"vocab_size": 256, "context": _CONTEXT, "width": width, "heads": 4, "layers": layers}
    tokens = torch.randint(256, (batch_size, _CONTEXT + 1))
    return build_model("gpt", arguments), (tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


_MODELS: Mapping[str, Callable[[int], Built]] = MappingProxyType({
    "mlp": lambda n: _mlp(n, 512, 4),
    "convolutions": _convolutions,
    "resnet": _resnet,
    "regnet": _regnet,
    "gpt": lambda n: _gpt(n, 128, 4),
    "chain": lambda n: _mlp(n, 8, 24),
    "small gpt": lambda n: _gpt(n, 16, 6),
})  # fmt: skip

CASES = (
    ("mlp", 32), ("mlp", 256), ("convolutions", 8), ("convolutions", 32), ("resnet", 4), ("resnet", 16), ("regnet", 4),
    ("regnet", 16), ("gpt", 4), ("gpt", 16),
)  # fmt: skip
"""(model, batch size) of the steps that are predicted."""

PARALLEL_CASES = (("mlp", 64), ("convolutions", 32), ("gpt", 8))
"""(model, batch size of both ranks together) of data-parallel steps."""

OVERHEAD_CASES = (("chain", 4), ("small gpt", 1))
"""Steps of so little work that they tell what eager PyTorch adds to each operator."""
