"""What all cameras of a car share: one RegNet trunk and one BiFPN, applied to every image."""

from collections.abc import Sequence

from torch import Tensor, nn

from meshemu.errors import InputError
from meshemu.workload.arguments import check_positive, check_sizes
from meshemu.workload.models.bifpn import BiFPN
from meshemu.workload.models.regnet import RegNetTrunk

__all__ = ["CameraTrunk"]


class CameraTrunk(nn.Module):
    """Images (B, cameras, 3, height, width) -> fused maps (B, cameras, fpn_width, height_i, width_i), finest first.

    map_sizes: (height_i, width_i) of every map.

    Raises:
        InputError: sizes that do not fit together.
    """

    def __init__(
        self,
        image_size: Sequence[int],
        cameras: int,
        widths: Sequence[int],
        depths: Sequence[int],
        group_width: int,
        stem_width: int,
        fpn_width: int,
        fpn_layers: int,
    ) -> None:
        super().__init__()
        height, width = check_sizes("camera trunk", "image_size", image_size, "height width")
        check_positive("camera trunk", cameras=cameras, fpn_width=fpn_width, fpn_layers=fpn_layers)
        self.expected = (cameras, 3, height, width)
        self.regnet = RegNetTrunk(widths, depths, group_width, stem_width=stem_width)
        self.bifpn = BiFPN(widths, fpn_width, fpn_layers)
        self.map_sizes = self.regnet.map_sizes(image_size)

    def forward(self, images: Tensor) -> list[Tensor]:
        """One map of all cameras per stage of the trunk."""
        if tuple(images.shape[1:]) != self.expected:
            raise InputError(
                f"images of shape {tuple(images.shape)} do not fit the model: it is made for (batch, cameras, 3, "
                f"height, width) with {self.expected} after the batch"
            )
        cameras = images.shape[1]
        maps = self.bifpn(self.regnet(images.flatten(0, 1)))
        return [x.unflatten(0, (-1, cameras)) for x in maps]
