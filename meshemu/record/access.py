"""Opens results files for reading: beside a running writer, and with one clear line when a file cannot be used."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import h5py

from meshemu.errors import MeshemuError, RecordError
from meshemu.record.attributes import get_attributes
from meshemu.record.checked import CHECKED_SINCE, checked_attributes
from meshemu.record.schema import COLUMNS, DIMS, SCHEMA_VERSION, TITLE
from meshemu.record.stored import DamageError, StoredDataset

__all__ = ["check_layout", "identify", "in_one_line", "read_file"]

_OURS = {"title": TITLE}
_T = TypeVar("_T")
_ATTEMPTS = 6
_PAUSE_S = 0.05
_RECENT_S = 60.0
# All that h5py, NumPy and JSON raise on damaged bytes.
_DAMAGE = (OSError, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, MemoryError)


class _DamagedError(RecordError):
    """The file at `path` is damaged, or was caught in the middle of a flush."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path


def read_file(path: Path, function: Callable[[h5py.File], _T]) -> _T:
    """`function` of the opened file; the file is closed again before this returns.

    The file is opened without a lock, since a run may still be writing it. A view caught in the middle of a flush reads
    as a damaged file, so with a file that was written a minute ago a failure is tried again for a fraction of a second.

    Raises:
        RecordError: the file is missing, no HDF5 file, or damaged.
    """
    try:
        written = path.stat().st_mtime
    except OSError as error:
        raise RecordError(f"cannot read {path}: {os.strerror(error.errno or 0)}") from None
    if not path.is_file():
        raise RecordError(f"cannot read {path}: it is no file")
    attempts_left = _ATTEMPTS if abs(time.time() - written) < _RECENT_S else 1
    while True:
        attempts_left -= 1
        try:
            with in_one_line(path), h5py.File(path, "r", locking=False) as file:
                return function(file)
        except _DamagedError as error:
            if error.path != path or not attempts_left:
                raise
        time.sleep(_PAUSE_S)


@contextmanager
def in_one_line(path: Path) -> Iterator[None]:
    """Say of what cannot be read from the file at `path` that it cannot; errors of meshemu pass.

    Raises:
        RecordError: permission is denied, or the file is damaged.
    """
    try:
        yield
    except MeshemuError:
        raise
    except PermissionError:
        raise RecordError(f"cannot read {path}: permission denied") from None
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        whole = h5py.is_hdf5(path)
        said = f"it is damaged or cut short ({reason})" if whole else "it is not an HDF5 file, or its head is damaged"
        raise _DamagedError(path, f"cannot read {path}: {said}") from None


def identify(path: Path, file: h5py.File) -> tuple[dict[str, Any], dict[str, Any]]:
    """Attributes of the file, with system_json, and of /run, by name; what meshemu did not write, or wrote in a later
    layout, is refused.

    Raises:
        RecordError: says which of these.
        DamageError: attributes differ from their checksums; in a file of a layout without, as `check_layout`.
    """
    if "schema_version" not in file.attrs or get_attributes(file, ["title"] if "title" in file.attrs else []) != _OURS:
        raise RecordError(f'cannot read {path}: it is HDF5 but no results file of meshemu (title is not "{TITLE}")')
    schema_version = int(file.attrs["schema_version"])
    if schema_version > SCHEMA_VERSION:
        raise RecordError(
            f"cannot read {path}: its schema_version is {schema_version}, this meshemu reads up to {SCHEMA_VERSION}"
        )
    found = checked_attributes(file)
    if schema_version < CHECKED_SINCE:
        check_layout(file)
    return found


def check_layout(file: h5py.File) -> None:
    """Look whether every column of the file's layout is there, as long as its axes are.

    What a checksum covers needs no such look before it is read.

    Raises:
        DamageError: names the one that is not.
    """
    schema_version = int(file.attrs["schema_version"])
    lengths: dict[str, int] = {}
    for column in (c for c in COLUMNS if c.since <= schema_version):
        shape = StoredDataset(file, column.path).shape
        if len(shape) != len(column.dims):
            raise DamageError(f"{column.path} has {len(shape)} axes in place of {len(column.dims)}")
        for length, dim in zip(shape, column.dims, strict=True):
            scale = f"{column.group}/{dim}"
            if DIMS[dim].grows:
                continue
            if scale not in lengths:
                lengths[scale] = StoredDataset(file, scale).shape[0]
            if length != lengths[scale]:
                raise DamageError(f"{column.path} has {length} entries along {dim}, which has {lengths[scale]}")
