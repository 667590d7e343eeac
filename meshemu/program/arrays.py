"""A Program as named arrays and JSON-able tables, for files; and equality of Programs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meshemu.errors import InputError
from meshemu.program.ir import CollectiveUse, Program

__all__ = ["ARRAY_FIELDS", "TABLE_FIELDS", "arrays", "equal", "from_arrays", "tables"]

ARRAY_FIELDS: Mapping[str, type[np.generic]] = {
    "kind": np.int8, "device": np.int32, "label": np.int32, "op_class": np.int16, "number_format": np.int8,
    "flops": np.int64, "read_bytes": np.int64, "write_bytes": np.int64, "message": np.int64, "collective": np.int32,
    "chunk_lo": np.int32, "chunk_hi": np.int32, "shape": np.int32, "producer": np.int64, "producer_bytes": np.int64,
    "interface": np.int32,
    "src": np.int32, "dst": np.int32, "size_bytes": np.int64,
    "send_op": np.int64, "recv_op": np.int64, "dep_ptr": np.int64, "dep": np.int64,
}
"""Array fields of a Program and their types."""

TABLE_FIELDS = ("n_devices", "labels", "op_classes", "number_formats", "shapes", "collectives")
"""The other fields of a Program."""


def arrays(program: Program) -> dict[str, NDArray[Any]]:
    """Return the array fields of a Program by name (not copied)."""
    return {name: getattr(program, name) for name in ARRAY_FIELDS}


def tables(program: Program) -> dict[str, Any]:
    """Return the other fields as numbers, strings, lists and dicts, as JSON holds them."""
    return {
        "n_devices": int(program.n_devices),
        "labels": list(program.labels),
        "op_classes": list(program.op_classes),
        "number_formats": list(program.number_formats),
        "shapes": [[list(part) for part in shape] for shape in program.shapes],
        "collectives": [
            {**dataclasses.asdict(use), "devices": list(use.devices), "grid": list(use.grid)}
            for use in program.collectives
        ],
    }


def from_arrays(columns: Mapping[str, NDArray[Any]], named: Mapping[str, Any]) -> Program:
    """Inverse of (arrays, tables); extra entries are ignored.

    Raises InputError if a field is missing or does not have the form that `arrays` and `tables` give it.
    """
    missing = [name for name in ARRAY_FIELDS if name not in columns] + [n for n in TABLE_FIELDS if n not in named]
    if missing:
        raise InputError(f"a stored Program lacks {', '.join(missing)}")
    try:
        uses = tuple(
            CollectiveUse(**{**use, "devices": tuple(use["devices"]), "grid": tuple(use["grid"])})
            for use in named["collectives"]
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"a stored Program has a collective that cannot be read: {error}") from None
    return Program(
        n_devices=int(named["n_devices"]),
        **{name: np.asarray(columns[name], dtype) for name, dtype in ARRAY_FIELDS.items()},
        labels=tuple(named["labels"]),
        op_classes=tuple(named["op_classes"]),
        number_formats=tuple(named["number_formats"]),
        shapes=tuple(tuple(tuple(part) for part in shape) for shape in named["shapes"]),
        collectives=uses,
    )


def equal(first: Program, second: Program) -> bool:
    """Whether two Programs agree in every field."""
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in ARRAY_FIELDS) and all(
        getattr(first, name) == getattr(second, name) for name in TABLE_FIELDS
    )
