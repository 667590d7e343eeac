"""An open results file whose values are held against their checksums as they are read."""

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from meshemu.record.attributes import get_attributes
from meshemu.record.checksums import attributes_checksum, column_checksum, row_checksums
from meshemu.record.schema import CHECKSUMS, COMMIT_INDEX, COMMIT_INDEXES, SEALED, WHOLE_COLUMN
from meshemu.record.stored import DamageError, StoredDataset

__all__ = ["CHECKED_SINCE", "CheckedFile", "checked_attributes"]

CHECKED_SINCE = 3
"""The version of the layout that brought checksums."""


class CheckedFile:
    """Reads columns of an open file. What the checksums of an axis are is read once."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self._has_sums = int(file.attrs["schema_version"]) >= CHECKED_SINCE
        self._places: dict[str, dict[bytes, int]] = {}
        self._sums: dict[str, NDArray[np.uint32]] = {}

    def committed(self, dim: str) -> int:
        """Number of committed entries along a growing axis."""
        return StoredDataset(self._file, COMMIT_INDEXES[dim]).shape[0]

    def rows(self, path: str, dim: str, start: int, stop: int) -> NDArray[Any]:
        """Entries start <= i < stop of a column along its growing axis `dim`; stop must be committed.

        Raises:
            DamageError: there are fewer, or they differ from their checksums.
        """
        dataset = StoredDataset(self._file, path)
        if dataset.shape[0] < stop:
            raise DamageError(f"{path} holds {dataset.shape[0]} entries, {stop} are committed")
        rows = dataset.rows(start, stop)
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
        values = StoredDataset(self._file, path).whole()
        place = self._place(path, WHOLE_COLUMN)
        if place is not None and column_checksum(path, values) not in self._sums[WHOLE_COLUMN][place]:
            raise DamageError(f"{path} differs from its checksum")
        return values

    def _place(self, path: str, dim: str) -> int | None:
        """Where the checksums of a column are; None in files of layouts without, and for checksums themselves."""
        if not self._has_sums or path.startswith(CHECKSUMS):
            return None
        if dim not in self._places:
            names = StoredDataset(self._file, f"{CHECKSUMS}/checked_{dim}").whole().tolist()
            self._sums[dim] = StoredDataset(self._file, f"{CHECKSUMS}/{dim}_crc32").whole()
            self._places[dim] = {name: place for place, name in enumerate(names)}
        place = self._places[dim].get(path.encode())
        if place is None:
            raise DamageError(f"{path} has no checksum")
        return place


def checked_attributes(file: h5py.File) -> tuple[dict[str, Any], dict[str, Any]]:
    """Attributes of the file with system_json, and those of /run, by name.

    Raises:
        DamageError: they differ from their checksums, or the number of steps of a complete file does.
    """
    head = get_attributes(file, [*SEALED, "complete"]) | get_attributes(file["/system"], ["system_json"])
    of_run = get_attributes(file["/run"])
    crc32 = of_run.pop("crc32", None)
    if int(head["schema_version"]) < CHECKED_SINCE and "head_crc32" not in file.attrs:
        return head, of_run  # both, since the version itself may be damaged
    complete = int(head["complete"])
    if attributes_checksum({name: head[name] for name in (*SEALED, "system_json")}) != file.attrs["head_crc32"]:
        raise DamageError("attributes of the file or of /system differ from their checksum")
    if complete not in (0, 1):
        raise DamageError(f"complete is {complete}")
    n_steps = StoredDataset(file, COMMIT_INDEX).shape[0]
    if complete and attributes_checksum(of_run | {"n_steps": n_steps}) != crc32:
        raise DamageError("attributes of /run, or the number of steps, differ from their checksum")
    return head, of_run
