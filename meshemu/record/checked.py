"""An open results file whose values are held against their checksums as they are read."""

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from meshemu.record.attributes import get_attributes
from meshemu.record.checksums import attributes_checksum, column_checksum, row_checksums
from meshemu.record.schema import CHECKSUMS, COMMIT_INDEX, COMMIT_INDEXES, SEALED, WHOLE_COLUMN

__all__ = ["CheckedFile", "DamageError", "check_attributes", "dataset_at"]

CHECKED_SINCE = 3  # the version of the layout that brought checksums

# No filter packs zeros more densely than about 1 : 1000; a length beyond that is a damaged one.
_DENSEST, _UNPACKED_BYTES = 2000, 2**22


class DamageError(ValueError):
    """A file does not hold what it should, or not yet, while it is written."""


class CheckedFile:
    """Reads columns of an open file. What the checksums of an axis are is read once."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self._has_sums = int(file.attrs["schema_version"]) >= CHECKED_SINCE
        self._places: dict[str, dict[bytes, int]] = {}
        self._sums: dict[str, NDArray[np.uint32]] = {}

    def committed(self, dim: str) -> int:
        """Number of committed entries along a growing axis."""
        return int(dataset_at(self._file, COMMIT_INDEXES[dim]).shape[0])

    def rows(self, path: str, dim: str, start: int, stop: int) -> NDArray[Any]:
        """Entries start <= i < stop of a column along its growing axis `dim`; stop must be committed.

        Raises:
            DamageError: there are fewer, or they differ from their checksums.
        """
        dataset = dataset_at(self._file, path)
        if dataset.shape[0] < stop:
            raise DamageError(f"{path} holds {dataset.shape[0]} entries, {stop} are committed")
        _check_size(dataset)
        rows = np.asarray(dataset[start:stop])
        if (place := self._place(path, dim)) is not None:
            sums = self._sums[dim][start:stop, place]
            if len(sums) < len(rows):
                raise DamageError(f"{path} has checksums of {start + len(sums)} entries, {stop} are committed")
            wrong = np.flatnonzero(sums != row_checksums(path, start, rows))
            if len(wrong):
                raise DamageError(f"{path} differs from its checksum at {dim} {start + wrong[0]}")
        return rows

    def whole(self, path: str) -> NDArray[Any]:
        """A column without a growing axis.

        Raises:
            DamageError: it differs from its checksum.
        """
        dataset = dataset_at(self._file, path)
        _check_size(dataset)
        values = np.asarray(dataset[()])
        place = self._place(path, WHOLE_COLUMN)
        if place is not None and column_checksum(path, values) not in self._sums[WHOLE_COLUMN][place]:
            raise DamageError(f"{path} differs from its checksum")
        return values

    def _place(self, path: str, dim: str) -> int | None:
        """Where the checksums of a column are; None in files of layouts without, and for checksums themselves."""
        if not self._has_sums or path.startswith(CHECKSUMS):
            return None
        if dim not in self._places:
            names = dataset_at(self._file, f"{CHECKSUMS}/checked_{dim}")[:].tolist()
            sums = dataset_at(self._file, f"{CHECKSUMS}/{dim}_crc32")
            _check_size(sums)
            self._sums[dim] = sums[:]
            self._places[dim] = {name: place for place, name in enumerate(names)}
        place = self._places[dim].get(path.encode())
        if place is None:
            raise DamageError(f"{path} has no checksum")
        return place


def dataset_at(file: h5py.File, path: str) -> h5py.Dataset:
    """The dataset of a path, at a tenth of the time that `file[path]` takes.

    Raises:
        DamageError: there is none.
    """
    try:
        return h5py.Dataset(h5py.h5d.open(file.id, path.encode()))
    except (KeyError, TypeError, ValueError, RuntimeError):
        raise DamageError(f"{path} is missing") from None


def check_attributes(file: h5py.File) -> None:
    """Hold attributes, and the number of steps of a complete file, against their checksums.

    Raises:
        DamageError: they differ.
    """
    if int(file.attrs["schema_version"]) < CHECKED_SINCE and "head_crc32" not in file.attrs:
        return  # both, since the version itself may be damaged
    head = get_attributes(file, SEALED) | get_attributes(file["/system"], ["system_json"])
    if attributes_checksum(head) != file.attrs["head_crc32"]:
        raise DamageError("attributes of the file or of /system differ from their checksum")
    complete = int(file.attrs["complete"])
    if complete not in (0, 1):
        raise DamageError(f"complete is {complete}")
    if complete:
        run = get_attributes(file["/run"])
        crc32 = run.pop("crc32")
        if attributes_checksum(run | {"n_steps": file[COMMIT_INDEX].shape[0]}) != crc32:
            raise DamageError("attributes of /run, or the number of steps, differ from their checksum")


def _check_size(dataset: h5py.Dataset) -> None:
    """Refuse a length that what is stored cannot have, before memory is asked for."""
    if dataset.nbytes > _UNPACKED_BYTES + _DENSEST * dataset.id.get_storage_size():
        raise DamageError(f"{dataset.name} has shape {dataset.shape}, but hardly any data")
