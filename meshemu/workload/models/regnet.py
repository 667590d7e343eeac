"""RegNet: stages of residual blocks with grouped convolutions (Radosavovic et al., arXiv:2003.13678).

The blocks are those of RegNetX; widths and depths are given outright instead of through the paper's quantised line.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from meshemu.errors import InputError
from meshemu.workload.arguments import check_positive

__all__ = ["RegNet"]


class RegNet(nn.Module):
    """A stem, stages of X-blocks, global average pooling and a linear head.

    Images (batch, in_channels, height, width) -> logits (batch, num_classes).

    Args:
        widths: channels of each stage, each divisible by `group_width`.
        depths: blocks of each stage.
        group_width: channels per group of the 3x3 convolutions.
        num_classes: classes of the head.
        in_channels: channels of the image.
        stem_width: channels of the stem.
        stem_stride: stride of the stem's 3x3 convolution.
        strides: stride of each stage's first block; 2 everywhere by default.
        norm_momentum: weight of a batch in the running statistics of batch norm; more than 0.1 suits runs of few steps.

    Raises:
        InputError: sizes that do not fit together.
    """

    def __init__(
        self,
        widths: Sequence[int] = (24, 56, 152, 368),
        depths: Sequence[int] = (1, 1, 4, 7),
        group_width: int = 8,
        num_classes: int = 1000,
        in_channels: int = 3,
        stem_width: int = 32,
        stem_stride: int = 2,
        strides: Sequence[int] | None = None,
        norm_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        stage_strides = [2] * len(widths) if strides is None else list(strides)
        _check_stages(widths, depths, stage_strides, group_width)
        check_positive(
            "model regnet", num_classes=num_classes, in_channels=in_channels, stem_width=stem_width,
            stem_stride=stem_stride,
        )
        if not 0 < norm_momentum <= 1:
            raise InputError(f"model regnet: norm_momentum = {norm_momentum} must be > 0 and <= 1")
        self.stem = _conv_norm(in_channels, stem_width, kernel=3, stride=stem_stride)
        self.stages = nn.Sequential()
        channels = stem_width
        for width, depth, stride in zip(widths, depths, stage_strides, strict=True):
            blocks = [XBlock(channels, width, stride, group_width)]
            blocks += [XBlock(width, width, 1, group_width) for _ in range(depth - 1)]
            self.stages.append(nn.Sequential(*blocks))
            channels = width
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = norm_momentum
        self.activation = nn.ReLU()
        self.head = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, num_classes) of images (batch, in_channels, height, width)."""
        features = self.stages(self.activation(self.stem(images)))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


class XBlock(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolution, each with batch norm, added to a shortcut.

    The shortcut is a strided 1x1 convolution with batch norm where the shape changes, the identity elsewhere.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, group_width: int) -> None:
        super().__init__()
        self.reduce = _conv_norm(in_channels, out_channels, kernel=1)
        self.spatial = _conv_norm(
            out_channels, out_channels, kernel=3, stride=stride, groups=out_channels // group_width
        )
        self.expand = _conv_norm(out_channels, out_channels, kernel=1)
        same_shape = in_channels == out_channels and stride == 1
        self.shortcut = nn.Identity() if same_shape else _conv_norm(in_channels, out_channels, kernel=1, stride=stride)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Features (batch, out_channels, ceil(height / stride), ceil(width / stride))."""
        residual = self.activation(self.reduce(x))
        residual = self.expand(self.activation(self.spatial(residual)))
        out: Tensor = self.activation(self.shortcut(x) + residual)
        return out


def _conv_norm(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution that keeps the size (before its stride), then batch norm."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def _check_stages(widths: Sequence[int], depths: Sequence[int], strides: Sequence[int], group_width: int) -> None:
    """Refuse stages whose sizes do not fit together."""
    if not widths or not len(widths) == len(depths) == len(strides):
        raise InputError(
            f"model regnet: one width, depth and stride per stage, but len(widths) = {len(widths)}, "
            f"len(depths) = {len(depths)}, len(strides) = {len(strides)}"
        )
    check_positive("model regnet", group_width=group_width)
    for stage, (width, depth, stride) in enumerate(zip(widths, depths, strides, strict=True)):
        check_positive(
            "model regnet", **{f"widths[{stage}]": width, f"depths[{stage}]": depth, f"strides[{stage}]": stride}
        )
        if width % group_width:
            raise InputError(
                f"model regnet: widths[{stage}] = {width} is not a multiple of group_width = {group_width}"
            )
