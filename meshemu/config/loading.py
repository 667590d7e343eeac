"""From TOML text and `--set key=value` to a Config and back.

The order of precedence is: default, file, `--set`. All faults are found before one error is raised.
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from meshemu.config.faults import faults_of, misspelt_system_keys
from meshemu.config.schema import FILE_FUNCTION, Config, Network, Section, System, Timing
from meshemu.errors import InputError

__all__ = ["key_and_value", "load", "parse", "parse_timing", "set_value", "to_toml", "toml_text"]

_MOST_FAULTS = 8


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration in the TOML file `path`, changed by `overrides` of the form "key=value".

    Values are TOML ("--set training.steps=5", "plan={data=25}"); what is not TOML is text ("plan=data"). Users' files
    are looked for beside `path`. InputError is one line that names every key at fault.
    """
    source = Path(path)
    try:
        text = source.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not a text file in UTF-8") from None
    return parse(text, overrides, origin=str(path), directory=source.parent)


def parse(text: str, overrides: Sequence[str] = (), *, origin: str, directory: Path) -> Config:
    """As `load`, from the text itself; `origin` names it in errors, users' files are relative to `directory`."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{origin}: is not valid TOML: {error}") from None
    for override in overrides:
        set_value(document, override)
    faults = _collect_system_overrides(document)
    _resolve_user_files(document, directory)
    try:
        config = Config.model_validate(document)
    except ValidationError as error:
        faults += faults_of(error)
    if faults:
        raise _refused(faults, origin)
    return config


class _Timed(Section):
    """The sections that say how a stored Program is timed."""

    timing: Timing = Timing()
    network: Network = Network()


def parse_timing(document: Mapping[str, Any], *, origin: str) -> tuple[Timing, Network]:
    """The sections [timing] and [network] of `document`, whatever else it holds; InputError as `load` raises it."""
    try:
        timed = _Timed.model_validate({key: document[key] for key in _Timed.model_fields if key in document})
    except ValidationError as error:
        raise _refused(faults_of(error), origin) from None
    return timed.timing, timed.network


def to_toml(config: Config) -> str:
    """The resolved configuration, every default written out, as TOML that `parse` reads back equal."""
    document = config.model_dump(exclude_none=True)
    system = document["system"]
    for key, value in system.pop("overrides").items():
        *parents, last = key.split(".")
        table = system
        for parent in parents:
            table = table.setdefault(parent, {})
        table[last] = value
    return toml_text(document)


def toml_text(document: Mapping[str, Any]) -> str:
    """A nest of tables as TOML."""
    return tomli_w.dumps(document)


def set_value(document: dict[str, Any], override: str) -> None:
    """Apply one "key=value" of the command line to `document`; InputError for what has no such form."""
    key, value = key_and_value(override)
    *parents, last = parts = key.split(".")
    table = document
    for depth, parent in enumerate(parents, start=1):
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise InputError(f"--set {override}: {'.'.join(parts[:depth])} is {table!r}, not a table")
    table[last] = value


def key_and_value(override: str) -> tuple[str, Any]:
    """("a.b", value) of "a.b = value", which is TOML or else text; InputError for what has no such form."""
    key, equals, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise InputError(f"--set {override}: give it as key=value, for example training.steps=5")
    return ".".join(parts), _value(text.strip())


def _refused(faults: Sequence[str], origin: str) -> InputError:
    more = f"; and {len(faults) - _MOST_FAULTS} more" if len(faults) > _MOST_FAULTS else ""
    return InputError(f"{origin}: {'; '.join(faults[:_MOST_FAULTS])}{more}")


def _value(text: str) -> Any:
    try:
        document = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return document["value"] if len(document) == 1 else text


def _collect_system_overrides(document: dict[str, Any]) -> list[str]:
    """Move the keys of [system] that override figures to "overrides", flattened; returns the misspelt ones."""
    section = document.get("system")
    if not isinstance(section, dict):
        return []
    named = System.model_fields.keys() - {"overrides"}
    others = {key: section.pop(key) for key in list(section) if key not in named}
    section["overrides"] = dict(_flatten(others))
    return misspelt_system_keys(others)


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _resolve_user_files(document: dict[str, Any], directory: Path) -> None:
    for section, key in (("model", "build"), ("data", "build"), ("training", "loss")):
        table = document.get(section)
        value = table.get(key) if isinstance(table, dict) else None
        if isinstance(table, dict) and isinstance(value, str) and FILE_FUNCTION.fullmatch(value):
            file, _, function = value.rpartition(":")
            table[key] = f"{(directory / file).resolve()}:{function}"
    model = document.get("model")
    timing = document.get("timing")
    for table, key in ((model, "load"), (timing, "calibration")):
        if isinstance(table, dict) and isinstance(table.get(key), str):
            table[key] = str((directory / table[key]).resolve())
