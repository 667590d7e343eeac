"""`meshemu compare-systems`: one step of one model on several machines, timed without running its maths."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from meshemu.analysis.summary import as_dict
from meshemu.analysis.table import percent, table
from meshemu.analysis.verdict import bound_by
from meshemu.config import Config, System, load
from meshemu.emulator.running import run, system_of
from meshemu.errors import InputError
from meshemu.hardware import preset_names
from meshemu.record.reader import open_run
from meshemu.units import format_energy, format_flops, format_time

__all__ = ["SystemRow", "compare_systems", "render", "to_csv", "to_json"]


@dataclass(frozen=True)
class SystemRow:
    """One step on one machine; None for what its figures do not say.

    flops: work of all devices, what several of them compute alike counted each time: plans differ in it.
    fraction_of_peak: work of the step at the peak rates of its number formats, over its time. exposed_ps:
    communication that no compute of the busiest device hides. energy_j: an estimate (`analysis.energy`).
    """

    system: str
    devices: int
    unit: str
    plan: str
    step_ps: int
    flops: int
    achieved_flops_per_s: float
    peak_flops_per_s: int | None
    fraction_of_peak: float | None
    bound_by: str
    exposed_ps: int
    energy_j: float | None


def compare_systems(
    config: str | Path, systems: Sequence[str], *, overrides: Sequence[str] = (), plan: str | None = "auto"
) -> list[SystemRow]:
    """Time one step of the configured model, with its batch, on each of `systems`.

    systems: names of presets; the one of the configuration keeps its changes, others are as published. overrides: as
    for `config.load`. plan: of every system, None for that of the configuration. Raises InputError that names the
    system where the model does not fit it, and for unknown and repeated names before anything is timed.
    """
    valid = preset_names()
    for name in systems:
        if name not in valid:
            raise InputError(f"--systems {name}: unknown system; the presets are {', '.join(valid)}")
        if systems.count(name) > 1:
            raise InputError(f"--systems {name}: named {systems.count(name)} times")
    settings = load(config, overrides)
    changed = [(name, _on_system(settings, name, plan)) for name in systems]
    for name, one in changed:
        _named(name, lambda one=one: system_of(one))
    with TemporaryDirectory(prefix="meshemu-") as folder:
        return [_named(name, lambda name=name, one=one: _row(one, name, Path(folder))) for name, one in changed]


def render(rows: Sequence[SystemRow], title: str) -> str:
    """The rows as a table."""
    head = ["system", "devices", "step", "work", "achieved", "of peak", "exposed comm.", "energy (est.)"]
    head += ["bound by", "plan"]
    cells = [
        [
            row.system,
            f"{row.devices:,} {row.unit}{'s' if row.devices != 1 else ''}",
            format_time(row.step_ps),
            format_flops(row.flops).replace("FLOP/s", "FLOP"),
            format_flops(round(row.achieved_flops_per_s)),
            "-" if row.fraction_of_peak is None else f"{100 * row.fraction_of_peak:.3g} %",
            f"{format_time(row.exposed_ps)} ({percent(row.exposed_ps, row.step_ps)})",
            "-" if row.energy_j is None else format_energy(row.energy_j),
            row.bound_by,
            row.plan,
        ]
        for row in rows
    ]
    note = "Work counts each time what several devices compute alike; energy is rated power x time."
    return f"{title}: one step, timed only\n{table(head, cells, right_to=8)}\n{note}"


def to_json(rows: Sequence[SystemRow]) -> str:
    """The rows as a JSON list of objects."""
    return json.dumps([asdict(row) for row in rows], indent=2)


def to_csv(rows: Sequence[SystemRow]) -> str:
    """The rows as CSV with a header, empty where nothing is known; without a newline at the end."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(SystemRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue().rstrip("\n")


def _on_system(settings: Config, name: str, plan: str | None) -> Config:
    section = settings.system if settings.system.preset == name else System(preset=name)
    training = settings.training.model_copy(update={"steps": 1})
    changes: dict[str, Any] = {"system": section, "training": training}
    return settings.model_copy(update=changes if plan is None else {**changes, "plan": plan})


def _row(settings: Config, name: str, folder: Path) -> SystemRow:
    result = run(settings, folder / f"{name}.h5", execute=False)
    content = as_dict(open_run(result.path))
    step, rate, system = content["last_step"], content["compute_rate"], content["system"]
    return SystemRow(
        system=name,
        devices=system["n_alive"],
        unit=system["devices"],
        plan=result.prepared.plan.describe(),
        step_ps=step["time_ps"],
        flops=int(step["flops"]),
        achieved_flops_per_s=rate["achieved_flops_per_s"],
        peak_flops_per_s=rate["peak_flops_per_s"],
        fraction_of_peak=rate["fraction_of_peak"],
        bound_by=bound_by(content),
        exposed_ps=step["exposed_comm_ps"],
        energy_j=content["energy"]["total_j"],
    )


def _named(name: str, work: Any) -> Any:
    """What `work` returns; its InputError with the name of the system in front."""
    try:
        return work()
    except InputError as error:
        raise type(error)(f"{name}: {error}") from None
