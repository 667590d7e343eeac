"""Data sets: what they hold, that nothing held out is trained on, and the batches of each step."""

import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from meshemu.errors import InputError
from meshemu.workload.data import (
    Dataset,
    batch,
    batch_indices,
    empty_batch,
    load_dataset,
    load_from_file,
    stored_dataset,
)
from meshemu.workload.data.python_source import VOCABULARY, decode, encode


def stored(*parts: Any) -> Dataset:
    train_inputs, train_targets, test_inputs, test_targets = parts
    return stored_dataset(
        train_inputs=train_inputs, train_targets=train_targets, test_inputs=test_inputs, test_targets=test_targets,
        n_classes=None, description="",
    )  # fmt: skip


def tiny(n: int = 7) -> Dataset:
    return stored(torch.arange(n).float()[:, None], torch.arange(n), torch.zeros(1, 1), torch.zeros(1))


@given(n=st.integers(1, 40), size=st.integers(1, 60), seed=st.integers(-5, 2**40))
@settings(max_examples=60, derandomize=True)
def test_steps_walk_through_whole_epochs(n: int, size: int, seed: int) -> None:
    """Any three epochs in a row, cut into batches: every sample once per epoch, all batches full."""
    steps = -(-3 * n // size)
    drawn = [batch_indices(n, step, size, seed) for step in range(steps)]
    assert all(indices.shape == (size,) and indices.dtype == np.int64 for indices in drawn)
    samples = np.concatenate(drawn)[: 3 * n].reshape(3, n)
    assert (np.sort(samples, axis=1) == np.arange(n)).all()


def test_epochs_and_seeds_differ_and_steps_repeat() -> None:
    epoch = [batch_indices(100, step, 100, seed=1) for step in range(3)]
    assert len({tuple(e) for e in epoch}) == 3
    assert not np.array_equal(batch_indices(100, 0, 100, seed=2), epoch[0])
    assert np.array_equal(batch_indices(100, 1, 100, seed=1), epoch[1]), "whatever was drawn in between"


def test_batches_are_reproducible_over_versions() -> None:
    assert batch_indices(10, 0, 10, seed=0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]


def test_a_batch_pairs_inputs_and_targets() -> None:
    inputs, targets = batch(tiny(), step=2, batch_size=5, seed=0)
    assert inputs.shape == (5, 1)
    assert torch.equal(inputs[:, 0].long(), targets)
    with pytest.raises(InputError, match="batch_size = 0"):
        batch(tiny(), 0, 0, 0)


def test_a_dataset_must_pair_up() -> None:
    with pytest.raises(InputError, match=r"test inputs of shape \(0, 1\)"):
        stored(torch.zeros(2, 1), torch.zeros(2), torch.zeros(0, 1), torch.zeros(0))
    with pytest.raises(InputError, match="train inputs"):
        stored(torch.zeros(2, 1), torch.zeros(3), torch.zeros(1, 1), torch.zeros(1))


def test_digits_are_standardised_and_split_by_class() -> None:
    data = load_dataset("digits", {})
    assert data.train.inputs.shape[1:] == data.test.inputs.shape[1:] == (1, 40, 40)
    assert len(data.train.inputs) + len(data.test.inputs) == 1797
    assert data.n_classes == 10 and data.train.targets.dtype == torch.int64
    small = load_dataset("digits", {"image_size": 8})
    assert abs(small.train.inputs.mean()) < 1e-5 and abs(small.train.inputs.std() - 1) < 1e-3
    held = torch.bincount(small.test.targets) / torch.bincount(torch.cat([small.train.targets, small.test.targets]))
    assert ((held - 0.2).abs() < 0.01).all()


def test_no_held_out_digit_is_trained_on() -> None:
    data = load_dataset("digits", {"image_size": 8})
    train = {tuple(image.flatten().tolist()) for image in data.train.inputs}
    test = {tuple(image.flatten().tolist()) for image in data.test.inputs}
    assert len(train) == len(data.train.inputs), "no two images are the same, so the sets can tell them apart"
    assert not train & test


def test_nearest_digits_repeat_their_pixels() -> None:
    small, large = (load_dataset("digits", {"image_size": s, "interpolation": "nearest"}) for s in (8, 16))
    assert torch.equal(large.train.inputs[:, :, ::2, ::2], small.train.inputs)
    assert torch.equal(large.train.inputs[:, :, 1::2, 1::2], small.train.inputs)


def test_python_source_targets_are_the_next_characters() -> None:
    data = load_dataset("python_source", {"context": 16, "max_characters": 300_000})
    assert data.train.inputs.shape == data.train.targets.shape
    assert data.train.inputs.shape[1] == 16 and data.train.inputs.dtype == torch.int64
    assert torch.equal(data.train.inputs[:, 1:], data.train.targets[:, :-1])
    assert torch.equal(data.train.inputs[1:10, 0], data.train.targets[:9, -1]), "windows follow each other"
    assert int(data.train.inputs.max()) < (data.n_classes or 0) == len(VOCABULARY) == 96
    assert len(data.test.inputs) == 200


def test_python_source_is_split_by_file() -> None:
    data = load_dataset("python_source", {"context": 64, "max_characters": 400_000, "max_test_windows": 50})
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    first, tenth = (decode(encode(files[i].read_text(encoding="utf-8", errors="replace"))) for i in (0, 9))
    train = decode(np.append(data.train.inputs.flatten().numpy(), data.train.targets[-1, -1].item()))
    assert train.startswith(first)
    test_window = decode(data.test.inputs[0].numpy())
    assert tenth.startswith(test_window)
    assert tenth[:500] not in train
    assert 0.9 * 400_000 < len(train) < 400_000


def test_text_survives_encoding() -> None:
    text = "def f(x):\n    return x ** 2  # ~`'\"\\\n"
    assert decode(encode(text)) == text
    assert decode(encode("\té")) == "    ?"
    assert decode(encode("a\U0001f600b\udc80\x00\x7f~")) == "a?b???~"
    assert encode("").tolist() == [] and encode(VOCABULARY).tolist() == list(range(len(VOCABULARY)))


def test_synthetic_data_has_the_sizes_asked_for() -> None:
    images = load_dataset("random_images", {"image_size": 6, "channels": 2, "n_classes": 4, "n_samples": 9})
    assert images.train.inputs.shape == images.test.inputs.shape == (9, 2, 6, 6)
    assert int(images.train.targets.max()) < 4
    again = load_dataset("random_images", {"image_size": 6, "channels": 2, "n_classes": 4, "n_samples": 9, "seed": 1})
    assert not torch.equal(images.train.inputs, again.train.inputs)
    tokens = load_dataset("random_tokens", {"context": 5, "vocab_size": 7, "n_samples": 3})
    assert torch.equal(tokens.train.inputs[:, 1:], tokens.train.targets[:, :-1])


@pytest.mark.parametrize("name, args, message", [
    ("mnist", {}, "data 'mnist' is unknown; valid: digits, driving_scenes, python_source, random_images"),
    ("digits", {"size": 8}, "data digits has no argument 'size'; valid: image_size, interpolation"),
    ("digits", {"image_size": 7}, "image_size = 7 must be >= 8"),
    ("digits", {"interpolation": "cubic"}, "valid: bilinear, nearest"),
    ("python_source", {"max_characters": 50}, "not one window of context"),
    ("random_images", {"n_samples": 0}, "n_samples = 0 must be a whole number >= 1"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_dataset(name, args)
    assert "\n" not in str(caught.value)


USER_FILE = """
import torch
def four(n=3): return torch.rand(n, 2), torch.arange(n), torch.rand(2, 2), torch.arange(2)
def floats(): return torch.rand(3, 2), torch.rand(3), torch.rand(2, 2), torch.rand(2)
def several(): return {"a": torch.rand(3, 2), "b": torch.rand(3)}, (torch.arange(3), torch.rand(3)), \
    {"a": torch.rand(1, 2), "b": torch.rand(1)}, (torch.arange(1), torch.rand(1))
def ragged(): return {"a": torch.rand(3), "b": torch.rand(2)}, torch.arange(3), torch.rand(1), torch.rand(1)
def three(): return torch.rand(3, 2), torch.arange(3), None
def uneven(): return torch.rand(3, 2), torch.arange(4), torch.rand(2, 2), torch.arange(2)
"""


def test_a_users_data_comes_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "data.py"
    path.write_text(USER_FILE)
    data = load_dataset(f"{path}:four", {"n": 5})
    assert data.train.inputs.shape == (5, 2) and data.n_classes == 5
    assert load_from_file(f"{path}:floats", {}).n_classes is None
    with pytest.raises(InputError, match=r"must return four tensors .* not \(Tensor, Tensor, NoneType\)"):
        load_dataset(f"{path}:three", {})
    with pytest.raises(InputError, match="must have as many samples"):
        load_dataset(f"{path}:uneven", {})
    with pytest.raises(InputError, match=r"train inputs of shape \(3,\), \(2,\)"):
        load_dataset(f"{path}:ragged", {})


def test_samples_may_be_nests_of_tensors(tmp_path: Path) -> None:
    path = tmp_path / "data.py"
    path.write_text(USER_FILE)
    data = load_dataset(f"{path}:several", {})
    assert data.n_classes is None
    inputs, (classes, numbers) = batch(data, step=0, batch_size=2, seed=0)
    stored_inputs, (_, stored_numbers) = data.train.take(np.arange(3))
    assert torch.equal(inputs["a"], stored_inputs["a"][classes])
    assert torch.equal(inputs["b"], stored_inputs["b"][classes]) and torch.equal(numbers, stored_numbers[classes])


@pytest.mark.parametrize("name, args", [("digits", {"image_size": 8}), ("driving_scenes", {"n_samples": 3})])
def test_an_empty_batch_has_the_shapes_of_a_batch(name: str, args: dict[str, Any]) -> None:
    data = load_dataset(name, args)
    batches = empty_batch(data, 5), batch(data, 0, 5, seed=0)
    empty, full = (
        [(path, leaf.shape, leaf.dtype, leaf.stride()) for path, leaf in pytree.tree_leaves_with_path(b)]
        for b in batches
    )
    assert empty == full
