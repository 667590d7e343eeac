"""CRC-32 of what a results file holds, so that damaged bytes are noticed wherever they are.

HDF5 can append a Fletcher-32 checksum to chunks, but that says nothing about what leads to a chunk: its address, the
shape of a dataset, attributes. Here the checksum is of the values as a reader gets them, begun with where they belong,
so that a chunk of another step or column does not pass either.

Of a row along a growing axis: CRC-32 of "PATH ROW " and the bytes of the row; of another column: of "PATH " and all its
bytes, little-endian, last axis fastest. Texts are UTF-8, each followed by a zero byte.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["attributes_checksum", "column_checksum", "row_checksums"]


def column_checksum(path: str, values: ArrayLike) -> int:
    """Checksum of a whole column."""
    return zlib.crc32(_content(np.asarray(values)), zlib.crc32(f"{path} ".encode()))


def row_checksums(path: str, first_row: int, rows: NDArray[Any]) -> NDArray[np.uint32]:
    """Checksum of each row of `rows`, the first of which is row `first_row` of the column; uint32[len(rows)]."""
    sums = (
        zlib.crc32(_content(row), zlib.crc32(f"{path} {number} ".encode()))
        for number, row in enumerate(rows, first_row)
    )
    return np.fromiter(sums, np.uint32, len(rows))


def attributes_checksum(attributes: Mapping[str, Any]) -> int:
    """Checksum of attributes (texts and numbers): of "NAME=VALUE" and a zero byte each, sorted by name."""
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in attributes.items()}
    return zlib.crc32(b"".join(f"{name}={plain[name]}".encode() + b"\0" for name in sorted(plain)))


def _content(values: Any) -> bytes | memoryview:
    """What a checksum is of; of texts, without the padding that their longest neighbour asks for."""
    array = np.asarray(values)
    if array.dtype.kind == "S":
        return b"".join(text + b"\0" for text in array.ravel().tolist())
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data
