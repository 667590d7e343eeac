"""BiFPN: maps of several scales exchange what they see, both ways (Tan, Pang and Le, arXiv:1911.09070, section 3)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["BiFPN"]

EPSILON = 1e-4
"""Keeps the normalised fusion defined where all weights are zero."""


class BiFPN(nn.Module):
    """Brings the maps of a trunk to one width, then passes them through layers of fusion.

    Maps (batch, in_channels[i], height_i, width_i), finest first -> as many maps (batch, width, height_i, width_i).
    """

    def __init__(self, in_channels: Sequence[int], width: int, layers: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)) for channels in in_channels
        )
        self.layers = nn.ModuleList(BiFPNLayer(width, len(in_channels)) for _ in range(layers))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The fused maps, finest first."""
        fused = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for layer in self.layers:
            fused = layer(fused)
        return fused


class BiFPNLayer(nn.Module):
    """One path from coarse to fine and one back, the second also reading what came into the first."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.top_down = nn.ModuleList(Fusion(width, n_inputs=2) for _ in range(levels - 1))
        self.bottom_up = nn.ModuleList(Fusion(width, n_inputs=3 if i + 2 < levels else 2) for i in range(levels - 1))
        self.down = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps of one width, finest first -> maps of the same shapes."""
        levels = len(maps)
        descending = [maps[-1]]
        for level in reversed(range(levels - 1)):
            upsampled = functional.interpolate(descending[0], size=maps[level].shape[-2:], mode="nearest")
            descending.insert(0, self.top_down[level](maps[level], upsampled))
        ascending = [descending[0]]
        for level in range(1, levels):
            inputs = [maps[level], self.down(ascending[-1])]
            if level + 1 < levels:
                inputs.insert(1, descending[level])
            ascending.append(self.bottom_up[level - 1](*inputs))
        return ascending


class Fusion(nn.Module):
    """A mean of maps of one shape with learned weights >= 0, then a depthwise separable convolution."""

    def __init__(self, width: int, n_inputs: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(n_inputs))
        self.activation = nn.SiLU()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.pointwise = nn.Conv2d(width, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, *maps: Tensor) -> Tensor:
        """n_inputs maps (batch, width, height, width) -> one."""
        weights = functional.relu(self.weights)
        shares = weights / (weights.sum() + EPSILON)
        mixed = shares[0] * maps[0]
        for i in range(1, len(maps)):
            mixed = mixed + shares[i] * maps[i]
        out: Tensor = self.norm(self.pointwise(self.depthwise(self.activation(mixed))))
        return out
