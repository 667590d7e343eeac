"""Numbered samples, kept in memory or made on demand, and the batch of each training step drawn from them."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from meshemu.errors import InputError
from meshemu.workload.arguments import check_positive

__all__ = ["Dataset", "Samples", "StoredSamples", "batch", "batch_indices", "empty_batch", "stored_dataset"]


class Samples(Protocol):
    """Samples by number. What a sample holds depends on its number alone, so any rank can make any of them."""

    def __len__(self) -> int:
        """How many there are."""

    def take(self, indices: NDArray[np.int64]) -> tuple[Any, Any]:
        """(inputs, targets) of the samples `indices`, in that order.

        Each is a tensor, or a nest of tuples, lists and dicts of tensors; dim 0 of every tensor counts samples.
        """


@dataclass(frozen=True, eq=False)
class StoredSamples:
    """Samples held in memory: tensors, or nests of tensors, whose dim 0 counts samples."""

    inputs: Any
    targets: Any

    def __len__(self) -> int:
        """Samples of the first tensor; `stored_dataset` checks that all have as many."""
        return len(pytree.tree_leaves(self.inputs)[0])

    def take(self, indices: NDArray[np.int64]) -> tuple[Any, Any]:
        """Copies of the samples `indices`."""
        rows = torch.from_numpy(indices)
        inputs, targets = pytree.tree_map(lambda tensor: tensor[rows], (self.inputs, self.targets))
        return inputs, targets


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples to train on and samples held out.

    n_classes: classes (or vocabulary) of the targets, None where they are not one class number each.
    """

    train: Samples
    test: Samples
    n_classes: int | None
    description: str


def stored_dataset(
    *,
    train_inputs: Any,
    train_targets: Any,
    test_inputs: Any,
    test_targets: Any,
    n_classes: int | None,
    description: str,
) -> Dataset:
    """A data set in memory; each part is a tensor or a nest of tensors, dim 0 counting samples.

    Raises:
        InputError: inputs and targets do not pair up.
    """
    _check_pairs("train", train_inputs, train_targets)
    _check_pairs("test", test_inputs, test_targets)
    train, test = StoredSamples(train_inputs, train_targets), StoredSamples(test_inputs, test_targets)
    return Dataset(train, test, n_classes, description)


def batch(
    dataset: Dataset, step: int, batch_size: int, seed: int, rows: NDArray[np.int64] | None = None
) -> tuple[Any, Any]:
    """Inputs and targets of training step `step` = 0, 1, ...: the same on every rank, whatever was drawn before.

    rows: those of the batch that are made; the memory of the others is not touched. None makes them all.
    """
    indices = batch_indices(len(dataset.train), step, batch_size, seed)
    if rows is None or len(rows) == batch_size:
        return dataset.train.take(indices)
    if not len(rows):
        return empty_batch(dataset, batch_size)
    places = torch.from_numpy(rows)

    def placed(part: Tensor) -> Tensor:
        whole = torch.empty((batch_size, *part.shape[1:]), dtype=part.dtype)
        whole[places] = part
        return whole

    inputs, targets = pytree.tree_map(placed, dataset.train.take(indices[rows]))
    return inputs, targets


def empty_batch(dataset: Dataset, batch_size: int) -> tuple[Any, Any]:
    """A batch with the shapes and dtypes of every batch and any values: capture looks at no more.

    It is made from one sample, and its memory is not touched, so it costs little at any size.
    """
    sample = dataset.train.take(np.zeros(1, np.int64))
    inputs, targets = pytree.tree_map(lambda t: torch.empty((batch_size, *t.shape[1:]), dtype=t.dtype), sample)
    return inputs, targets


def batch_indices(n_samples: int, step: int, batch_size: int, seed: int) -> NDArray[np.int64]:
    """Sample numbers (batch_size,) of training step `step`.

    Steps walk through one permutation of the samples per epoch, without replacement; a batch that reaches the end of
    an epoch goes on with the permutation of the next, so that all batches are full.

    Raises:
        InputError: the batch size is no positive number.
    """
    check_positive("data", batch_size=batch_size)
    first = step * batch_size
    last = first + batch_size - 1
    epochs = range(first // n_samples, last // n_samples + 1)
    order = np.concatenate([_permutation(n_samples, seed, epoch) for epoch in epochs])
    start = first - epochs[0] * n_samples
    return order[start : start + batch_size]


def _permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of n samples in an epoch.

    Raw words of the generator are sorted, because numpy may change the stream of Generator.permutation, not this one.
    """
    words = np.random.Philox(key=np.array([seed % 2**64, epoch], dtype=np.uint64)).random_raw(n)
    return np.argsort(words, kind="stable").astype(np.int64)


def _check_pairs(part: str, inputs: Any, targets: Any) -> None:
    counts = []
    for leaves in (pytree.tree_leaves(inputs), pytree.tree_leaves(targets)):
        counts += [{len(leaf) if isinstance(leaf, Tensor) and leaf.dim() else 0 for leaf in leaves}]
    if len(counts[0] | counts[1]) != 1 or not counts[0] or not counts[1] or counts[0] == {0}:
        raise InputError(
            f"data: {part} inputs of shape {_shapes(inputs)} and targets of shape {_shapes(targets)} must have as many "
            "samples, at least one"
        )


def _shapes(nest: Any) -> str:
    """The shape of every tensor of a nest."""
    return ", ".join(str(tuple(leaf.shape)) for leaf in pytree.tree_leaves(nest)) or "nothing"
