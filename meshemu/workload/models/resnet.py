"""ResNet of bottleneck blocks (He et al., arXiv:1512.03385), version 1.5: the stride is in the 3x3 convolution."""

from collections.abc import Sequence

from torch import Tensor, nn

from meshemu.errors import InputError
from meshemu.workload.arguments import check_positive
from meshemu.workload.models.blocks import Bottleneck, conv_norm, set_norm_momentum

__all__ = ["ResNet"]

EXPANSION = 4
"""Channels that leave a bottleneck over those inside it."""


class ResNet(nn.Module):
    """ResNet-50 by default: a stem, stages of bottleneck blocks, global average pooling and a linear head.

    Images (batch, in_channels, height, width) of any size -> logits (batch, num_classes).

    Args:
        depths: blocks of each stage; (3, 4, 23, 3) is ResNet-101, (3, 8, 36, 3) is ResNet-152.
        width: channels of the stem and inside the blocks of the first stage; each stage doubles them.
        num_classes: classes of the head.
        in_channels: channels of the image.
        norm_momentum: weight of a batch in the running statistics of batch norm; more than 0.1 suits runs of few steps.

    Raises:
        InputError: a size below 1, or a momentum that is no share.
    """

    def __init__(
        self,
        depths: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        num_classes: int = 1000,
        in_channels: int = 3,
        norm_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        check_positive("model resnet50", width=width, num_classes=num_classes, in_channels=in_channels)
        check_positive("model resnet50", **{f"depths[{stage}]": depth for stage, depth in enumerate(depths)})
        if not depths:
            raise InputError("model resnet50: depths is empty: there must be at least one stage")
        self.stem = nn.Sequential(
            conv_norm(in_channels, width, kernel=7, stride=2), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)
        )
        self.stages = nn.Sequential()
        channels = width
        for stage, depth in enumerate(depths):
            inner = width * 2**stage
            blocks = [Bottleneck(channels, inner, inner * EXPANSION, stride=1 if stage == 0 else 2)]
            blocks += [Bottleneck(inner * EXPANSION, inner, inner * EXPANSION) for _ in range(depth - 1)]
            self.stages.append(nn.Sequential(*blocks))
            channels = inner * EXPANSION
        self.head = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        set_norm_momentum("model resnet50", self, norm_momentum)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, num_classes) of images (batch, in_channels, height, width)."""
        logits: Tensor = self.head(self.stages(self.stem(images)).mean(dim=(2, 3)))
        return logits
