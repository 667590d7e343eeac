"""What a what-if found, as tables for people, JSON, CSV and a tornado plot."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshemu.analysis.table import percent, table
from meshemu.study.output import csv_text, leave, new_figure
from meshemu.study.whatif import Point, WhatIf
from meshemu.units import format_time

if TYPE_CHECKING:  # heavy, and needed only when a picture is made
    from matplotlib.figure import Figure

__all__ = ["render", "save", "to_csv", "to_json", "tornado"]

FEWEST = 0.0005
"""Effects under this share of the step are not worth a word."""
_MOST_PAIRS = 10
_PARTS = {
    "compute_ps": "compute",
    "combine_ps": "combining",
    "latency_ps": "latency",
    "serialisation_ps": "bytes on links",
    "waiting_ps": "waiting",
}


def render(study: WhatIf) -> str:
    """All of it as text."""
    base = study.baseline
    sections = [
        f"{study.path}: a step takes {format_time(base.time_ps)}, bound by {base.bound_by}\n  {_parts(base)}",
        f"Parameters, largest effect first\n{_parameters(study)}",
        "Elasticity: -1 means that 1 % more makes the step 1 % faster; at 5 % more / 5 % less beside it.",
    ]
    if study.next is not None:
        sections.append(_next(study))
    else:
        sections.append("No parameter makes the step faster by itself.")
    if study.pairs:
        sections.append(f"Two at a time, strongest interaction first\n{_pairs(study)}")
    if study.events:
        sections.append(f"What may go wrong\n{_events(study)}")
    return "\n\n".join(sections)


def to_json(study: WhatIf) -> str:
    """The study as JSON; factors are keys of points."""
    return json.dumps(asdict(study), indent=2)


def to_csv(study: WhatIf) -> str:
    """One row for each parameter and factor, with the parts of the critical path."""
    return csv_text([
        {
            "parameter": row.name,
            "factor": factor,
            "time_ps": point.time_ps,
            "time_over_baseline": point.time_ps / study.baseline.time_ps,
            "elasticity": row.elasticity,
            "elasticity_more": row.elasticity_more,
            "elasticity_less": row.elasticity_less,
            **point.parts_ps,
            "bound_by": point.bound_by,
        }
        for row in study.rows
        for factor, point in row.points.items()
    ])


def save(study: WhatIf, into: Path) -> list[Path]:
    """whatif.txt, whatif.json, whatif.csv and tornado.png in a folder. Raises InputError if they cannot be written."""
    texts = {"whatif.txt": render(study), "whatif.json": to_json(study), "whatif.csv": to_csv(study)}
    return leave(into, texts, {"tornado.png": tornado(study)})


def tornado(study: WhatIf) -> "Figure":
    """A tornado plot: the change of the step's time by each parameter and factor, largest effect on top; below, in
    grey, by what may go wrong.
    """
    rows = list(reversed(study.rows))
    broken = [(row.name, row.point) for row in reversed(study.events) if row.point is not None]
    figure = new_figure(8, 1.4 + 0.36 * (len(rows) + len(broken)))
    axes = figure.add_subplot()
    base = study.baseline.time_ps
    places = range(-len(broken), 0)
    axes.barh(places, [100 * (point.time_ps / base - 1) for _, point in broken], height=0.6, color="grey")
    height = 0.8 / len(study.scales)
    for number, factor in enumerate(study.scales):
        changes = [100 * (row.points[factor].time_ps / base - 1) for row in rows]
        at = [place + 0.4 - height * (number + 0.5) for place in range(len(rows))]
        axes.barh(at, changes, height=height, label=f"x {factor:g}", color=f"C{number}")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(-len(broken), len(rows)), [*(name for name, _ in broken), *(row.name for row in rows)])
    axes.set_xlabel("change of the time of a step in %")
    axes.set_title(f"{Path(study.path).name}: {format_time(base)} a step", fontsize=10)
    axes.grid(axis="x", linewidth=0.4, alpha=0.6)
    axes.legend(title="parameter", loc="lower right")
    return figure


def _parameters(study: WhatIf) -> str:
    base = study.baseline.time_ps
    head = ["parameter", *(f"x {factor:g}" for factor in study.scales), "elasticity", "more / less", "then bound by"]
    cells = []
    for row in study.rows:
        best = min(row.points.values(), key=lambda point: point.time_ps)
        moved = best.bound_by if best.time_ps < base * (1 - FEWEST) else "-"
        cells.append([
            row.name,
            *(_change(point, base) for point in row.points.values()),
            f"{row.elasticity:+.3f}",
            f"{row.elasticity_more:+.3f} / {row.elasticity_less:+.3f}",
            moved,
            row.about,
        ])
    return table([*head, "what it is"], cells, right_to=len(head) - 1)


def _next(study: WhatIf) -> str:
    found = study.next
    assert found is not None
    base = study.baseline.time_ps
    shown = [f"{name} {value:+.3f}" for name, value in found.elasticities.items() if abs(value) >= FEWEST][:4]
    return (
        f"With {found.name} x {found.factor:g} a step takes {format_time(found.point.time_ps)} "
        f"({_change(found.point, base)}), bound by {found.point.bound_by}\n  {_parts(found.point)}\n"
        f"  elasticities then: {', '.join(shown) or 'none'}"
    )


def _pairs(study: WhatIf) -> str:
    base = study.baseline.time_ps
    head = ["pair", "each alone", "together", "if effects multiplied", "interaction"]
    cells = []
    for row in study.pairs[:_MOST_PAIRS]:
        names = " and ".join(f"{name} x {factor:g}" for name, factor in zip(row.names, row.factors, strict=True))
        alone = ", ".join(f"{100 * (ps / base - 1):+.1f} %" for ps in row.alone_ps)
        expected = row.time_ps / base / exp(row.interaction)
        together = f"{100 * (row.time_ps / base - 1):+.1f} %"
        cells.append([names, alone, together, f"{100 * (expected - 1):+.1f} %", f"{row.interaction:+.4f}"])
    return table(head, cells)


def _events(study: WhatIf) -> str:
    base = study.baseline.time_ps
    cells = [
        [row.name, "-" if row.point is None else _change(row.point, base), row.about, row.why]
        for row in study.events
    ]
    return table(["what", "step", "where", "why not"], cells, right_to=2)


def _change(point: Point, base_ps: int) -> str:
    return f"{100 * (point.time_ps / base_ps - 1):+.1f} %"


def _parts(point: Point) -> str:
    shares: Mapping[str, Any] = point.parts_ps
    return "critical path: " + ", ".join(
        f"{words} {percent(shares[name], point.time_ps)}" for name, words in _PARTS.items() if shares[name]
    )
