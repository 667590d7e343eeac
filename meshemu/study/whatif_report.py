"""What a what-if found, as tables for people, JSON, CSV and a tornado plot."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshemu.analysis.table import percent, table
from meshemu.study.capacity_text import capacity_text
from meshemu.study.output import csv_text, leave, new_figure
from meshemu.study.whatif import DiscreteRow, Point, WhatIf
from meshemu.units import format_time

if TYPE_CHECKING:  # heavy, and needed only when a picture is made
    from matplotlib.figure import Figure

__all__ = ["render", "save", "to_csv", "to_json", "tornado"]

FEWEST = 0.0005
"""Effects under this share of the step are not worth a word."""
_MOST_PAIRS = 10
_AS_STORED = (
    "Messages are routed anew; collectives keep the schedules that the run chose on its own mesh "
    "(meshemu run --set system.wrap=... chooses again)."
)
_TOPOLOGY_COLOUR = "C4"
_PARTS = {
    "compute_ps": "compute",
    "combine_ps": "combining",
    "latency_ps": "latency",
    "serialisation_ps": "bytes on links",
    "waiting_ps": "waiting",
    "ingest_ps": "ingest",
    "spill_ps": "spill",
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
    if study.topology:
        found = _discrete(study, study.topology, "how edges are joined")
        sections.append(f"Topology, one change at a time\n{found}\n{_AS_STORED}")
    if study.capacity is not None:
        sections.append(capacity_text(study.capacity, study.baseline.time_ps))
    if study.events:
        sections.append(f"What may go wrong\n{_discrete(study, study.events, 'where')}")
    return "\n\n".join(sections)


def to_json(study: WhatIf) -> str:
    """The study as JSON; factors are keys of points."""
    return json.dumps(asdict(study), indent=2)


def to_csv(study: WhatIf) -> str:
    """One row for each parameter and factor, with the parts of the critical path; then one for each change that is made
    or not, without factor and elasticities.
    """
    scaled = [
        (row.name, factor, point, (row.elasticity, row.elasticity_more, row.elasticity_less))
        for row in study.rows
        for factor, point in row.points.items()
    ]
    made = [
        (row.name, None, row.point, (None, None, None))
        for row in (*study.topology, *study.events)
        if row.point is not None
    ]
    return csv_text([
        {
            "parameter": name,
            "factor": factor,
            "time_ps": point.time_ps,
            "time_over_baseline": point.time_ps / study.baseline.time_ps,
            **dict(zip(("elasticity", "elasticity_more", "elasticity_less"), elasticities, strict=True)),
            **point.parts_ps,
            "bound_by": point.bound_by,
        }
        for name, factor, point, elasticities in (*scaled, *made)
    ])


def save(study: WhatIf, into: Path) -> list[Path]:
    """whatif.txt, whatif.json, whatif.csv and tornado.png in a folder. Raises InputError if they cannot be written."""
    texts = {"whatif.txt": render(study), "whatif.json": to_json(study), "whatif.csv": to_csv(study)}
    return leave(into, texts, {"tornado.png": tornado(study)})


def tornado(study: WhatIf) -> "Figure":
    """A tornado plot: the change of the step's time by each parameter and factor, largest effect on top; below, by
    another topology, and in grey by what may go wrong.
    """
    rows = list(reversed(study.rows))
    groups = [(study.topology, _TOPOLOGY_COLOUR), (study.events, "grey")]
    discrete = [(row.name, row.point, colour) for of, colour in groups for row in of if row.point is not None][::-1]
    figure = new_figure(8, 1.4 + 0.36 * (len(rows) + len(discrete)))
    axes = figure.add_subplot()
    base = study.baseline.time_ps
    changes = [100 * (point.time_ps / base - 1) for _, point, _ in discrete]
    axes.barh(range(-len(discrete), 0), changes, height=0.6, color=[colour for *_, colour in discrete])
    height = 0.8 / len(study.scales)
    for number, factor in enumerate(study.scales):
        changes = [100 * (row.points[factor].time_ps / base - 1) for row in rows]
        at = [place + 0.4 - height * (number + 0.5) for place in range(len(rows))]
        axes.barh(at, changes, height=height, label=f"x {factor:g}", color=f"C{number}")
    axes.axvline(0, color="black", linewidth=0.8)
    names = [*(name for name, *_ in discrete), *(row.name for row in rows)]
    axes.set_yticks(range(-len(discrete), len(rows)), names)
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


def _discrete(study: WhatIf, rows: Sequence[DiscreteRow], about: str) -> str:
    base = study.baseline.time_ps
    cells = []
    for row in rows:
        timed = ["-", "-"] if row.point is None else [format_time(row.point.time_ps), _change(row.point, base)]
        cells.append([row.name, *timed, row.about, row.why])
    return table(["what", "step", "change", about, "why not"], cells, right_to=3)


def _change(point: Point, base_ps: int) -> str:
    return f"{100 * (point.time_ps / base_ps - 1):+.1f} %"


def _parts(point: Point) -> str:
    shares: Mapping[str, Any] = point.parts_ps
    return "critical path: " + ", ".join(
        f"{words} {percent(shares[name], point.time_ps)}" for name, words in _PARTS.items() if shares[name]
    )
