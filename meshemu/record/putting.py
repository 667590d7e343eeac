"""Puts values into a results file together with their checksums: rows along growing axes, whole columns, attributes.

A row is written with the checksums of all its columns and counts once `commit` has made the axis longer. A column that
is replaced has two checksums meanwhile, of before and after, either of which may hold.
"""

from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from meshemu.record.attributes import get_attributes
from meshemu.record.checksums import attributes_checksum, column_checksum, row_checksums
from meshemu.record.schema import CHECKSUMS, COMMIT_INDEXES, SEALED, WHOLE_COLUMN, checked_paths

__all__ = ["commit", "fill_columns", "put_rows", "replace_column", "seal_head", "seal_run"]


def put_rows(file: h5py.File, dim: str, first: int, rows: Mapping[str, Any], numbers: Any) -> None:
    """Write entries from `first` on of every column along the growing axis `dim`, with their checksums.

    rows: by path, [n, ...] each. numbers: int[n], what the scales hold for them. What an interrupted write left there
    is replaced. Flushed, so that `commit` may follow.
    """
    numbers = np.asarray(numbers, np.int64)
    checked = checked_paths(dim)
    sums = np.empty((len(numbers), len(checked)), np.uint32)
    for place, path in enumerate(checked):
        index = path == COMMIT_INDEXES[dim]
        values = numbers if index else _stored(file[path], rows[path])
        sums[:, place] = row_checksums(path, first, values)
        if not index:
            _put(file[path], first, values)
    _put(file[f"{CHECKSUMS}/{dim}_crc32"], first, sums)
    for group in {path.rpartition("/")[0] for path in (*checked, f"{CHECKSUMS}/")}:
        if (scale := f"{group}/{dim}") != COMMIT_INDEXES[dim]:
            _put(file[scale], first, numbers)
    file.flush()


def commit(file: h5py.File, dim: str, first: int, numbers: Any) -> None:
    """Make the entries that `put_rows` wrote count, and flush.

    A flush of its own, since within one the order of writes is HDF5's: data first, then the index that commits it.
    """
    _put(file[COMMIT_INDEXES[dim]], first, np.asarray(numbers, np.int64))
    file.flush()


def fill_columns(file: h5py.File, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write columns of a new file, by path, and checksums of all columns without a growing axis."""
    for path, values in columns.items():
        file[path][...] = values
    sums = [column_checksum(path, _of_new(file[path], columns.get(path))) for path in checked_paths(WHOLE_COLUMN)]
    file[f"{CHECKSUMS}/{WHOLE_COLUMN}_crc32"][...] = np.array([sums, sums], np.uint32).T


def replace_column(file: h5py.File, path: str, values: NDArray[Any]) -> None:
    """Write a column anew: whatever interrupts this leaves the old values or the new, with a checksum that holds."""
    sums = file[f"{CHECKSUMS}/{WHOLE_COLUMN}_crc32"]
    place = checked_paths(WHOLE_COLUMN).index(path)
    new = column_checksum(path, _stored(file[path], values))
    sums[place, 1] = new
    file.flush()
    file[path][...] = values
    file.flush()
    sums[place, 0] = new
    file.flush()


def seal_head(file: h5py.File) -> None:
    """Write the checksum of the file's attributes; to be done again when one of SEALED or system_json changes."""
    head = get_attributes(file, SEALED) | get_attributes(file["/system"], ["system_json"])
    file.attrs["head_crc32"] = np.int64(attributes_checksum(head))


def seal_run(file: h5py.File) -> None:
    """Write the checksum of the attributes of /run and of the number of committed steps: of a file to be complete."""
    attributes = get_attributes(file["/run"])
    attributes.pop("crc32", None)
    n_steps = file[COMMIT_INDEXES["step"]].shape[0]
    file["/run"].attrs["crc32"] = np.int64(attributes_checksum(attributes | {"n_steps": n_steps}))


def _put(dataset: h5py.Dataset, first: int, rows: NDArray[Any]) -> None:
    dataset.resize(first + len(rows), axis=0)
    dataset[first:] = rows


def _stored(dataset: h5py.Dataset, values: Any) -> NDArray[Any]:
    """Values as the dataset keeps them."""
    return np.asarray(values).astype(dataset.dtype, copy=False)


def _of_new(dataset: h5py.Dataset, values: NDArray[Any] | None) -> NDArray[Any]:
    """What a dataset of a new file holds: values just written, text it was made with, or what fills it."""
    if values is not None:
        return _stored(dataset, values)
    if dataset.dtype.kind == "S":
        return np.asarray(dataset[()])
    return np.full(dataset.shape, dataset.fillvalue, dataset.dtype)
