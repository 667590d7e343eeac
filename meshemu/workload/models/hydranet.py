"""HydraNet: one trunk for all cameras, one space around the car, several heads (after Tesla's AI Day, 2021).

Shape letters: B batch, D width, X and Y cells of the bird's-eye view, forwards and to the left.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional

from meshemu.errors import InputError
from meshemu.workload.arguments import check_positive, check_sizes
from meshemu.workload.losses import cross_entropy
from meshemu.workload.models.blocks import Bottleneck, conv_norm, set_norm_momentum
from meshemu.workload.models.camera_trunk import CameraTrunk
from meshemu.workload.models.task_losses import check_weights, class_weights, masked_smooth_l1, required_targets
from meshemu.workload.models.view_attention import ViewAttention

__all__ = ["HydraNet"]

LOSS_WEIGHTS = {"objects": 1.0, "boxes": 1.0, "lanes": 1.0, "light": 0.5}
"""The losses and their default weights."""


class HydraNet(nn.Module):
    """Cameras to objects, lanes and traffic light: RegNet, BiFPN, attention into bird's-eye view, a head per task.

    Images (B, cameras, 3, height, width), the front camera first -> a dict of
    objects: logits (B, 1 + object_classes, X, Y), class 0 being none, of an object whose centre is in the cell;
    boxes: (B, box_numbers, X, Y), the object's place, size and heading;
    lanes: logits (B, lane_classes, 2 X, 2 Y); light: logits (B, light_states) of the front camera's view.

    The default is of a size for tests; docs/models.md has one of full size.

    Args:
        image_size: [height, width] of each image.
        cameras: images per sample.
        widths: channels of the trunk's stages, each divisible by `group_width`.
        depths: blocks of the trunk's stages.
        group_width: channels per group of the trunk's 3x3 convolutions.
        stem_width: channels of the trunk's stem.
        fpn_width: D, channels of the BiFPN, of the attention and of the bird's-eye view.
        fpn_layers: layers of the BiFPN.
        attended_stages: of how many stages, the coarsest first, the attention reads the fused maps.
        heads: attention heads.
        attention_layers: blocks of cross-attention.
        bev_cells: [X, Y].
        object_classes, box_numbers, lane_classes, light_states: sizes of the heads, as the data have them.
        object_weight: weight of a cell with an object over one without, in the loss of `objects`.
        loss_weights: weight of each loss by name; one with weight 0 is left out with its head's targets.
        norm_momentum: weight of a batch in the running statistics of batch norm; more than 0.1 suits runs of few steps.

    Raises:
        InputError: sizes or names that do not fit.
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
        bev_cells: Sequence[int] = (16, 16),
        object_classes: int = 2,
        box_numbers: int = 8,
        lane_classes: int = 3,
        light_states: int = 4,
        object_weight: float = 4.0,
        loss_weights: Mapping[str, float] | None = None,
        norm_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        cells_x, cells_y = check_sizes("model hydranet", "bev_cells", bev_cells, "X Y")
        check_positive(
            "model hydranet", object_classes=object_classes, box_numbers=box_numbers, lane_classes=lane_classes,
            light_states=light_states,
        )  # fmt: skip
        self.loss_weights = check_weights("model hydranet", LOSS_WEIGHTS, loss_weights)
        if not 1 <= attended_stages <= len(widths):
            raise InputError(f"model hydranet: attended_stages = {attended_stages} is not between 1 and {len(widths)}")
        self.bev_cells = (cells_x, cells_y)
        self.attended_stages = attended_stages
        self.trunk = CameraTrunk(
            image_size, cameras, widths, depths, group_width, stem_width, fpn_width, fpn_layers
        )
        self.view = ViewAttention(
            cells_x * cells_y, cameras, self.trunk.map_sizes[-attended_stages:], fpn_width, heads, attention_layers
        )
        self.bev = Bottleneck(fpn_width, fpn_width, fpn_width)
        self.objects = _head(fpn_width, 1 + object_classes)
        self.boxes = _head(fpn_width, box_numbers)
        self.lanes = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), *_head(fpn_width, lane_classes))
        self.light_features = conv_norm(fpn_width, fpn_width, kernel=3)
        self.light = nn.Linear(fpn_width, light_states)
        weights = class_weights("model hydranet", "object_weight", object_weight, object_classes)
        self.register_buffer("class_weights", weights)
        set_norm_momentum("model hydranet", self, norm_momentum)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits and boxes of every head."""
        maps = self.trunk(images)
        cells_bqd = self.view(maps[-self.attended_stages :])
        bev = self.bev(cells_bqd.transpose(1, 2).unflatten(2, self.bev_cells))
        front = functional.relu(self.light_features(maps[0][:, 0]))
        return {
            "objects": self.objects(bev),
            "boxes": self.boxes(bev),
            "lanes": self.lanes(bev),
            "light": self.light(front.mean(dim=(2, 3))),
        }

    def loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weighted losses by name; their sum is trained on.

        targets: objects (B, X, Y), lanes (B, 2 X, 2 Y) and light (B) class numbers; boxes (B, box_numbers, X, Y), which
        count where there is an object.

        Raises:
            InputError: a target is missing or has the wrong shape.
        """
        targets = required_targets("model hydranet", targets, self._targets())
        losses = {
            "objects": lambda: cross_entropy(outputs["objects"], targets["objects"], self.class_weights),
            "boxes": lambda: masked_smooth_l1(outputs["boxes"], targets["boxes"], targets["objects"] > 0),
            "lanes": lambda: cross_entropy(outputs["lanes"], targets["lanes"]),
            "light": lambda: cross_entropy(outputs["light"], targets["light"]),
        }
        return {name: weight * losses[name]() for name, weight in self.loss_weights.items()}

    def _targets(self) -> list[str]:
        """Names of the targets that the losses read; boxes count only where there are objects."""
        return [*self.loss_weights, *(["objects"] if "boxes" in self.loss_weights else [])]


def _head(width: int, channels: int) -> nn.Sequential:
    """A 3x3 convolution with batch norm, then the outputs of every cell."""
    return nn.Sequential(conv_norm(width, width, kernel=3), nn.ReLU(), nn.Conv2d(width, channels, 1))
