"""`meshemu retime`: time a stored run again on changed hardware, without torch and without the model."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from meshemu.emulator.recording import REMARKS, Recorder
from meshemu.emulator.timed_step import TimedStep, TimingOptions, time_step
from meshemu.errors import InputError
from meshemu.hardware import System
from meshemu.record.reader import Run, open_run
from meshemu.runtime.mpi import as_comm
from meshemu.units import size_bytes

__all__ = ["retime", "sorted_overrides"]

VALID: Mapping[str, Callable[[Any], bool]] = {
    "routing": lambda value: value in ("xy", "yx"),
    "timeline_bins": lambda value: type(value) is int and value >= 1,
}
CHANGEABLE = ("packet_bytes", *VALID)


def retime(
    path: str | Path, overrides: Sequence[str], output: str | Path, *, overwrite: bool = False, comm: Any = None
) -> TimedStep:
    """Time the Program stored in `path` on its system with `overrides` applied, and write the result to `output`.

    overrides: "system.KEY=VALUE" as in a configuration, or "timing.packet_bytes=...", "timing.routing=...",
    "timing.timeline_bins=...". Losses are carried over from the stored run. Raises InputError for an unknown key or a
    system of another shape.
    """
    ranks = as_comm(comm)
    stored = open_run(path)
    document = tomllib.loads(stored.config)
    system = System.from_json(stored.system_json)
    hardware, timing = sorted_overrides(overrides)
    changed = system.override(hardware) if hardware else system
    if (changed.rows, changed.cols) != (system.rows, system.cols):
        raise InputError(
            f"the stored Program is for {system.rows} x {system.cols} devices, the changed system has "
            f"{changed.rows} x {changed.cols}: run it again instead"
        )
    options = replace(_stored_options(document), **timing)
    timed = time_step(stored.program(), changed, stored.column("/results/devices/peak_memory_bytes"), options, ranks)
    recorder = Recorder.open(
        output, timed, ranks, config_text=stored.config, n_steps=max(stored.n_steps, 1), overwrite=overwrite,
        remarks=[text for text in stored.assumptions if text.startswith(REMARKS)],
    )  # fmt: skip
    _copy_steps(stored, recorder)
    recorder.finish({})
    return timed


def _copy_steps(stored: Run, recorder: Recorder) -> None:
    """What the maths gave does not depend on the machine's speed: losses, accuracies and digests stay."""
    for row in stored.steps.itertuples():
        recorder.step(
            loss=float(row.loss),
            accuracy=float(row.accuracy),
            parameters_sha256=str(row.parameters_sha256),
            wall_s=0.0,
        )
    if not stored.n_steps:
        recorder.step(loss=float("nan"), accuracy=float("nan"), parameters_sha256="", wall_s=0.0)


def _stored_options(document: Mapping[str, Any]) -> TimingOptions:
    known = {field.name for field in fields(TimingOptions)}
    return TimingOptions(**{key: value for key, value in document.get("timing", {}).items() if key in known})


def sorted_overrides(overrides: Sequence[str]) -> tuple[dict[str, object], dict[str, Any]]:
    """(overrides of the system, changes of the timing options). Raises InputError for what is neither."""
    hardware: dict[str, object] = {}
    timing: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        section, _, name = key.strip().partition(".")
        if not equals or section not in ("system", "timing") or not name:
            raise InputError(f"--set {override}: give it as system.KEY=VALUE or timing.KEY=VALUE")
        value = _value(text.strip())
        if section == "system":
            hardware[name] = value
        elif name == "packet_bytes":
            timing[name] = size_bytes(value, key=key)
        elif name in VALID and VALID[name](value):
            timing[name] = value
        elif name in CHANGEABLE:
            raise InputError(f"--set {override}: {value!r} is no value of timing.{name}")
        else:
            raise InputError(f"--set {override}: timing.{name} cannot be changed here; valid: {', '.join(CHANGEABLE)}")
    return hardware, timing


def _value(text: str) -> Any:
    """TOML where it is TOML, else text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
