"""A Program as columns and one JSON text of its tables, and back."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meshemu.program.ir import CollectiveUse, Program

__all__ = ["program_arrays", "program_from_parts", "program_tables"]

_TABLES = ("labels", "op_classes", "number_formats")


def program_arrays(program: Program) -> dict[str, NDArray[Any]]:
    """All arrays of a Program by field name (also the names of the columns under /program)."""
    values = {field.name: getattr(program, field.name) for field in fields(program)}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def program_tables(program: Program) -> str:
    """What a Program holds besides arrays, as JSON."""
    tables: dict[str, Any] = {name: getattr(program, name) for name in _TABLES}
    collectives = [asdict(use) for use in program.collectives]
    tables |= {"shapes": program.shapes, "collectives": collectives}
    return json.dumps({"n_devices": program.n_devices, **tables}, ensure_ascii=False)


def program_from_parts(arrays: Mapping[str, NDArray[Any]], tables_json: str) -> Program:
    """The Program of which `program_arrays` and `program_tables` made these parts.

    Files of a layout before 3 know no shapes.
    """
    tables = json.loads(tables_json)
    collectives = tuple(_collective(use) for use in tables["collectives"])
    parts: dict[str, Any] = {name: tuple(tables[name]) for name in _TABLES} | dict(arrays)
    parts["shapes"] = tuple(tuple(tuple(part) for part in shape) for shape in tables.get("shapes", ()))
    return Program(n_devices=tables["n_devices"], collectives=collectives, **parts)


def _collective(use: dict[str, Any]) -> CollectiveUse:
    """JSON has lists where a CollectiveUse has tuples."""
    parts: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in use.items()}
    return CollectiveUse(**parts)
