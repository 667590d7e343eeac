"""RegNet: stages of residual blocks with grouped convolutions (Radosavovic et al., arXiv:2003.13678).

The blocks are those of RegNetX, bottlenecks as wide inside as outside; widths and depths are given outright instead of
through the paper's quantised line.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from meshemu.errors import InputError
from meshemu.workload.arguments import check_positive
from meshemu.workload.models.blocks import Bottleneck, conv_norm, set_norm_momentum

__all__ = ["RegNet", "RegNetTrunk"]


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
        check_positive("model regnet", num_classes=num_classes)
        self.trunk = RegNetTrunk(
            widths, depths, group_width, in_channels, stem_width, stem_stride, strides, norm_momentum
        )
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, num_classes) of images (batch, in_channels, height, width)."""
        logits: Tensor = self.head(self.trunk(images)[-1].mean(dim=(2, 3)))
        return logits


class RegNetTrunk(nn.Module):
    """The stem and the stages: images (batch, in_channels, height, width) -> the maps of all stages, finest first.

    Args and errors: as RegNet, whose trunk it is.
    """

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        group_width: int = 8,
        in_channels: int = 3,
        stem_width: int = 32,
        stem_stride: int = 2,
        strides: Sequence[int] | None = None,
        norm_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        stage_strides = [2] * len(widths) if strides is None else list(strides)
        _check_stages(widths, depths, stage_strides, group_width)
        check_positive("RegNet trunk", in_channels=in_channels, stem_width=stem_width, stem_stride=stem_stride)
        self.strides = (stem_stride, *stage_strides)
        self.stem = conv_norm(in_channels, stem_width, kernel=3, stride=stem_stride)
        self.stages = nn.Sequential()
        channels = stem_width
        for width, depth, stride in zip(widths, depths, stage_strides, strict=True):
            groups = width // group_width
            blocks = [Bottleneck(channels, width, width, stride, groups)]
            blocks += [Bottleneck(width, width, width, 1, groups) for _ in range(depth - 1)]
            self.stages.append(nn.Sequential(*blocks))
            channels = width
        set_norm_momentum("RegNet trunk", self, norm_momentum)
        self.activation = nn.ReLU()

    def forward(self, images: Tensor) -> list[Tensor]:
        """One map (batch, widths[i], height_i, width_i) per stage."""
        x = self.activation(self.stem(images))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def map_sizes(self, image_size: Sequence[int]) -> list[tuple[int, int]]:
        """(height, width) of every stage's map: each stride divides and rounds up."""
        height, width = image_size
        sizes = []
        for stride in self.strides:
            height, width = -(-height // stride), -(-width // stride)
            sizes.append((height, width))
        return sizes[1:]


def _check_stages(widths: Sequence[int], depths: Sequence[int], strides: Sequence[int], group_width: int) -> None:
    """Refuse stages whose sizes do not fit together."""
    if not widths or not len(widths) == len(depths) == len(strides):
        raise InputError(
            f"RegNet trunk: one width, depth and stride per stage, but len(widths) = {len(widths)}, "
            f"len(depths) = {len(depths)}, len(strides) = {len(strides)}"
        )
    check_positive("RegNet trunk", group_width=group_width)
    for stage, (width, depth, stride) in enumerate(zip(widths, depths, strides, strict=True)):
        check_positive(
            "RegNet trunk", **{f"widths[{stage}]": width, f"depths[{stage}]": depth, f"strides[{stage}]": stride}
        )
        if width % group_width:
            raise InputError(
                f"RegNet trunk: widths[{stage}] = {width} is not a multiple of group_width = {group_width}"
            )
