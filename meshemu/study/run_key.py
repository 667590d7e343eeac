"""What makes two runs of a study the same run, and what makes them runs of the same Program or of the same model."""

import hashlib
import json
from pathlib import Path
from typing import Any

from meshemu.config import Config
from meshemu.emulator.changes import TIMING_KEYS
from meshemu.errors import InputError
from meshemu.version import __version__

__all__ = ["model_key", "program_key", "run_key"]

_SPEEDS = ("bandwidth", "latency", "clock", "energy", "power", "op_launch", "combine")
"""Last parts of the names of figures that change how fast a system is, and not what is on it."""
_RATES = ("matrix", "vector")


def run_key(config: Config, *, execute: bool) -> str:
    """Of everything that results depend on: the resolved configuration, what is in the user's files that it names,
    whether maths runs, the version. Where results go does not count.
    """
    return _digest({"config": _document(config), "files": _files(config), "execute": execute, "version": __version__})


def program_key(config: Config, *, execute: bool, keep_program: bool) -> str | None:
    """Equal for runs that only time the same Program anew; None for a run whose Program may follow from its hardware.

    It may where plan, collectives or stages are chosen by time, unless the study keeps the Program of the first.
    """
    document = _document(config)
    plan = document["plan"]
    chosen = document["timing"]["collective"] == "auto" or plan == "auto" or "pipeline" in str(plan)
    if chosen and not keep_program:
        return None
    overrides = document["system"]["overrides"]
    document["system"]["overrides"] = {key: value for key, value in overrides.items() if not _is_speed(key)}
    document["timing"] = {key: value for key, value in document["timing"].items() if key not in TIMING_KEYS}
    document["network"] = bool(document["network"].get("router"))  # what has routers cannot lose them
    return _digest({"config": document, "files": _files(config), "execute": execute})


def model_key(config: Config) -> str:
    """Equal for runs whose steps are captured alike, for batches of equal shapes; their sizes do not count."""
    document = _document(config)
    del document["data"]["batch_size"]
    parts = {key: document[key] for key in ("model", "data")}
    training = {key: document["training"].get(key) for key in ("loss", "seed", "optimizer")}
    return _digest({"parts": parts, "training": training, "files": _files(config)})


def _is_speed(key: str) -> bool:
    parts = key.split(".")
    return parts[-1].endswith(_SPEEDS) or any(part in _RATES for part in parts[:-1])


def _document(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude_none=True, exclude={"output"})


def _files(config: Config) -> dict[str, str]:
    """What is in the files of the user's, by key."""
    named = {
        "model.build": config.model.build,
        "data.build": config.data.build,
        "training.loss": config.training.loss if ".py:" in config.training.loss else None,
    }
    paths = {key: value.rpartition(":")[0] for key, value in named.items() if value is not None}
    if config.model.load is not None:
        paths["model.load"] = config.model.load
    try:
        return {key: hashlib.sha256(Path(path).read_bytes()).hexdigest() for key, path in paths.items()}
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from None


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
