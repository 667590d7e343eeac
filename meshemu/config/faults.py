"""What is wrong with a configuration, in words: each fault names the key as the user writes it."""

import difflib
import re
import reprlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from meshemu.config.schema import (
    Checkpoint,
    Config,
    Data,
    Grid,
    Ingest,
    Memory,
    Model,
    Network,
    Output,
    PlanShape,
    Section,
    System,
    Timing,
    Training,
)
from meshemu.config.spelling import suggestion

__all__ = ["faults_of", "misspelt_system_keys"]

_SECTIONS: Mapping[tuple[str, ...], type[Section]] = MappingProxyType(
    {
        (): Config,
        ("system",): System,
        ("system", "grid"): Grid,
        ("model",): Model,
        ("data",): Data,
        ("plan", "<shape>"): PlanShape,
        ("training",): Training,
        ("timing",): Timing,
        ("network",): Network,
        ("memory",): Memory,
        ("ingest",): Ingest,
        ("output",): Output,
        ("checkpoint",): Checkpoint,
    }
)


def faults_of(error: ValidationError) -> list[str]:
    """Every fault that `error` names."""
    return [_fault(details) for details in error.errors()]


def misspelt_system_keys(overrides: Mapping[str, Any]) -> list[str]:
    """Overrides of figures that are rather meant as one of the keys of [system] itself."""
    known = [key for key in System.model_fields if key != "overrides"]
    return [
        f"system.{key}: unknown key, did you mean {close[0]!r}?"
        for key in overrides
        if (close := difflib.get_close_matches(key, known, n=1, cutoff=0.75))
    ]


def _fault(details: ErrorDetails) -> str:
    """One fault in words, with the key as the user writes it."""
    path = tuple(str(part) for part in details["loc"])
    key = re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", ".".join(_without_tags(path)))
    match details["type"]:
        case "missing":
            return f"{key} is missing"
        case "extra_forbidden":
            return f"{key}: unknown key, {suggestion(path[-1], list(_SECTIONS[path[:-1]].model_fields))}"
        case "value_error":
            message = str(details["ctx"]["error"])
            return f"{key}{message}" if message.startswith((" = ", ".")) else f"{key}: {message}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{key} = {reprlib.repr(details['input'])}: should be a table"
        case _:
            return f"{key} = {reprlib.repr(details['input'])}: {details['msg'].replace('Input should', 'should')}"


def _without_tags(path: tuple[str, ...]) -> Iterator[str]:
    """The parts of `path` without the names of union members that pydantic puts between them."""
    return (part for part in path if not part.startswith("<"))
