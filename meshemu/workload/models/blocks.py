"""What convolutional networks are made of: normalised convolutions and residual bottlenecks."""

from torch import Tensor, nn

from meshemu.errors import InputError

__all__ = ["Bottleneck", "conv_norm", "set_norm_momentum"]


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution, each with batch norm, added to a shortcut (He et al., arXiv:1512.03385).

    The stride is in the 3x3 convolution. The shortcut is a strided 1x1 convolution with batch norm where the shape
    changes, the identity elsewhere. `width` is the number of channels inside, in `groups` groups.
    """

    def __init__(self, in_channels: int, width: int, out_channels: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.reduce = conv_norm(in_channels, width, kernel=1)
        self.spatial = conv_norm(width, width, kernel=3, stride=stride, groups=groups)
        self.expand = conv_norm(width, out_channels, kernel=1)
        same_shape = in_channels == out_channels and stride == 1
        self.shortcut = nn.Identity() if same_shape else conv_norm(in_channels, out_channels, kernel=1, stride=stride)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Features (batch, out_channels, ceil(height / stride), ceil(width / stride))."""
        residual = self.activation(self.reduce(x))
        residual = self.expand(self.activation(self.spatial(residual)))
        out: Tensor = self.activation(self.shortcut(x) + residual)
        return out


def conv_norm(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A 2-D convolution of odd `kernel` that keeps the size (before its stride), then batch norm."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def set_norm_momentum(what: str, module: nn.Module, momentum: float) -> None:
    """Give every batch norm inside `module` the weight `momentum` of a batch in its running statistics.

    Raises:
        InputError: the momentum is not a share; `what` names the model.
    """
    if not 0 < momentum <= 1:
        raise InputError(f"{what}: norm_momentum = {momentum} must be > 0 and <= 1")
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d | nn.BatchNorm3d):
            child.momentum = momentum
