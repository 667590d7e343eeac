"""Opens results files for reading: beside a running writer, and with one clear line when a file cannot be used."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import h5py

from meshemu.errors import MeshemuError, RecordError
from meshemu.record.attributes import get_attributes
from meshemu.record.checked import DamageError, check_attributes, dataset_at
from meshemu.record.schema import COLUMNS, DIMS, SCHEMA_VERSION, TITLE

__all__ = ["check_identity", "read_file"]

_OURS = {"title": TITLE}
_T = TypeVar("_T")
_ATTEMPTS = 6
_PAUSE_S = 0.05
_RECENT_S = 60.0
# All that h5py, NumPy and JSON raise on damaged bytes.
_DAMAGE = (OSError, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, MemoryError)


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
    for attempt in range(_ATTEMPTS if abs(time.time() - written) < _RECENT_S else 1):
        if attempt:
            time.sleep(_PAUSE_S)
        try:
            with h5py.File(path, "r", locking=False) as file:
                return function(file)
        except MeshemuError:
            raise
        except PermissionError:
            raise RecordError(f"cannot read {path}: permission denied") from None
        except _DAMAGE as error:
            reason = " ".join(str(error).split()) or type(error).__name__
    if not h5py.is_hdf5(path):
        raise RecordError(f"cannot read {path}: it is not an HDF5 file, or its head is damaged")
    raise RecordError(f"cannot read {path}: it is damaged or cut short ({reason})")


def check_identity(path: Path, file: h5py.File) -> None:
    """Refuse what meshemu did not write, or wrote in a later layout, or what lacks a column.

    Raises:
        RecordError: says which of these.
        DamageError: attributes differ from their checksums, or lengths from one another.
    """
    if "schema_version" not in file.attrs or get_attributes(file, ["title"] if "title" in file.attrs else []) != _OURS:
        raise RecordError(f'cannot read {path}: it is HDF5 but no results file of meshemu (title is not "{TITLE}")')
    schema_version = int(file.attrs["schema_version"])
    if schema_version > SCHEMA_VERSION:
        raise RecordError(
            f"cannot read {path}: its schema_version is {schema_version}, this meshemu reads up to {SCHEMA_VERSION}"
        )
    check_attributes(file)
    lengths: dict[str, int] = {}
    for column in (c for c in COLUMNS if c.since <= schema_version):
        shape = dataset_at(file, column.path).shape
        if len(shape) != len(column.dims):
            raise DamageError(f"{column.path} has {len(shape)} axes in place of {len(column.dims)}")
        for length, dim in zip(shape, column.dims, strict=True):
            scale = f"{column.group}/{dim}"
            if DIMS[dim].grows:
                continue
            if scale not in lengths:
                lengths[scale] = dataset_at(file, scale).shape[0]
            if length != lengths[scale]:
                raise DamageError(f"{column.path} has {length} entries along {dim}, which has {lengths[scale]}")
