"""A dataset of an open file, read by HDF5's own calls: a tenth of the time that h5py's objects take to be made.

A file has some hundred datasets, most of them small, and every opening of a run looks at all of them.
"""

from math import prod
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

__all__ = ["DamageError", "StoredDataset"]

# No filter packs zeros more densely than about 1 : 1000; a length beyond that is a damaged one.
_DENSEST, _UNPACKED_BYTES = 2000, 2**22
_KINDS = "iufS"  # other types lie in a heap, and reading a damaged heap may never end


class DamageError(ValueError):
    """A file does not hold what it should, or not yet, while it is written."""


class StoredDataset:
    """The dataset at a path. shape: its own.

    Raises DamageError where there is none, and in its methods where its type or length cannot be what was written.
    """

    def __init__(self, file: h5py.File, path: str) -> None:
        try:
            self._id = h5py.h5d.open(file.id, path.encode())
        except (KeyError, TypeError, ValueError, RuntimeError):
            raise DamageError(f"{path} is missing") from None
        self._path = path
        self.shape: tuple[int, ...] = self._id.shape

    def whole(self) -> NDArray[Any]:
        """All of it."""
        values = self._room(self.shape)
        self._id.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
        return values

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Entries start <= i < stop of its first axis, which has so many."""
        values = self._room((max(stop - start, 0), *self.shape[1:]))
        if values.size:
            space = self._id.get_space()
            space.select_hyperslab((start, *(0 for _ in self.shape[1:])), values.shape)
            self._id.read(h5py.h5s.create_simple(values.shape), space, values)
        return values

    def _room(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """Memory for what is to be read, if what is stored can have that length."""
        dtype = self._id.dtype
        if dtype.kind not in _KINDS:
            raise DamageError(f"{self._path} has type {dtype}")
        if prod(self.shape) * dtype.itemsize > _UNPACKED_BYTES + _DENSEST * self._id.get_storage_size():
            raise DamageError(f"{self._path} has shape {self.shape}, but hardly any data")
        return np.zeros(shape, dtype)
