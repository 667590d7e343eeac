"""Built-in and user models: shapes, deterministic values, and one clear line for whatever is wrong."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from meshemu.errors import InputError
from meshemu.workload.losses import LOSSES, cross_entropy, load_loss
from meshemu.workload.models import MODELS, build_model, load_from_file

SMALL_REGNET = {"widths": [16, 24], "depths": [1, 2], "group_width": 8, "num_classes": 10, "in_channels": 1,
                "stem_width": 8}  # fmt: skip
SMALL_GPT = {"vocab_size": 11, "context": 8, "width": 12, "heads": 3, "layers": 2}


def values(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("size, last", [(40, 5), (33, 5), (64, 8)])
def test_regnet_halves_the_map_at_each_stage(size: int, last: int) -> None:
    model = build_model("regnet", SMALL_REGNET)
    shapes: list[torch.Size] = []
    model.trunk.stages[-1].register_forward_hook(lambda module, args, out: shapes.append(out.shape))  # type: ignore[union-attr]
    assert model(torch.randn(2, 1, size, size)).shape == (2, 10)
    assert shapes == [(2, 24, last, last)]


def test_regnet_is_made_of_x_blocks() -> None:
    model = build_model("regnet", SMALL_REGNET)
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    kernels = [(m.kernel_size[0], m.stride[0], m.out_channels // m.groups) for m in convolutions]
    first = [(1, 1, 16), (3, 2, 8), (1, 1, 16), (1, 2, 16)]
    second = [(1, 1, 24), (3, 2, 8), (1, 1, 24), (1, 2, 24), (1, 1, 24), (3, 1, 8), (1, 1, 24)]
    assert kernels == [(3, 2, 8), *first, *second]
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules()) == len(convolutions)


def test_regnet_strides_and_norm_momentum() -> None:
    model = build_model("regnet", {**SMALL_REGNET, "stem_stride": 1, "strides": [1, 2], "norm_momentum": 0.3})
    assert model.trunk(torch.randn(1, 1, 12, 12))[-1].shape[-2:] == (6, 6)  # type: ignore[operator]
    assert {m.momentum for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {0.3}


def test_gpt_sees_no_later_token() -> None:
    model = build_model("gpt", SMALL_GPT)
    tokens = torch.randint(11, (2, 8), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    before, after = model(tokens), model(changed)
    assert before.shape == (2, 8, 11)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert ((before[:, 5:] - after[:, 5:]).abs().amax(dim=(0, 2)) > 0).all()


def test_gpt_knows_the_place_of_a_token() -> None:
    model = build_model("gpt", SMALL_GPT)
    assert model(torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 3, 11), "shorter than the context"
    logits = model(torch.zeros(1, 8, dtype=torch.int64))[0]
    assert (logits[1:] - logits[:-1]).abs().max() > 1e-4


def test_gpt_with_a_tied_head_has_one_matrix_less() -> None:
    free, tied = (build_model("gpt", {**SMALL_GPT, "tied_head": t}) for t in (False, True))
    assert len(values(free)) - len(values(tied)) == 11 * 12
    assert tied.head.weight is tied.tokens.weight  # type: ignore[union-attr]


@pytest.mark.parametrize("name, args, logits", [("regnet", SMALL_REGNET, 10), ("gpt", SMALL_GPT, 11)])
def test_losses_start_near_that_of_a_guess(name: str, args: dict[str, Any], logits: int) -> None:
    model = build_model(name, args)
    generator = torch.Generator().manual_seed(1)
    if name == "gpt":
        inputs, targets = torch.randint(11, (4, 8), generator=generator), torch.randint(11, (4, 8), generator=generator)
    else:
        inputs, targets = torch.randn(16, 1, 32, 32, generator=generator), torch.arange(16) % 10
    loss = cross_entropy(model(inputs), targets)
    assert abs(loss.item() - torch.tensor(logits).log().item()) < 0.5
    loss.backward()
    for parameter_name, p in model.named_parameters():
        # A constant added to all keys changes no softmax.
        if not parameter_name.endswith("key.bias"):
            assert p.grad is not None and p.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name, args", [("regnet", SMALL_REGNET), ("gpt", SMALL_GPT)])
def test_values_depend_on_the_seed_alone(name: str, args: dict[str, Any]) -> None:
    torch.manual_seed(5)
    first = values(build_model(name, args, seed=3))
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), expected), "the caller's random state has not moved"
    assert torch.equal(values(build_model(name, args, seed=3)), first)
    assert not torch.equal(values(build_model(name, args, seed=4)), first)


@pytest.mark.parametrize("name, args, message", [
    ("vgg", {}, "model 'vgg' is unknown; valid: gpt, hydranet, occupancy, regnet, resnet50"),
    ("gpt", {"depth": 2}, "model gpt has no argument 'depth'; valid: vocab_size, context, width"),
    ("gpt", {"width": 10, "heads": 3}, "width = 10 is not a multiple of heads = 3"),
    ("gpt", {"layers": 0}, "layers = 0 must be a whole number >= 1"),
    ("regnet", {"widths": [12], "depths": [1], "group_width": 8}, r"widths\[0\] = 12 is not a multiple of group_width"),
    ("regnet", {"widths": [8, 16], "depths": [1]}, r"len\(widths\) = 2, len\(depths\) = 1, len\(strides\) = 2"),
    ("regnet", {"widths": [8], "depths": [1.5]}, r"depths\[0\] = 1.5 must be a whole number"),
    ("regnet", {"widths": 8}, "model regnet"),
    ("regnet", {"norm_momentum": 0}, "norm_momentum = 0 must be > 0 and <= 1"),
    ("regnet", {"stem_width": "8"}, "stem_width = '8' must be a whole number"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build_model(name, args)
    assert "\n" not in str(caught.value)


def test_every_model_builds_with_its_defaults_and_says_what_it_is() -> None:
    for name, builder in MODELS.items():
        with torch.device("meta"):
            assert sum(p.numel() for p in build_model(name, {}).parameters()) > 10_000
        assert builder.__doc__


def test_a_users_model_is_built_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parts.py").write_text("WIDTH = 3\n")
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\nfrom torch import nn\nfrom parts import WIDTH\n"
        "@dataclass\nclass Sizes:\n    out: int\n"
        "def build(out=2):\n    return nn.Linear(WIDTH, Sizes(out).out)\n"
    )
    reference = f"{tmp_path}/mine.py:build"
    model = build_model(reference, {"out": 5}, seed=1)
    assert isinstance(model, torch.nn.Linear) and model.weight.shape == (5, 3)
    assert torch.equal(values(model), values(load_from_file(reference, {"out": 5}, seed=1)))
    assert not torch.equal(values(model), values(load_from_file(reference, {"out": 5}, seed=2)))
    monkeypatch.chdir(tmp_path)
    assert build_model("mine.py:build", {}).weight.shape == (2, 3)  # type: ignore[union-attr]


def test_a_users_model_may_hold_a_built_in_one(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from meshemu.workload.models import build_model\n"
        f"def build():\n    return build_model('gpt', {SMALL_GPT}, seed=7)\n"
    )
    model = load_from_file(f"{tmp_path}/mine.py:build", {}, seed=1)
    assert torch.equal(values(model), values(build_model("gpt", SMALL_GPT, seed=7)))


@pytest.mark.parametrize("text, function, message", [
    ("def build(): pass", "build", "returned NoneType, not a torch.nn.Module"),
    ("def build(): pass", "other", "other is not defined in .*; it has: build"),
    ("build = 3", "build", "build is not callable"),
    ("def build(: pass", "build", "importing .* failed: SyntaxError"),
    ("raise ValueError('two\\nlines')", "build", "failed: ValueError: two lines"),
    ("import sys\nsys.exit(3)", "build", "failed: SystemExit: 3"),
    ("def build(): return 1 / 0", "build", "calling it failed: ZeroDivisionError"),
    ("def build(a): pass", "build", "calling it failed: TypeError: .* 'a'"),
])  # fmt: skip
def test_a_users_file_that_fails_gives_one_line(tmp_path: Path, text: str, function: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_from_file(f"{path}:{function}", {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reference, message", [
    ("nowhere.py:build", "there is no file"), ("nowhere.py", "not of the form file.py:function"),
    ("nowhere.py:", "not of the form"),
])  # fmt: skip
def test_malformed_references_are_refused(reference: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_from_file(reference, {})


def test_cross_entropy_of_every_shape() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(24, 5, generator=generator)
    classes = torch.randint(5, (24,), generator=generator)
    expected = F.cross_entropy(rows, classes)
    torch.testing.assert_close(cross_entropy(rows, classes), expected)
    torch.testing.assert_close(cross_entropy(rows.view(4, 6, 5), classes.view(4, 6)), expected)
    maps = rows.view(2, 3, 4, 5).permute(0, 3, 1, 2)
    torch.testing.assert_close(cross_entropy(maps, classes.view(2, 3, 4)), expected)
    torch.testing.assert_close(cross_entropy({"logits": rows}, classes), expected)
    one_hot = F.one_hot(classes, 5).to(rows.dtype)
    torch.testing.assert_close(cross_entropy(rows.view(4, 6, 5), one_hot.view(4, 6, 5)), expected)


def test_sequences_with_as_many_tokens_as_classes_are_not_mixed_up() -> None:
    logits, classes = torch.randn(2, 5, 5), torch.randint(5, (2, 5))
    torch.testing.assert_close(cross_entropy(logits, classes), F.cross_entropy(logits.view(10, 5), classes.view(10)))


def test_the_other_losses() -> None:
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    torch.testing.assert_close(LOSSES["mse"](a, b), ((a - b) ** 2).mean())
    assert load_loss("model")(torch.tensor([2.5]), b).shape == ()
    assert load_loss("model")({"loss": torch.tensor(2.5), "logits": a}, b) == 2.5


@pytest.mark.parametrize("loss, outputs, targets, message", [
    ("mse", torch.zeros(3, 1), torch.zeros(3), r"\(3, 1\) and targets of shape \(3,\) differ"),
    ("cross_entropy", torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64), r"targets of shape \(2,\) do not fit"),
    ("cross_entropy", torch.zeros(3), torch.zeros(3, dtype=torch.int64), "do not fit logits"),
    ("cross_entropy", [1], torch.zeros(3), "returned list, not a tensor"),
    ("model", torch.zeros(3), torch.zeros(3), r"must return a scalar loss, not a tensor of shape \(3,\)"),
])  # fmt: skip
def test_losses_refuse_what_does_not_fit(loss: str, outputs: Any, targets: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_loss(loss)(outputs, targets)


def test_losses_by_name_and_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def half(outputs, targets):\n    return (outputs - targets).sum() / 2\n")
    assert load_loss(f"{tmp_path}/mine.py:half")(torch.ones(4), torch.zeros(4)) == 2
    with pytest.raises(InputError, match="loss 'huber' is unknown; valid: cross_entropy, mse, model"):
        load_loss("huber")
