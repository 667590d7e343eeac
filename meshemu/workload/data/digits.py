"""Handwritten digits: the 1,797 images of 8x8 pixels that scikit-learn carries (UCI ML repository, 1998)."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from meshemu.errors import InputError
from meshemu.workload.arguments import check_positive
from meshemu.workload.data.dataset import Dataset, stored_dataset

__all__ = ["digits"]

_TEST_FRACTION = 0.2
_SPLIT_SEED = 0


def digits(image_size: int = 40, interpolation: str = "bilinear") -> Dataset:
    """Digits upsampled to (1, image_size, image_size), float32, standardised by the training images.

    A fifth of each class is held out, always the same images.

    Args:
        image_size: pixels per side, at least 8.
        interpolation: "bilinear" or "nearest".

    Raises:
        InputError: an argument out of range, or scikit-learn is not installed.
    """
    check_positive("data digits", image_size=image_size)
    if image_size < 8:
        raise InputError(f"data digits: image_size = {image_size} must be >= 8, the size of the originals")
    if interpolation not in ("bilinear", "nearest"):
        raise InputError(f"data digits: interpolation '{interpolation}' is unknown; valid: bilinear, nearest")
    images, labels = _load()
    is_test = _held_out(labels)
    images = (images - images[~is_test].mean()) / images[~is_test].std()
    small = torch.from_numpy(images).to(torch.float32).unsqueeze(1)
    align_corners = False if interpolation == "bilinear" else None
    inputs = functional.interpolate(
        small, size=(image_size, image_size), mode=interpolation, align_corners=align_corners
    )
    targets = torch.from_numpy(labels)
    test = torch.from_numpy(is_test)
    return stored_dataset(
        train_inputs=inputs[~test], train_targets=targets[~test], test_inputs=inputs[test], test_targets=targets[test],
        n_classes=10,
        description=f"1,797 handwritten digits (scikit-learn), 8x8 pixels made {image_size}x{image_size} "
        f"({interpolation}), {int(is_test.sum())} held out",
    )


def _load() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Images (n, 8, 8) of 0 to 16, and labels (n,), from the file that sklearn.datasets.load_digits reads.

    The package itself is only located, not imported: that would take two seconds on every rank.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise InputError("data digits needs the package scikit-learn")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        rows = np.loadtxt(path, delimiter=",")
    except (OSError, ValueError) as error:
        raise InputError(f"data digits: {path} of scikit-learn cannot be read: {error}") from error
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)


def _held_out(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mark a fifth of each class, drawn with a fixed seed."""
    is_test = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        words = np.random.Philox(key=np.array([_SPLIT_SEED, label], dtype=np.uint64)).random_raw(len(members))
        is_test[members[np.argsort(words, kind="stable")[: round(_TEST_FRACTION * len(members))]]] = True
    return is_test
