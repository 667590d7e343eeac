"""A table of the file as a Router: keys, defaults and messages are the router's own."""

from dataclasses import fields
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator

from meshemu.config.spelling import suggestion
from meshemu.errors import InputError
from meshemu.hardware import Router

__all__ = ["RouterTable"]


def _router(value: object) -> Router | None:
    """The router of a table; of true, one with all defaults; of false, none. Faults begin with what follows the key."""
    if value is None or isinstance(value, Router):
        return value
    if isinstance(value, bool):
        return Router() if value else None
    if not isinstance(value, dict):
        raise ValueError(f" = {value!r}: should be a table, true or false")
    valid = [field.name for field in fields(Router)]
    for key in value:
        if key not in valid:
            raise ValueError(f".{key}: unknown key, {suggestion(key, valid)}")
    try:
        return Router(**value)
    except InputError as error:
        raise ValueError(f".{error}") from None


def _table(router: Router | None) -> dict[str, Any] | None:
    return None if router is None else router.as_table()


RouterTable = Annotated[Router | None, PlainValidator(_router), PlainSerializer(_table)]
"""A Router or None, from a table, true or false."""
