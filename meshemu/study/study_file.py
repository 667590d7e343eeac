"""What a study file says: a base configuration, and which of its keys take which values.

The form is in docs/study.md: one of [grid] (every combination), [[list]] (one table per run) and [random] (samples).
"""

import random
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import exp, isfinite, log
from pathlib import Path
from typing import Any

from meshemu.config import Config, load
from meshemu.errors import InputError

__all__ = ["SlurmOptions", "Study", "StudyRun", "as_toml", "load_study"]

_KEYS = ("config", "execute", "keep_program", "set", "grid", "list", "random", "slurm")
_WAYS = ("grid", "list", "random")
_RANGE = {"low", "high", "log", "whole"}
_MOST_RUNS = 100_000


@dataclass(frozen=True)
class StudyRun:
    """One run: the values of the swept keys, as TOML values, and the configuration that they make."""

    values: dict[str, Any]
    config: Config


@dataclass(frozen=True)
class SlurmOptions:
    """ntasks: MPI ranks of a run; setup: shell commands before it; options: of sbatch, by name."""

    ntasks: int
    setup: tuple[str, ...]
    options: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """A checked study file. keys: those that are swept, in order."""

    path: Path
    keys: tuple[str, ...]
    runs: tuple[StudyRun, ...]
    execute: bool
    keep_program: bool
    slurm: SlurmOptions


def load_study(path: str | Path) -> Study:
    """Read and check a study file and every configuration that it makes.

    Raises InputError, one line, for anything wrong in it: an unknown key, an empty grid, a value that the configuration
    refuses.
    """
    source = Path(path)
    document = _document(source)
    for key in document:
        if key not in _KEYS:
            raise InputError(f"{path}: unknown key {key!r}; a study has {', '.join(_KEYS)}")
    ways = [way for way in _WAYS if way in document]
    if len(ways) != 1:
        raise InputError(f"{path}: give one of grid, list and random, not {' and '.join(ways) or 'none of them'}")
    if not isinstance(document.get("config"), str):
        raise InputError(f"{path}: config = {document.get('config')!r} is not the path of a configuration")
    fixed = dict(_flat(_table(document, "set", path)))
    points = _points(ways[0], document[ways[0]], str(path))
    keys = tuple(dict.fromkeys(key for point in points for key in point))
    base = source.parent / document["config"]
    runs = tuple(_run(base, fixed, point, str(path)) for point in points)
    flags = {key: _flag(document, key, default, path) for key, default in (("execute", True), ("keep_program", False))}
    return Study(source, keys, runs, slurm=_slurm(_table(document, "slurm", path), path), **flags)


def as_toml(value: object) -> str:
    """A value in one line of TOML."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {as_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return repr(value)


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() else as_toml(key)


def _run(base: Path, fixed: dict[str, Any], point: dict[str, Any], origin: str) -> StudyRun:
    overrides = [f"{key}={as_toml(value)}" for key, value in (fixed | point).items()]
    try:
        return StudyRun(point, load(base, overrides))
    except InputError as error:
        words = ", ".join(f"{key} = {as_toml(value)}" for key, value in point.items())
        raise InputError(f"{origin}: {f'with {words}: ' if words else ''}{error}") from None


def _document(source: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{source}: is not valid TOML: {error}") from None


def _points(way: str, content: Any, origin: str) -> list[dict[str, Any]]:
    if way == "list":
        if not isinstance(content, list) or not content or not all(isinstance(item, dict) for item in content):
            raise InputError(f"{origin}: list is no list of tables ([[list]]) with at least one")
        points = [dict(_flat(item)) for item in content]
    elif way == "grid":
        axes = _axes(content, "grid", origin)
        count = 1
        for key, values in axes.items():
            if not isinstance(values, list) or not values:
                raise InputError(f"{origin}: grid.{key} = {values!r} is not a list of at least one value")
            count *= len(values)
        if count > _MOST_RUNS:
            raise InputError(f"{origin}: the grid has {count:,} runs, at most {_MOST_RUNS:,} are possible")
        points = [dict(zip(axes, chosen, strict=True)) for chosen in product(*axes.values())]
    else:
        points = _samples(content, origin)
    text, count_of_it = Counter(as_toml(point) for point in points).most_common(1)[0]
    if count_of_it > 1 and way != "random":
        raise InputError(f"{origin}: {way} has {text} {count_of_it} times")
    return points


def _samples(content: Any, origin: str) -> list[dict[str, Any]]:
    """Random points: each key drawn on its own, in the order of the file."""
    if not isinstance(content, dict) or content.keys() - {"samples", "seed", "keys"}:
        raise InputError(f"{origin}: random is not a table with samples, seed and keys")
    samples, seed = content.get("samples"), content.get("seed", 0)
    for key, value, least in (("samples", samples, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= max(_MOST_RUNS, least):
            raise InputError(f"{origin}: random.{key} = {value!r} is not a whole number from {least} to {_MOST_RUNS}")
    axes = _axes(content.get("keys"), "random.keys", origin)
    draw = random.Random(seed)
    assert isinstance(samples, int)
    return [{key: _drawn(draw, key, values, origin) for key, values in axes.items()} for _ in range(samples)]


def _drawn(draw: random.Random, key: str, values: Any, origin: str) -> Any:
    if isinstance(values, list) and values:
        return values[draw.randrange(len(values))]
    low, high = (values.get("low"), values.get("high")) if isinstance(values, dict) else (None, None)
    if low is None or high is None or not _number(low) or not _number(high) or low >= high or (
        values.get("log") and low <= 0
    ):
        words = "a list of values, or a range { low, high } with low < high (and 0 < low where log = true)"
        raise InputError(f"{origin}: random.keys.{key} = {as_toml(values)} is not {words}")
    place = draw.random()
    value = exp(log(low) + place * (log(high) - log(low))) if values.get("log") else low + place * (high - low)
    return round(value) if values.get("whole") else value


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _axes(content: Any, name: str, origin: str) -> dict[str, Any]:
    axes = dict(_flat(content)) if isinstance(content, dict) else {}
    if not axes:
        raise InputError(f"{origin}: {name} is not a table with at least one key")
    return axes


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested tables; a range, and the value of `plan`, is a value."""
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and not value.keys() <= _RANGE and name != "plan":
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _table(document: Mapping[str, Any], key: str, path: str | Path) -> dict[str, Any]:
    value = document.get(key, {})
    if not isinstance(value, dict):
        raise InputError(f"{path}: {key} = {value!r} is not a table")
    return value


def _flag(document: Mapping[str, Any], key: str, default: bool, path: str | Path) -> bool:
    value = document.get(key, default)
    if not isinstance(value, bool):
        raise InputError(f"{path}: {key} = {value!r} is neither true nor false")
    return value


def _slurm(table: Mapping[str, Any], path: str | Path) -> SlurmOptions:
    ntasks, setup = table.get("ntasks", 1), table.get("setup", [])
    if not isinstance(ntasks, int) or isinstance(ntasks, bool) or ntasks < 1:
        raise InputError(f"{path}: slurm.ntasks = {ntasks!r} is not a whole number of at least 1")
    commands: Sequence[Any] = [setup] if isinstance(setup, str) else setup
    if not isinstance(commands, list) or not all(isinstance(line, str) for line in commands):
        raise InputError(f"{path}: slurm.setup = {setup!r} is not a list of shell commands")
    options = {key: value for key, value in table.items() if key not in ("ntasks", "setup")}
    for key, value in options.items():
        if key in ("array", "output", "job-name", "dependency"):
            raise InputError(f"{path}: slurm.{key} is set by the sweep itself")
        if not isinstance(value, str | int) or "\n" in str(value) or not key.replace("-", "").isalnum():
            raise InputError(f"{path}: slurm.{key} = {value!r} is not an option of sbatch with a text or a number")
    return SlurmOptions(ntasks, tuple(commands), options)
