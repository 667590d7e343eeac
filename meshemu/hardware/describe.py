"""Machines in words: the presets side by side, and one preset with every figure, its source and its grade."""

from meshemu.hardware.figure import GRADES
from meshemu.hardware.presets import preset, preset_names
from meshemu.hardware.published import TOTALS
from meshemu.hardware.system import System
from meshemu.units import format_bytes, format_flops

__all__ = ["describe_system", "list_systems", "total"]


def list_systems() -> str:
    """A table with one line per preset."""
    header = ("system", "tiles", "dies", "nodes", "devices", "peak bf16", "peak fp32", "SRAM", "what it is")
    return _table([header, *(_line(name) for name in preset_names())])


def describe_system(name: str) -> str:
    """Every figure of a preset with source and grade, the alternatives, and published totals beside the model's.

    InputError lists the presets if there is none of this name.
    """
    known = preset(name)
    system = System.preset(name)
    figures: list[tuple[str, ...]] = [("figure", "value", "grade", "source"), *(
        (key, figure.text(), figure.grade, figure.source) for key, figure in system.figures()
    )]
    notes = [f"  {key}: {figure.note}" for key, figure in system.figures() if figure.note]
    choices = [
        f"  {choice} = {option}{' (default)' if option == next(iter(options)) else ''}: "
        + ", ".join(f"{key} {figure.text()} ({figure.grade}, {figure.source})" for key, figure in figures_of_option)
        for choice, options in known.alternatives.items()
        for option, figures_of_option in options.items()
    ]
    units = ", ".join(level.unit for level in system.levels)
    parts = [
        f"{name}: {known.summary}. {system.rows} x {system.cols} devices ({system.devices}s, {system.n_alive} alive); "
        f"devices may be {units}.",
        _table(figures),
        "Notes\n" + "\n".join(notes),
        "Figures to choose between (figures = {...})\n" + "\n".join(choices),
    ]
    if checks := _checks(name, system):
        parts.append("Published totals\n" + checks)
    used = {figure.grade for _, figure in system.figures()}
    parts.append("Grades\n" + "\n".join(f"  {grade}: {text}" for grade, text in GRADES.items() if grade in used))
    return "\n\n".join(parts)


def total(system: System, quantity: str) -> int | None:
    """What the model has for a quantity of `published.Total`; None for those that need the links of the mesh."""
    device = system.device
    if device is None:
        return None
    if quantity.startswith("matrix_"):
        return system.n_alive * device.matrix_flops_per_s[quantity.removeprefix("matrix_")]
    if quantity == "sram":
        return system.n_alive * device.sram_bytes
    if quantity == f"{system.levels[0].unit}s":
        return system.n_alive * device.n_nodes
    return system.count(quantity)


def _line(name: str) -> tuple[str, ...]:
    system = System.preset(name)
    peaks = [total(system, f"matrix_{number_format}") for number_format in ("bf16", "fp32")]
    counts = [str(total(system, quantity) or "-") for quantity in ("tiles", "dies", "nodes")]
    devices = f"{system.rows} x {system.cols} {system.devices}s"
    rates = [format_flops(peak or 0) for peak in peaks]
    return (name, *counts, devices, *rates, format_bytes(total(system, "sram") or 0), preset(name).summary)


def _checks(name: str, system: System) -> str:
    rows: list[tuple[str, ...]] = [("quantity", "model", "published", "source")]
    for known in TOTALS:
        value = total(system, known.quantity) if known.preset == name else None
        if value is not None:
            figure = known.figure
            rows.append((known.quantity, figure.with_value(value).text(), figure.text(), figure.source))
    return _table(rows) if len(rows) > 1 else ""


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
