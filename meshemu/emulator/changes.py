"""What `--set` changes where a Program is timed again: the hardware, how it is timed, the text that says so."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from meshemu.config import key_and_value, parse_timing, set_value, toml_text
from meshemu.emulator.timed_step import TimingOptions
from meshemu.errors import InputError, RecordError
from meshemu.hardware import System
from meshemu.record.reader import Run

__all__ = ["Setting", "changed_setting", "hardware_figures", "timing_options_of"]

TIMING_KEYS = ("packet_bytes", "routing", "timeline_bins", "fusion", "calibration", "communication_threads")
"""What of [timing] a stored Program leaves open."""

INTERFACES_SINCE = 4
"""Version of the file layout that tells what ops at interface processors do."""


@dataclass(frozen=True, eq=False)
class Setting:
    """On what a Program is timed, and how; config_text: the configuration of its run with all changes made."""

    system: System
    options: TimingOptions
    config_text: str


def changed_setting(stored: Run, overrides: Sequence[str]) -> Setting:
    """The setting of a stored run after `overrides`: "system.KEY=VALUE", "network.KEY=VALUE", or "timing.KEY=VALUE" for
    TIMING_KEYS, as in a configuration.

    Raises InputError for what cannot be changed, for values that do not fit and for a system of another shape.
    """
    figures, others = hardware_figures(overrides, ("system", "timing", "network"))
    for override in others:
        key, _ = key_and_value(override)
        if key.startswith("timing.") and key.removeprefix("timing.") not in TIMING_KEYS:
            raise InputError(f"--set {override}: {key} cannot be changed here; valid: {', '.join(TIMING_KEYS)}")
    _check_ingest(stored)
    system = System.from_json(stored.system_json)
    changed = system.override(figures) if figures else system
    if (changed.rows, changed.cols) != (system.rows, system.cols):
        raise InputError(
            f"the stored Program is for {system.rows} x {system.cols} devices, the changed system has "
            f"{changed.rows} x {changed.cols}: run it again instead"
        )
    document = _document(stored)
    options = timing_options_of(document, others, origin=str(stored.path))
    if "system" in document:  # not in the file of `emulate`, whose system was made by Python
        for name, value in figures.items():
            _put(document["system"], name, value)
    return Setting(changed, options, toml_text(document | options.tables()))


def _check_ingest(stored: Run) -> None:
    """Raises InputError for a Program whose ingest cannot be timed again: earlier layouts had its figures in labels."""
    if stored.schema_version < INTERFACES_SINCE and any(
        label.startswith("ingest interface ") for label in stored.program().labels
    ):
        raise InputError(
            f"{stored.path}: its schema_version is {stored.schema_version}, and only from {INTERFACES_SINCE} on can "
            "the ingest of a stored Program be timed again: run it again instead"
        )


def hardware_figures(overrides: Sequence[str], sections: Sequence[str]) -> tuple[dict[str, object], list[str]]:
    """(figures of the system by name, the overrides of other sections). InputError for keys that are in no section."""
    figures: dict[str, object] = {}
    others = []
    for override in overrides:
        key, value = key_and_value(override)
        section, _, name = key.partition(".")
        if section not in sections or not name:
            raise InputError(f"--set {override}: give it as {' or '.join(f'{s}.KEY=VALUE' for s in sections)}")
        if section == "system":
            figures[name] = value
        else:
            others.append(override)
    return figures, others


def timing_options_of(document: dict[str, Any], overrides: Sequence[str], *, origin: str) -> TimingOptions:
    """The options in [timing] and [network] of `document`, in which `overrides` are made first.

    Raises InputError, naming the overrides or else `origin`, for values that do not fit.
    """
    for override in overrides:
        set_value(document, override)
    words = ", ".join(f"--set {override}" for override in overrides)
    timing, network = parse_timing(document, origin=words or origin)
    return TimingOptions(**timing.model_dump(), router=network.router)


def _document(stored: Run) -> dict[str, Any]:
    try:
        return tomllib.loads(stored.config)
    except tomllib.TOMLDecodeError as error:
        raise RecordError(f"{stored.path}: the config in it is not TOML: {error}") from None


def _put(table: dict[str, Any], key: str, value: object) -> None:
    """Set a figure such as "tile_edge.bandwidth" in the tables of [system]."""
    *parents, last = key.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
    table[last] = value
