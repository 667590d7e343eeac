"""ResNet, HydraNet and the occupancy network: sizes, parts against references, losses, and that they learn."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

import meshemu
from meshemu.errors import InputError
from meshemu.workload.capture import capture
from meshemu.workload.data import batch, load_dataset
from meshemu.workload.losses import load_loss
from meshemu.workload.models import build_model
from meshemu.workload.models.bifpn import BiFPN, Fusion
from meshemu.workload.models.task_losses import masked_smooth_l1
from meshemu.workload.models.view_attention import CrossAttentionBlock, ViewAttention
from meshemu.workload.outputs import summed

TINY = {"image_size": [16, 24], "cameras": 2, "widths": [8, 16, 16], "depths": [1, 1, 1], "stem_width": 8,
        "fpn_width": 16, "heads": 2}  # fmt: skip
TINY_HYDRANET = {**TINY, "bev_cells": [4, 6]}
TINY_OCCUPANCY = {**TINY, "voxels": [4, 6, 2]}
TINY_SCENES = {"image_size": [16, 24], "cameras": 2, "bev_cells": [4, 6], "voxels": [4, 6, 2]}


def total_loss(model: nn.Module, name: str = "model") -> Callable[[Any, Any], Tensor]:
    """The loss that is trained on, its terms summed."""
    loss = load_loss(name, model)
    return lambda outputs, targets: summed(loss(outputs, targets))[0]


def tiny_batch(size: int = 3) -> tuple[Tensor, dict[str, Tensor]]:
    inputs, targets = batch(load_dataset("driving_scenes", TINY_SCENES), step=0, batch_size=size, seed=0)
    return inputs, targets


def n_parameters(name: str, args: dict[str, Any]) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(name, args).parameters())


@pytest.mark.parametrize("name, args, published", [
    ("resnet50", {}, 25_557_032),
    ("resnet50", {"depths": [3, 4, 23, 3]}, 44_549_160),
    ("resnet50", {"depths": [3, 8, 36, 3]}, 60_192_808),
    ("regnet", {"widths": [32, 64, 160, 400], "depths": [1, 2, 7, 12], "group_width": 16}, 5_495_976),
    ("regnet", {"widths": [96, 192, 432, 1008], "depths": [2, 6, 15, 2], "group_width": 48}, 15_296_552),
])  # fmt: skip
def test_models_have_as_many_parameters_as_published(name: str, args: dict[str, Any], published: int) -> None:
    assert n_parameters(name, args) == published


@pytest.mark.parametrize("size", [(64, 64), (33, 50)])
def test_resnet_computes_what_transformers_computes(size: tuple[int, int]) -> None:
    """With its weights copied: outputs and running statistics in training, then outputs in evaluation."""
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[32, 64, 128], depths=[1, 2, 2], layer_type="bottleneck", num_labels=5
    )
    reference = transformers.ResNetForImageClassification(config).double()
    model = build_model("resnet50", {"depths": [1, 2, 2], "width": 8, "num_classes": 5}).double()
    layers = {"reduce": "layer.0", "spatial": "layer.1", "expand": "layer.2", "shortcut": "shortcut"}
    theirs = reference.state_dict()
    copied = {}
    for name in model.state_dict():
        part = name.replace(".0.weight", ".convolution.weight") if name.split(".")[-2] == "0" else name
        part = ".".join("normalization" if i > 0 and word == "1" and i == len(part.split(".")) - 2 else word
                        for i, word in enumerate(part.split(".")))  # fmt: skip
        if name.startswith("stem.0."):
            part = part.replace("stem.0.", "resnet.embedder.embedder.")
        elif name.startswith("head."):
            part = part.replace("head.", "classifier.1.")
        else:
            _, stage, block, layer, rest = part.split(".", 4)
            part = f"resnet.encoder.stages.{stage}.layers.{block}.{layers[layer]}.{rest}"
        copied[name] = theirs[part]
    assert len(copied) == len(theirs)
    model.load_state_dict(copied)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, *size, generator=generator, dtype=torch.float64)
    for training in (True, False):
        model.train(training)
        reference.train(training)
        torch.testing.assert_close(model(images), reference(images).logits, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(model.state_dict()["stem.0.1.running_var"], next(
        value for name, value in reference.state_dict().items() if name.endswith("running_var")))  # fmt: skip


def test_fusion_is_a_weighted_mean_before_its_convolution() -> None:
    fusion = Fusion(width=4, n_inputs=3).eval()
    fusion.weights.data = torch.tensor([1.0, -5.0, 3.0])
    maps = [torch.randn(2, 4, 5, 6) for _ in range(3)]
    mixed = (maps[0] + 3 * maps[2]) / 4.0001
    expected = fusion.norm(fusion.pointwise(fusion.depthwise(F.silu(mixed))))
    torch.testing.assert_close(fusion(*maps), expected)


@pytest.mark.parametrize("sizes", [[(8, 12), (4, 6), (2, 3)], [(7, 11), (4, 6), (2, 3), (1, 2)], [(5, 5)]])
def test_every_scale_of_a_bifpn_sees_every_other(sizes: list[tuple[int, int]]) -> None:
    bifpn = BiFPN([3 + i for i in range(len(sizes))], width=4, layers=1)
    maps = [torch.randn(2, 3 + i, *size, requires_grad=True) for i, size in enumerate(sizes)]
    fused = bifpn(maps)
    assert [tuple(x.shape) for x in fused] == [(2, 4, *size) for size in sizes]
    for out in fused:
        gradients = torch.autograd.grad((out**3).sum(), maps, retain_graph=True)
        assert all(bool((gradient != 0).any()) for gradient in gradients)


def test_a_bifpn_goes_down_and_up_as_in_its_paper() -> None:
    """Tan et al., figure 3: the middle output reads its input, what came down, and the finer output."""
    bifpn = BiFPN([3, 3, 3], width=4, layers=1).eval()
    layer = bifpn.layers[0]
    p3, p4, p5 = (torch.randn(1, 3, 8 // 2**i, 12 // 2**i) for i in range(3))
    fused = bifpn([p3, p4, p5])
    p3, p4, p5 = (lateral(x) for lateral, x in zip(bifpn.lateral, (p3, p4, p5), strict=True))
    td4 = layer.top_down[1](p4, p5.repeat_interleave(2, 2).repeat_interleave(2, 3))
    out3 = layer.top_down[0](p3, td4.repeat_interleave(2, 2).repeat_interleave(2, 3))
    out4 = layer.bottom_up[0](p4, td4, F.max_pool2d(out3, 3, 2, 1))
    out5 = layer.bottom_up[1](p5, F.max_pool2d(out4, 3, 2, 1))
    for mine, expected in zip(fused, (out3, out4, out5), strict=True):
        torch.testing.assert_close(mine, expected)


def test_cross_attention_is_multi_head_attention() -> None:
    block = CrossAttentionBlock(width=12, heads=3)
    reference = nn.MultiheadAttention(12, 3, batch_first=True)
    reference.in_proj_weight.data = torch.cat([block.query.weight, block.key.weight, block.value.weight])
    reference.in_proj_bias.data = torch.cat([block.query.bias, block.key.bias, block.value.bias])
    reference.out_proj = block.project  # type: ignore[assignment]
    queries, tokens = torch.randn(1, 5, 12), torch.randn(2, 7, 12)
    asked = block.attention_norm(queries).expand(2, -1, -1)
    read = queries + reference(asked, tokens, tokens, need_weights=False)[0]
    expected = read + block.contract(F.gelu(block.expand(block.mlp_norm(read))))
    torch.testing.assert_close(block(queries, tokens), expected)


def test_queries_know_which_camera_row_and_column_they_read() -> None:
    view = ViewAttention(n_queries=6, n_cameras=3, map_sizes=[(2, 4), (1, 2)], width=8, heads=2, layers=2)
    for parameter in view.parameters():
        parameter.data.normal_()
    maps = [torch.randn(2, 3, 8, 2, 4), torch.randn(2, 3, 8, 1, 2)]
    read = view(maps)
    assert read.shape == (2, 6, 8)
    torch.testing.assert_close(view([x.flip(0) for x in maps]), read.flip(0))
    for dim in (1, 3, 4):
        assert not torch.allclose(view([maps[0].flip(dim), maps[1]]), read, atol=1e-3)


def test_hydranet_has_a_head_for_every_task() -> None:
    model = build_model("hydranet", {**TINY_HYDRANET, "object_classes": 3, "box_numbers": 5})
    outputs = model(torch.randn(2, 2, 3, 16, 24))
    assert {name: tuple(x.shape) for name, x in outputs.items()} == {
        "objects": (2, 4, 4, 6), "boxes": (2, 5, 4, 6), "lanes": (2, 3, 8, 12), "light": (2, 4),
    }  # fmt: skip


def test_the_light_is_read_from_the_front_camera_alone() -> None:
    model = build_model("hydranet", TINY_HYDRANET).eval()
    images = torch.randn(1, 2, 3, 16, 24, requires_grad=True)
    outputs = model(images)
    (light,) = torch.autograd.grad(outputs["light"].sum(), images, retain_graph=True)
    (objects,) = torch.autograd.grad(outputs["objects"].sum(), images)
    assert bool((light[:, 0] != 0).any()) and not bool((light[:, 1] != 0).any())
    assert bool((objects[:, 0] != 0).any()) and bool((objects[:, 1] != 0).any())


def test_the_loss_of_hydranet_is_the_weighted_sum_of_its_parts() -> None:
    weights = {"objects": 2.0, "lanes": 0.25, "light": 0.0}
    model = build_model("hydranet", {**TINY_HYDRANET, "object_weight": 3.0, "loss_weights": weights})
    inputs, targets = tiny_batch()
    outputs = model(inputs)
    terms = model.loss(outputs, targets)  # type: ignore[operator]
    assert list(terms) == ["objects", "boxes", "lanes"]
    class_weights = torch.tensor([1.0, 3.0, 3.0])
    expected = 2 * F.cross_entropy(outputs["objects"], targets["objects"], class_weights)
    torch.testing.assert_close(terms["objects"], expected)
    torch.testing.assert_close(terms["lanes"], F.cross_entropy(outputs["lanes"], targets["lanes"]) / 4)
    there = targets["objects"] > 0
    assert bool(there.any())
    differences = F.smooth_l1_loss(outputs["boxes"], targets["boxes"], reduction="none").movedim(1, -1)[there]
    torch.testing.assert_close(terms["boxes"], differences.mean())
    torch.testing.assert_close(total_loss(model)(outputs, targets), sum(terms.values()))


def test_boxes_cost_nothing_where_there_is_no_object() -> None:
    outputs = torch.randn(2, 8, 3, 3, requires_grad=True)
    loss = masked_smooth_l1(outputs, torch.randn(2, 8, 3, 3), torch.zeros(2, 3, 3, dtype=torch.bool))
    loss.backward()
    assert loss == 0 and outputs.grad is not None and not bool(outputs.grad.any())


@pytest.mark.parametrize("classes", [1, 4])
def test_the_loss_of_occupancy(classes: int) -> None:
    model = build_model("occupancy", {**TINY_OCCUPANCY, "classes": classes, "occupied_weight": 3.0})
    inputs, targets = tiny_batch()
    logits = model(inputs)
    assert logits.shape == (3, classes, 4, 6, 2)
    filled = targets["occupancy"]
    weights = torch.where(filled > 0, 3.0, 1.0)
    if classes == 1:
        expected = (F.softplus(torch.where(filled > 0, -logits[:, 0], logits[:, 0])) * weights).mean()
    else:
        chosen = logits.log_softmax(dim=1).gather(1, filled[:, None])[:, 0]
        expected = -(chosen * weights).sum() / weights.sum()
    torch.testing.assert_close(load_loss("model", model)(logits, targets), expected)


def test_the_occupancy_network_refines_in_three_dims() -> None:
    model = build_model("occupancy", {**TINY_OCCUPANCY, "voxels": [8, 12, 4], "doublings": 2})
    transposed = [m for m in model.modules() if isinstance(m, nn.ConvTranspose3d)]
    assert [(m.in_channels, m.out_channels) for m in transposed] == [(16, 8), (8, 4)]
    assert model(torch.randn(1, 2, 3, 16, 24)).shape == (1, 4, 8, 12, 4)


@pytest.mark.parametrize("name, args", [("hydranet", TINY_HYDRANET), ("occupancy", TINY_OCCUPANCY)])
@pytest.mark.parametrize("image_size, stages", [([16, 24], 3), ([15, 25], 2), ([9, 40], 1)])
def test_every_parameter_learns(name: str, args: dict[str, Any], image_size: list[int], stages: int) -> None:
    """At any image size no parameter is left without a gradient."""
    model = build_model(name, {**args, "image_size": image_size, "attended_stages": stages, "fpn_layers": 2})
    _, targets = tiny_batch()
    total_loss(model)(model(torch.randn(3, 2, 3, *image_size)), targets).backward()
    still = [key for key, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert [key for key in still if not key.endswith("key.bias")] == []  # a key's bias changes no softmax


@pytest.mark.parametrize("name, args, least", [
    ("hydranet", {**TINY_HYDRANET, "norm_momentum": 0.3}, 0.25),
    ("occupancy", {**TINY_OCCUPANCY, "norm_momentum": 0.3}, 0.25),
    ("resnet50", {"depths": [1, 1], "width": 8, "num_classes": 4}, 0.5),
])  # fmt: skip
def test_a_dozen_steps_lower_the_loss(name: str, args: dict[str, Any], least: float) -> None:
    """By at least the share `least`: on scenes that were not seen before, and for ResNet on the same four images."""
    model = build_model(name, args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    loss = total_loss(model, "cross_entropy" if name == "resnet50" else "model")
    data = load_dataset("driving_scenes", TINY_SCENES)
    losses = []
    for step in range(13):
        inputs, targets = batch(data, step, 8, seed=0)
        if name == "resnet50":
            inputs, targets = data.train.take(np.arange(4))[0][:, 0], torch.arange(4)
        value = loss(model(inputs), targets)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert sum(losses[-3:]) / 3 < (1 - least) * losses[0]


def test_emulated_gradients_are_those_of_plain_pytorch() -> None:
    """On 2 x 2 devices in fp64, an uneven batch cut over them; with several classes, in tests/test_plan_cells.py."""
    args = {**TINY_OCCUPANCY, "classes": 1}
    model, plain = (build_model("occupancy", args, seed=1).double() for _ in range(2))
    inputs, targets = tiny_batch(5)
    values = inputs.double(), {key: t.double() if t.is_floating_point() else t for key, t in targets.items()}
    system = meshemu.System.grid(rows=2, cols=2, bandwidth="50 GB/s", latency="500 ns")
    result = meshemu.emulate(model, values, load_loss("model", model), system=system, plan={"data": 4})
    expected = total_loss(plain)(plain(values[0]), values[1])
    expected.backward()
    assert result.losses == [pytest.approx(expected.item(), rel=1e-12)]
    gradients = {key: p.grad for key, p in plain.named_parameters() if p.grad is not None}
    assert set(result.gradients) == set(gradients)
    largest = max(g.abs().max().item() for g in gradients.values())
    for key, gradient in gradients.items():  # that of a key's bias is zero but for rounding
        scale = max(gradient.abs().max().item(), 1e-3 * largest)
        assert (result.gradients[key] - gradient).abs().max().item() <= 1e-10 * scale, key


@pytest.mark.parametrize("name, args, message", [
    ("resnet50", {"depths": []}, "depths is empty"),
    ("resnet50", {"depths": [3, 0]}, r"depths\[1\] = 0 must be a whole number >= 1"),
    ("resnet50", {"norm_momentum": 2}, "norm_momentum = 2 must be > 0 and <= 1"),
    ("hydranet", {"loss_weights": {"depth": 1.0}}, "unknown loss 'depth'; valid: objects, boxes, lanes, light"),
    ("hydranet", {"loss_weights": {"boxes": -1}}, "loss_weights.boxes = -1 must be a number >= 0"),
    ("hydranet", {"loss_weights": dict.fromkeys(["objects", "boxes", "lanes", "light"], 0)}, "nothing to train"),
    ("hydranet", {"attended_stages": 4}, "attended_stages = 4 is not between 1 and 3"),
    ("hydranet", {"image_size": [32]}, r"image_size = \[32\] must be \[height, width\]"),
    ("hydranet", {"heads": 3}, "width = 32 is not a multiple of heads = 3"),
    ("hydranet", {"heads": 0}, "heads = 0 must be a whole number >= 1"),
    ("hydranet", {"widths": [12, 16, 16]}, r"widths\[0\] = 12 is not a multiple of group_width = 8"),
    ("hydranet", {"bev_cells": [4, 0]}, r"bev_cells\[1\] = 0 must be a whole number >= 1"),
    ("hydranet", {"bev_cells": [4]}, r"bev_cells = \[4\] must be \[X, Y\]"),
    ("occupancy", {"voxels": 4}, r"voxels = 4 must be \[X, Y, Z\]"),
    ("occupancy", {"voxels": [4, 4, 3]}, r"voxels = \[4, 4, 3\] and fpn_width = 32 must be multiples of 2\^doublings"),
    ("hydranet", {"object_weight": 0}, "object_weight = 0 must be a number > 0"),
    ("occupancy", {"occupied_weight": "2"}, "occupied_weight = '2' must be a number > 0"),
    ("occupancy", {"classes": 0}, "classes = 0 must be a whole number >= 1"),
])  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build_model(name, args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name, args, change, message", [
    ("hydranet", TINY_HYDRANET, lambda b: (b[0], {"lanes": b[1]["lanes"]}), "no target 'objects'; they have: lanes"),
    ("hydranet", TINY_HYDRANET, lambda b: (b[0], b[1]["lanes"]), "no target 'objects'; they have: no names"),
    ("hydranet", TINY_HYDRANET, lambda b: (b[0][:, :1], b[1]), "do not fit the model"),
    ("hydranet", {**TINY_HYDRANET, "box_numbers": 7}, lambda b: b, r"outputs of shape \(3, 7, 4, 6\) and targets"),
    ("occupancy", {**TINY_OCCUPANCY, "voxels": [4, 4, 2]}, lambda b: b, r"targets of shape \(3, 4, 6, 2\) do not fit"),
    ("occupancy", {**TINY_OCCUPANCY, "voxels": [4, 4, 2], "classes": 1}, lambda b: b, "do not fit voxels"),
])  # fmt: skip
def test_data_that_do_not_fit_a_model_are_refused(name: str, args: dict[str, Any], change: Any, message: str) -> None:
    model = build_model(name, args)
    inputs, targets = change(tiny_batch())
    with pytest.raises(InputError, match=message) as caught:
        load_loss("model", model)(model(inputs), targets)
    assert "\n" not in str(caught.value)


def test_what_a_model_refuses_is_told_in_its_words_when_it_is_captured() -> None:
    model = build_model("occupancy", TINY_OCCUPANCY)
    loss = load_loss("model", model)
    with pytest.raises(InputError, match="model occupancy: the data have no target 'occupancy'; they have: lanes"):
        capture(model, (tiny_batch()[0], {"lanes": torch.zeros(3)}), lambda call, b: loss(call(b[0]), b[1]))


class Scaled(nn.Module):
    """A model with a loss of its own that reads a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight

    def loss(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"error": (outputs - targets).square().mean(), "size": self.weight.square()[None]}


def test_a_models_own_loss_may_read_its_parameters() -> None:
    model = Scaled()
    x, y = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])
    loss = load_loss("model", model)
    assert total_loss(model)(model(x), y) == (4 + 9) / 2 + 4
    system = meshemu.System.grid(rows=1, cols=2, bandwidth="50 GB/s", latency="500 ns")
    result = meshemu.emulate(model, (x, y), loss, system=system)
    assert result.gradients["weight"] == 2 * 1 + 3 * 2 + 4


@pytest.mark.parametrize("terms, message", [
    ({}, "an empty dict holds no loss"),
    ({"a": torch.zeros(2)}, r"loss 'a' must be a tensor of one element, not a tensor of shape \(2,\)"),
    ({"a": torch.zeros(()), "b": 1.0}, "loss 'b' must be a tensor of one element, not float"),
])  # fmt: skip
def test_terms_that_are_no_numbers_are_refused(terms: dict[str, Any], message: str) -> None:
    model = Scaled()
    model.loss = lambda outputs, targets: terms  # type: ignore[method-assign]
    with pytest.raises(InputError, match=message):
        total_loss(model)(torch.zeros(3), torch.zeros(3))
