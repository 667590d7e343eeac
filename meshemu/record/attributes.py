"""Attributes of the file and of /run: numbers, and texts that damage cannot turn into an endless search.

HDF5 keeps texts without a fixed length in a heap, and reading a damaged heap may never end. Texts are therefore stored
with their length, up to the 64 KiB that an attribute may have; only longer ones go into the heap.
"""

from typing import Any

import h5py
import numpy as np

__all__ = ["get_attributes", "put_attribute"]

_LONGEST_FIXED = 60_000


def put_attribute(target: h5py.HLObject, name: str, value: int | float | str | np.generic) -> None:
    """Write an attribute of a group, a dataset or the file."""
    if isinstance(value, str) and len(encoded := value.encode()) <= _LONGEST_FIXED:
        kind = h5py.string_dtype("utf-8", max(len(encoded), 1))
        target.attrs.create(name, np.array(encoded, dtype=kind), dtype=kind)
    else:
        target.attrs[name] = value


def get_attributes(target: h5py.HLObject, names: Any = None) -> dict[str, Any]:
    """Attributes by name (None: all but long_name), texts as str. Raises KeyError for one that is missing."""
    wanted = [name for name in target.attrs if name != "long_name"] if names is None else names
    values = {name: target.attrs[name] for name in wanted}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}
