"""Small models of every family that plans are tested with: from transformers, built in, and plain modules.

All take batches of any size. Dropout is on where the family has it by default.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from models_under_test import Loss, classes, images
from torch import Tensor, nn
from torch.nn import functional as F

from meshemu.workload.losses import load_loss
from meshemu.workload.models import build_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

Batch = tuple[Any, Any]


def of_logits(outputs: Any, targets: Tensor) -> Tensor:
    """Cross entropy of a model's output, or of its logits, over all but their last dim."""
    logits = getattr(outputs, "logits", outputs)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


def of_heads(model: nn.Module) -> Loss:
    """The model's own loss."""
    return load_loss("model", model)


@dataclass(frozen=True)
class Subject:
    """make: a model with random weights. batch: number of samples -> inputs and targets. loss_of: model -> its loss."""

    make: Callable[[], nn.Module]
    batch: Callable[[int], Batch]
    loss_of: Callable[[nn.Module], Loss] = lambda _model: of_logits

    def made(self, n_samples: int, dtype: torch.dtype) -> tuple[nn.Module, Batch, Loss]:
        """(model in training, batch, loss), the same every time."""
        torch.manual_seed(0)
        model = self.make().train()
        return model.to(dtype), _of_dtype(self.batch(n_samples), dtype), self.loss_of(model)

    @property
    def has_images(self) -> bool:
        """Whether the axis "spatial" has rows and columns to cut."""
        return any(leaf.dim() >= 4 for leaf in _leaves(self.batch(1)))


def _of_dtype(item: Any, dtype: torch.dtype) -> Any:
    """A nest of tensors, the floating ones in `dtype`."""
    return torch.utils._pytree.tree_map_only(
        Tensor, lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, item
    )


def _leaves(item: Any) -> list[Tensor]:
    leaves: list[Tensor] = torch.utils._pytree.tree_leaves(item)
    return leaves


def pictures(size: int, seed: int = 1) -> Callable[[int], Batch]:
    return lambda n: (images(n, 3, size, size, seed=seed), classes(n, n=4))


def text(n_tokens: int) -> Callable[[int], Batch]:
    return lambda n: (classes(n, n_tokens, n=31), classes(n, n_tokens, n=31, seed=5))


def scenes(task: str, size: tuple[int, int]) -> Callable[[int], Batch]:
    """What two cameras see, and what is there: objects, boxes, lanes and a light, or occupied voxels."""

    def batch(n: int) -> Batch:
        seen = images(n, 2, 3, *size)
        if task == "occupancy":
            return seen, {"occupancy": classes(n, 4, 4, 2, n=4)}
        lanes = classes(n, 8, 8, n=3, seed=4)
        return seen, {
            "objects": classes(n, 4, 4, n=3), "boxes": images(n, 8, 4, 4, seed=3), "lanes": lanes,
            "light": classes(n, n=4, seed=6),
        }  # fmt: skip

    return batch


def resnet() -> nn.Module:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 2], layer_type="basic", num_labels=4
    )
    return transformers.ResNetForImageClassification(config)


def regnet() -> nn.Module:
    config = transformers.RegNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=4, num_labels=4
    )
    return transformers.RegNetForImageClassification(config)


def convnext() -> nn.Module:
    config = transformers.ConvNextConfig(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, patch_size=2, num_labels=4)
    return transformers.ConvNextForImageClassification(config)


def vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=12, patch_size=4,
        num_labels=4,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def gpt2(dropout: float = 0.1) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=31, n_positions=8, n_embd=16, n_layer=2, n_head=2, resid_pdrop=dropout, embd_pdrop=dropout,
        attn_pdrop=dropout, use_cache=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=8, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=31, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=8,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config)


def own(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    return lambda: build_model(name, arguments)


CAMERAS = {"cameras": 2, "widths": [8, 8], "depths": [1, 1], "stem_width": 8, "fpn_width": 8, "heads": 2}


class SqueezeExcite(nn.Module):
    """Channels scaled by what all of an image says."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1))))
        return x * F.hardsigmoid(scale)


class Inverted(nn.Module):
    """An inverted residual: expanded, filtered channel by channel, excited, projected."""

    def __init__(self, width: int, expanded: int, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1
        self.layers = nn.Sequential(
            nn.Conv2d(width, expanded, 1, bias=False), nn.BatchNorm2d(expanded), nn.Hardswish(),
            nn.Conv2d(expanded, expanded, 5, stride, 2, groups=expanded, bias=False), nn.BatchNorm2d(expanded),
            nn.Hardswish(), SqueezeExcite(expanded, 4), nn.Conv2d(expanded, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


def mobilenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(), Inverted(8, 12, 1), Inverted(8, 16, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 12), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(12, 4),
    )  # fmt: skip


def vgg() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d((3, 3)), nn.Flatten(), nn.Linear(72, 16),
        nn.ReLU(), nn.Dropout(), nn.Linear(16, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 4),
    )  # fmt: skip


class Dense(nn.Module):
    """A layer that hands on all it read beside what it makes of it."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], dim=1)


def densenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.MaxPool2d(3, 2, 1), Dense(6, 4), Dense(10, 4), nn.BatchNorm2d(14), nn.ReLU(),
        nn.Conv2d(14, 8, 1), nn.AvgPool2d(2), Dense(8, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip


SUBJECTS: Mapping[str, Subject] = {
    "resnet": Subject(resnet, pictures(33, seed=3)),
    "regnet": Subject(regnet, pictures(32)),
    "convnext": Subject(convnext, pictures(20)),
    "vit": Subject(vit, pictures(12)),
    "gpt2": Subject(gpt2, text(7)),
    "llama": Subject(llama, text(7)),
    "bert": Subject(bert, text(7)),
    "own regnet": Subject(
        own("regnet", widths=[8, 16], depths=[1, 1], group_width=4, num_classes=4, in_channels=3, stem_width=8),
        pictures(21),
    ),
    "own resnet50": Subject(own("resnet50", depths=[1, 1], width=8, num_classes=4), pictures(33)),
    "own gpt": Subject(own("gpt", vocab_size=31, context=8, width=16, heads=2, layers=2), text(8)),
    "own hydranet": Subject(
        own("hydranet", **CAMERAS, image_size=[16, 32], bev_cells=[4, 4]), scenes("hydranet", (16, 32)), of_heads
    ),
    "own occupancy": Subject(
        own("occupancy", **CAMERAS, image_size=[8, 16], voxels=[4, 4, 2]), scenes("occupancy", (8, 16)), of_heads
    ),
    "plain vgg": Subject(vgg, pictures(14)),
    "plain mobilenet": Subject(mobilenet, pictures(17)),
    "plain densenet": Subject(densenet, pictures(19)),
}
