"""The table [formats] of the file: number formats by role, with keys and messages of `hardware.format_roles`."""

from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator

from meshemu.errors import InputError
from meshemu.hardware.format_roles import Formats, formats_of

__all__ = ["FormatsTable"]


def _formats(value: object) -> Formats:
    """The formats of a table. Faults begin with what follows the key."""
    if isinstance(value, Formats):
        return value
    if not isinstance(value, dict):
        raise ValueError(f" = {value!r}: should be a table")
    try:
        return formats_of(value, "")
    except InputError as error:
        raise ValueError(str(error)) from None


def _table(formats: Formats) -> dict[str, Any]:
    return formats.as_table()


FormatsTable = Annotated[Formats, PlainValidator(_formats), PlainSerializer(_table)]
"""Formats by role, from a table of names or of tables."""
