"""What of a configuration decides the results: what a run that goes on must have in common with the run before.

Where results go, how often states are kept and how many steps are run does not; neither does the folder in which a file
of the user's lies, but what is in it does.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from meshemu.config.schema import FILE_FUNCTION, Config
from meshemu.errors import InputError

__all__ = ["difference", "identity"]

_FREE = ("output", "checkpoint", "training.steps")
_FILES = ("model.build", "data.build", "training.loss", "model.load")
CONTENT = " (content)"
"""How the key of what is in a user's file ends."""


def identity(config: Config, *, contents: bool = True) -> dict[str, str]:
    """Key -> value in words of everything that results depend on. contents: with a digest of every file of the user's.

    Raises:
        InputError: such a file cannot be read.
    """
    found = dict(_flat(config.model_dump(exclude_none=True)))
    for key in _FILES:
        value = found.get(key, "")
        file = value.rpartition(":")[0] if FILE_FUNCTION.fullmatch(value) else value if key == "model.load" else ""
        if not file:
            continue
        found[key] = value.replace(file, Path(file).name)
        if contents:
            found[f"{key}{CONTENT}"] = _digest(key, Path(file))
    return dict(sorted(found.items()))


def difference(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """In words, the first key that two configurations have different values for; "" if there is none."""
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) == now.get(key):
            continue
        if key.endswith(CONTENT):
            name = now.get(key.removesuffix(CONTENT), "")
            return f"{key.removesuffix(CONTENT)}: {name.rpartition(':')[0] or name} has changed since the run began"
        return f"{key} = {now.get(key, 'nothing')}, the run began with {before.get(key, 'nothing')}"
    return ""


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        name = f"{prefix}{key}"
        if name in _FREE:
            continue
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            for i, item in enumerate(value):
                yield from _flat(item, f"{name}[{i}].")
        else:
            yield name, _words(value)


def _words(value: Any) -> str:
    return value if isinstance(value, str) else repr(list(value) if isinstance(value, tuple) else value)


def _digest(key: str, file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{key}: {file} cannot be read: {error.strerror}") from None
