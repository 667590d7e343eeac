"""The columns of an opened results file: committed entries of the schema, held against their checksums.

A file is opened once for whatever is read together; how much of it counts was settled when the run was opened.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from meshemu.errors import RecordError
from meshemu.record.access import in_one_line
from meshemu.record.checked import CheckedFile
from meshemu.record.schema import COLUMNS, COMMIT_INDEXES, DIMS, LOSS_NAMES, Column

__all__ = ["Columns", "check_paths", "decoded"]

_COLUMN_BY_PATH = {column.path: column for column in COLUMNS}


class Columns:
    """Reads columns of an open file of a layout `schema_version`, of which `n_steps` steps count.

    Every method raises RecordError, in one line with the file's path, for what is damaged.
    """

    def __init__(self, path: Path, file: h5py.File, schema_version: int, n_steps: int) -> None:
        self.path = path
        self.file = file
        self._checked = CheckedFile(file)
        self._schema_version = schema_version
        self._n_steps = n_steps

    def read(self, path: str, rows: slice = slice(None)) -> NDArray[Any]:
        """Committed entries of a column of the schema, those in `rows` of its first axis."""
        entry = _COLUMN_BY_PATH[path]
        with in_one_line(self.path):
            if entry.since > self._schema_version:
                return self._not_recorded(entry)[rows]
            if not entry.dims:
                return self._checked.whole(path)
            dim = entry.dims[0]
            if not DIMS[dim].grows:
                return self._checked.whole(path)[rows]
            start, stop, _ = rows.indices(self._n_steps if dim == "step" else self._checked.committed(dim))
            return self._checked.rows(path, dim, start, stop)

    def numbers(self, dim: str) -> tuple[int, ...]:
        """Which steps the entries along a growing axis are of; none in a layout that lacks the axis."""
        if not self._has(dim):
            return ()
        with in_one_line(self.path):
            steps = self._checked.rows(COMMIT_INDEXES[dim], dim, 0, self._checked.committed(dim))
            return tuple(int(step) for step in steps)

    def loss_names(self) -> tuple[str, ...]:
        """Names of the terms of the loss; none where it is one number."""
        if self._schema_version < _COLUMN_BY_PATH["/results/steps/loss_by_name"].since:
            return ()
        with in_one_line(self.path):
            return decoded(self.path, LOSS_NAMES, self._checked.whole(LOSS_NAMES))

    def _not_recorded(self, entry: Column) -> NDArray[Any]:
        """What a file of an earlier layout tells of a later column: nothing was recorded where its axis grows, but of
        each step NaN and no losses by name; otherwise 0 bytes, and -1.
        """
        lengths = {"step": self._n_steps, "loss_name": 0, "parameter_group": 1}
        lengths |= {dim: 0 for dim in COMMIT_INDEXES if dim != "step"}
        shape = [lengths[dim] if dim in lengths else self._length(dim) for dim in entry.dims]
        if entry.dtype.startswith("f"):
            return np.full(shape, np.nan, entry.dtype)
        if entry.dtype == "str":
            return np.full(shape, b"", object)
        return np.full(shape, 0 if entry.units == "byte" else -1, entry.dtype)

    def _has(self, dim: str) -> bool:
        """Whether the layout of the file has an axis."""
        return min(column.since for column in COLUMNS if dim in column.dims) <= self._schema_version

    def _length(self, dim: str) -> int:
        """Length of an axis; 0 if the layout of the file has none of it."""
        if not self._has(dim):
            return 0
        scales = (f"{column.group}/{dim}" for column in COLUMNS if dim in column.dims)
        return next((int(self.file[scale].shape[0]) for scale in scales if scale in self.file), 0)


def check_paths(path: Path, wanted: Iterable[str]) -> None:
    """Raise RecordError for a dataset that the schema does not have."""
    for name in wanted:
        if name not in _COLUMN_BY_PATH:
            raise RecordError(f"{path}: no dataset {name}; there are {', '.join(sorted(_COLUMN_BY_PATH))}")


def decoded(path: Path, column: str, texts: NDArray[Any]) -> tuple[str, ...]:
    """A column of UTF-8 texts.

    Raises:
        RecordError: it holds none.
    """
    try:
        return tuple(text.decode() for text in texts.tolist())
    except UnicodeDecodeError:
        raise RecordError(f"cannot read {path}: it is damaged ({column} holds no text)") from None
