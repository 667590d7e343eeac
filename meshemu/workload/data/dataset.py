"""A data set held in memory, and the batch of each training step drawn from it."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meshemu.errors import InputError
from meshemu.workload.arguments import check_positive

__all__ = ["Dataset", "batch", "batch_indices"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples to train on and samples held out; dim 0 counts samples.

    n_classes: classes (or vocabulary) of the targets, None where they are not classes.
    """

    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    n_classes: int | None
    description: str

    def __post_init__(self) -> None:
        """Check that inputs and targets pair up."""
        for part, inputs, targets in (
            ("train", self.train_inputs, self.train_targets),
            ("test", self.test_inputs, self.test_targets),
        ):
            if inputs.dim() == 0 or targets.dim() == 0 or len(inputs) != len(targets) or len(inputs) == 0:
                raise InputError(
                    f"data: {part} inputs of shape {tuple(inputs.shape)} and targets of shape {tuple(targets.shape)} "
                    "must have as many samples, at least one"
                )


def batch(dataset: Dataset, step: int, batch_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of training step `step` = 0, 1, ...: the same on every rank, whatever was drawn before."""
    indices = torch.from_numpy(batch_indices(len(dataset.train_inputs), step, batch_size, seed))
    return dataset.train_inputs[indices], dataset.train_targets[indices]


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
