"""Puts whole columns and attributes into a results file together with their checksums.

A column that is replaced has two checksums meanwhile, of before and after, either of which may hold. Rows along growing
axes are `record.growing`'s.
"""

from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from meshemu.record.attributes import get_attributes
from meshemu.record.checksums import attributes_checksum, column_checksum
from meshemu.record.schema import CHECKSUMS, COMMIT_INDEXES, SEALED, WHOLE_COLUMN, checked_paths

__all__ = ["fill_columns", "replace_column", "seal_head", "seal_run"]


def fill_columns(file: h5py.File, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write columns of a new file, by path, and checksums of all columns without a growing axis."""
    sums = {}
    for path, given in columns.items():
        values = _stored(file[path], given)
        file[path][...] = values
        sums[path] = column_checksum(path, values)
    paths = checked_paths(WHOLE_COLUMN)
    of_all = [sums[path] if path in sums else column_checksum(path, _untouched(file[path])) for path in paths]
    file[f"{CHECKSUMS}/{WHOLE_COLUMN}_crc32"][...] = np.array([of_all, of_all], np.uint32).T


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


def _stored(dataset: h5py.Dataset, values: Any) -> NDArray[Any]:
    """Values as the dataset keeps them."""
    return np.asarray(values).astype(dataset.dtype, copy=False)


def _untouched(dataset: h5py.Dataset) -> NDArray[Any]:
    """What a dataset of a new file holds: the text it was made with, or what fills it."""
    if dataset.dtype.kind == "S":
        return np.asarray(dataset[()])
    return np.full(dataset.shape, dataset.fillvalue, dataset.dtype)
