"""The datasets that grow along one axis, held open: rows go in with their checksums, and count once they are committed.

A step adds a row to some thirty datasets, most of them a number. To look a dataset up by its path, to select in it by
NumPy's rules and to close it again costs ten times what writing the number does, so each stays open from the first
row to the last, and rows go to HDF5 by its own calls.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from meshemu.record.checksums import row_checksums
from meshemu.record.schema import CHECKSUMS, COMMIT_INDEXES, checked_paths

__all__ = ["GrowingColumns"]


class GrowingColumns:
    """All columns along the growing axis `dim` of a file that is open for writing, with their scales and checksums."""

    def __init__(self, file: h5py.File, dim: str) -> None:
        self._file = file
        self._checked = checked_paths(dim)
        self._index = _Rows(file, COMMIT_INDEXES[dim])
        self._columns = {path: _Rows(file, path) for path in self._checked if path != COMMIT_INDEXES[dim]}
        self._sums = _Rows(file, f"{CHECKSUMS}/{dim}_crc32")
        groups = {path.rpartition("/")[0] for path in (*self._checked, f"{CHECKSUMS}/")}
        self._scales = [_Rows(file, path) for group in groups if (path := f"{group}/{dim}") != COMMIT_INDEXES[dim]]

    @property
    def committed(self) -> int:
        """How many rows count."""
        return self._index.length

    def put(self, first: int, rows: Mapping[str, Any], numbers: Any) -> None:
        """Write rows from `first` on of every column, with their checksums.

        rows: by path, [n, ...] each. numbers: int[n], what the scales hold for them. What an interrupted write left
        there is replaced. Flushed, so that `commit` may follow.
        """
        numbers = np.asarray(numbers, np.int64)
        sums = np.empty((len(numbers), len(self._checked)), np.uint32)
        for place, path in enumerate(self._checked):
            column = self._columns.get(path)
            values = numbers if column is None else column.stored(rows[path])
            sums[:, place] = row_checksums(path, first, values)
            if column is not None:
                column.put(first, values)
        self._sums.put(first, sums)
        for scale in self._scales:
            scale.put(first, numbers)
        self._file.flush()

    def commit(self, first: int, numbers: Any) -> None:
        """Make the rows that `put` wrote count, and flush.

        A flush of its own, since within one the order of writes is HDF5's: data first, then the index that commits it.
        """
        self._index.put(first, np.asarray(numbers, np.int64))
        self._file.flush()


class _Rows:
    """One dataset, open."""

    def __init__(self, file: h5py.File, path: str) -> None:
        self._id = _open(file, path)
        self._dtype = self._id.dtype
        self._row = self._id.shape[1:]

    @property
    def length(self) -> int:
        """Number of rows."""
        return int(self._id.shape[0])

    def stored(self, values: Any) -> NDArray[Any]:
        """Rows as the dataset keeps them."""
        return np.ascontiguousarray(np.asarray(values).astype(self._dtype, copy=False))

    def put(self, first: int, rows: NDArray[Any]) -> None:
        """Let the dataset end with `rows`, the first of which is row `first`."""
        self._id.set_extent((first + len(rows), *self._row))
        if not rows.size:
            return
        space = self._id.get_space()
        space.select_hyperslab((first, *(0 for _ in self._row)), rows.shape)
        self._id.write(h5py.h5s.create_simple(rows.shape), space, rows)


def _open(file: h5py.File, path: str) -> h5py.h5d.DatasetID:
    """The dataset, with room in memory for the chunk that rows go into: HDF5 would keep 8 MiB of each."""
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_chunk_cache(1, _chunk_bytes(file, path), 1.0)
    return h5py.h5d.open(file.id, path.encode(), access)


def _chunk_bytes(file: h5py.File, path: str) -> int:
    """Size of a chunk in memory. The dataset is closed again: how it was opened first would hold for it."""
    dataset = h5py.h5d.open(file.id, path.encode())
    return int(prod(dataset.get_create_plist().get_chunk()) * dataset.dtype.itemsize)
