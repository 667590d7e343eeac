"""Occupancy network: cameras to a volume of voxels, by attention and 3-D transposed convolutions (Tesla AI Day, 2022).

Shape letters: B batch, D width, X, Y and Z voxels forwards, to the left and upwards.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional

from meshemu.errors import InputError
from meshemu.workload.arguments import check_positive, check_sizes
from meshemu.workload.losses import cross_entropy
from meshemu.workload.models.blocks import set_norm_momentum
from meshemu.workload.models.camera_trunk import CameraTrunk
from meshemu.workload.models.task_losses import class_weights, required_targets
from meshemu.workload.models.view_attention import ViewAttention

__all__ = ["OccupancyNet"]


class OccupancyNet(nn.Module):
    """Cameras to voxels: RegNet, BiFPN, attention into a coarse volume, transposed convolutions that refine it.

    Images (B, cameras, 3, height, width) -> logits (B, classes, X, Y, Z). With one class the logit is that of
    "occupied" against class number 0, free; with more they are one per class number.

    The default is of a size for tests; docs/models.md has one of full size.

    Args:
        image_size: [height, width] of each image.
        cameras: images per sample.
        widths: channels of the trunk's stages, each divisible by `group_width`.
        depths: blocks of the trunk's stages.
        group_width: channels per group of the trunk's 3x3 convolutions.
        stem_width: channels of the trunk's stem.
        fpn_width: D, channels of the BiFPN, of the attention and of the coarse volume.
        fpn_layers: layers of the BiFPN.
        attended_stages: of how many stages, the coarsest first, the attention reads the fused maps.
        heads: attention heads.
        attention_layers: blocks of cross-attention.
        voxels: [X, Y, Z], each divisible by 2^doublings.
        doublings: transposed convolutions; each doubles the voxels and halves the channels.
        classes: 1, or class numbers from free = 0 upwards.
        occupied_weight: weight of a voxel that is not free over one that is.
        norm_momentum: weight of a batch in the running statistics of batch norm; more than 0.1 suits runs of few steps.

    Raises:
        InputError: sizes that do not fit.
    """

    class_weights: Tensor

    def __init__(
        self,
        image_size: Sequence[int] = (32, 64),
        cameras: int = 4,
        widths: Sequence[int] = (16, 32, 48),
        depths: Sequence[int] = (1, 1, 2),
        group_width: int = 8,
        stem_width: int = 16,
        fpn_width: int = 32,
        fpn_layers: int = 1,
        attended_stages: int = 2,
        heads: int = 4,
        attention_layers: int = 1,
        voxels: Sequence[int] = (16, 16, 4),
        doublings: int = 1,
        classes: int = 4,
        occupied_weight: float = 2.0,
        norm_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        voxels_x, voxels_y, voxels_z = check_sizes("model occupancy", "voxels", voxels, "X Y Z")
        check_positive("model occupancy", doublings=doublings, classes=classes)
        factor = 2**doublings
        if any(n % factor for n in voxels) or fpn_width % factor:
            raise InputError(
                f"model occupancy: voxels = {list(voxels)} and fpn_width = {fpn_width} must be multiples of "
                f"2^doublings = {factor}"
            )
        if not 1 <= attended_stages <= len(widths):
            raise InputError(f"model occupancy: attended_stages = {attended_stages} is not between 1 and {len(widths)}")
        self.coarse = (voxels_x // factor, voxels_y // factor, voxels_z // factor)
        self.attended_stages = attended_stages
        self.trunk = CameraTrunk(
            image_size, cameras, widths, depths, group_width, stem_width, fpn_width, fpn_layers
        )
        n_queries = self.coarse[0] * self.coarse[1] * self.coarse[2]
        self.view = ViewAttention(
            n_queries, cameras, self.trunk.map_sizes[-attended_stages:], fpn_width, heads, attention_layers
        )
        self.refine = nn.Sequential(*(_doubling(fpn_width // 2**i) for i in range(doublings)))
        self.voxels = nn.Conv3d(fpn_width // factor, classes, 1)
        weights = class_weights("model occupancy", "occupied_weight", occupied_weight, max(1, classes - 1))
        self.register_buffer("class_weights", weights)
        set_norm_momentum("model occupancy", self, norm_momentum)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes, X, Y, Z)."""
        cells_bqd = self.view(self.trunk(images)[-self.attended_stages :])
        coarse = cells_bqd.transpose(1, 2).unflatten(2, self.coarse)
        logits: Tensor = self.voxels(self.refine(coarse))
        return logits

    def loss(self, outputs: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Cross entropy with targets["occupancy"], class numbers (B, X, Y, Z); binary where there is one class.

        Raises:
            InputError: the target is missing or has the wrong shape.
        """
        occupancy = required_targets("model occupancy", targets, ["occupancy"])["occupancy"]
        if outputs.shape[1] > 1:
            return cross_entropy(outputs, occupancy, self.class_weights)
        logits = outputs[:, 0]
        if logits.shape != occupancy.shape:
            raise InputError(
                f"model occupancy: targets of shape {tuple(occupancy.shape)} do not fit voxels {tuple(logits.shape)}"
            )
        occupied = (occupancy > 0).to(logits.dtype)
        return functional.binary_cross_entropy_with_logits(logits, occupied, pos_weight=self.class_weights[1])


def _doubling(width: int) -> nn.Sequential:
    """(B, width, X, Y, Z) -> (B, width / 2, 2 X, 2 Y, 2 Z)."""
    return nn.Sequential(
        nn.ConvTranspose3d(width, width // 2, kernel_size=4, stride=2, padding=1, bias=False),
        nn.BatchNorm3d(width // 2),
        nn.ReLU(),
    )
