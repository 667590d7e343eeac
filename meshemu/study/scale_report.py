"""What a scaling study found, as tables, JSON, CSV and a plot."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from meshemu.analysis.table import percent, table
from meshemu.study.output import csv_text, leave, new_figure
from meshemu.study.scale import ScaleRow, ScaleStudy
from meshemu.study.scaling_law import Law
from meshemu.study.where import PARTS
from meshemu.units import format_time

if TYPE_CHECKING:  # heavy, and needed only when a picture is made
    from matplotlib.figure import Figure

__all__ = ["plot", "render", "save", "to_csv", "to_json"]


def render(study: ScaleStudy) -> str:
    """A table and the law of each mode."""
    sections = [f"{study.title}: one step of the emulated system, timed only"]
    for mode in study.laws:
        rows = [row for row in study.rows if row.mode == mode]
        about = "the batch stays" if mode == "strong" else "the batch grows with the devices"
        sections.append(f"{mode.capitalize()} scaling: {about}\n{_table(rows)}\n{_law(study.laws[mode])}")
    return "\n\n".join(sections)


def to_json(study: ScaleStudy) -> str:
    """The study as JSON."""
    return json.dumps(asdict(study), indent=2)


def to_csv(study: ScaleStudy) -> str:
    """One row for each mode and number of devices."""
    rows = []
    for row in study.rows:
        values = {key: value for key, value in vars(row).items() if key not in ("where", "fault")}
        parts = {name: None if row.where is None else getattr(row.where, name) for name in PARTS}
        rows.append(values | parts | {"fault": row.fault})
    return csv_text(rows)


def save(study: ScaleStudy, into: Path) -> list[Path]:
    """scale.txt, .json, .csv and .png in a folder. Raises InputError if they cannot be written."""
    texts = {"txt": render(study), "json": to_json(study), "csv": to_csv(study)}
    named = {f"scale.{suffix}": text for suffix, text in texts.items()}
    return leave(into, named, {"scale.png": plot(study)})


def plot(study: ScaleStudy) -> "Figure":
    """For each mode the speedup beside the ideal, and the parts of a step, over the number of devices."""
    modes = list(study.laws)
    figure = new_figure(10, 3.6 * len(modes))
    panels = figure.subplots(len(modes), 2, squeeze=False)
    for (speed, parts), mode in zip(panels, modes, strict=True):
        rows = [row for row in study.rows if row.mode == mode and row.where is not None]
        devices = [row.devices for row in rows]
        if not rows:
            continue
        speed.plot(devices, [n / devices[0] for n in devices], color="grey", label="ideal")
        speed.plot(devices, [row.speedup for row in rows], "o-", label="emulated")
        law, first = study.laws[mode], rows[0]
        if law is not None and first.step_ps is not None:
            fitted = [
                first.step_ps / law.time_ps(row.devices) * row.batch_size / first.batch_size for row in rows
            ]
            speed.plot(devices, fitted, "--", label="fitted law")
        speed.set(xscale="log", yscale="log")
        speed.set_xticks(devices, [str(n) for n in devices])
        speed.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        speed.set(xlabel="devices", ylabel="speed-up", title=f"{mode} scaling")
        speed.legend()
        names = [name for name in PARTS if any(getattr(row.where, name) for row in rows)]
        stacks = [[getattr(row.where, name) / 1e6 for row in rows] for name in names]
        base = [0.0] * len(rows)
        for name, stack in zip(names, stacks, strict=True):
            parts.bar(range(len(rows)), stack, bottom=base, label=PARTS[name])
            base = [low + high for low, high in zip(base, stack, strict=True)]
        parts.set_xticks(range(len(rows)), [str(n) for n in devices])
        parts.set(xlabel="devices", ylabel="time of a step in us", title="where it goes")
        parts.legend(fontsize=8)
    figure.suptitle(study.title, fontsize=10)
    return figure


def _table(rows: Sequence[ScaleRow]) -> str:
    names = [name for name in PARTS if any(row.where is not None and getattr(row.where, name) for row in rows)]
    head = ["devices", "mesh", "batch", "step", "speed-up", "efficiency", *(PARTS[name] for name in names), "plan"]
    cells = []
    for row in rows:
        if row.where is None or row.speedup is None or row.efficiency is None or row.step_ps is None:
            cells.append([f"{row.devices:,}", *["-"] * (len(head) - 2), row.fault])
            continue
        parts = [percent(getattr(row.where, name), row.step_ps) for name in names]
        mesh, step = f"{row.rows} x {row.cols}", format_time(row.step_ps)
        speed = [f"{row.speedup:.2f}", f"{100 * row.efficiency:.1f} %"]
        cells.append([f"{row.devices:,}", mesh, f"{row.batch_size:,}", step, *speed, *parts, row.plan])
    return table(head, cells, left=0, right_to=len(head) - 1)


def _law(law: Law | None) -> str:
    if law is None:
        return "  law: too few points were timed for a fit"
    formulas = {"serial": "", "parallel": " / n", "communication": " sqrt(n)"}
    terms = " + ".join(f"{format_time(round(value))}{formulas[name]}" for name, (value, _, _) in law.terms.items())
    ranges = ", ".join(
        f"{name} {format_time(round(low))} to {format_time(round(high))}"
        for name, (_, low, high) in law.terms.items()
    )
    words = "" if law.held_out_error is None else f"; the largest, left out, is predicted {law.held_out_error:+.1%} off"
    return (
        f"  law: T(n) = {terms}, at most {law.error:.1%} off{words}\n"
        f"  90 % of bootstrap samples: {ranges}"
    )
