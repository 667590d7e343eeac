"""Collectives over message sizes: every algorithm beside the contention-free formula and the best possible, as tables
and a plot.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshemu.analysis.table import table
from meshemu.emulator.collective_times import CollectiveTime, collective_times, configured_system
from meshemu.errors import InputError
from meshemu.program.contributions import KINDS
from meshemu.study.output import csv_text, leave, new_figure
from meshemu.units import format_bytes, format_time

if TYPE_CHECKING:  # heavy, and needed only when a picture is made
    from matplotlib.figure import Figure

__all__ = ["CollectiveStudy", "plot", "render", "save", "study_collectives", "to_csv", "to_json"]


@dataclass(frozen=True)
class CollectiveStudy:
    """rows: by kind, then size, then algorithm. about: the system in words."""

    about: str
    rows: tuple[CollectiveTime, ...]


def study_collectives(
    system_name: str,
    sizes_bytes: Sequence[int],
    *,
    kinds: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    comm: Any = None,
) -> CollectiveStudy:
    """Time every algorithm of `kinds` (None: all) for each size over all live devices of a preset.

    overrides: "system.KEY=VALUE" and "network.KEY=VALUE". Raises InputError for what does not fit, and for a size or a
    kind given twice.
    """
    for option, values in (("--sizes", list(map(format_bytes, sizes_bytes))), ("--kinds", list(kinds or ()))):
        for value in values:
            if values.count(value) > 1:
                raise InputError(f"{option} {value}: given {values.count(value)} times")
    system, router = configured_system(system_name, overrides)
    wanted = KINDS if kinds is None else kinds
    rows = collective_times(system, sorted(sizes_bytes), kinds=wanted, router=router, comm=comm)
    routers = "" if router is None else f"; simulated with routers: {router.describe()}"
    return CollectiveStudy(f"{system_name}: {system.rows} x {system.cols} devices{routers}", tuple(rows))


def render(study: CollectiveStudy) -> str:
    """One table per collective, the fastest algorithm for each size marked."""
    sections = [study.about]
    for kind, rows in groupby(study.rows, key=lambda row: row.kind):
        cells = []
        for _, sized in groupby(rows, key=lambda row: row.size_bytes):
            group = list(sized)
            times = [row.simulated_ps for row in group if row.simulated_ps is not None]
            cells += [_cells(row, row.simulated_ps == min(times, default=None)) for row in group]
        head = ["size", "algorithm", "simulated", "formula", "bound", "over bound", "messages", ""]
        sections.append(f"{kind}\n{table(head, cells, left=2, right_to=7)}")
    sections.append(
        "formula: without contention. bound: what any algorithm takes on these links at least (the bytes that a\n"
        "participant must send and receive over all its links, or the hops between the farthest two). *: the fastest."
    )
    return "\n\n".join(sections)


def to_json(study: CollectiveStudy) -> str:
    """The study as JSON."""
    return json.dumps(asdict(study), indent=2)


def to_csv(study: CollectiveStudy) -> str:
    """One row for each collective, size and algorithm."""
    return csv_text([asdict(row) for row in study.rows])


def save(study: CollectiveStudy, into: Path) -> list[Path]:
    """collectives.txt, .json, .csv and .png in a folder. Raises InputError if they cannot be written."""
    texts = {"txt": render(study), "json": to_json(study), "csv": to_csv(study)}
    named = {f"collectives.{suffix}": text for suffix, text in texts.items()}
    return leave(into, named, {"collectives.png": plot(study)})


def plot(study: CollectiveStudy) -> "Figure":
    """Time over size of every algorithm, one panel per collective: simulated solid, formula dotted, the bound grey."""
    kinds = list(dict.fromkeys(row.kind for row in study.rows))
    algorithms = list(dict.fromkeys(row.algorithm for row in study.rows))
    n_cols = min(3, len(kinds))
    n_rows = -(-len(kinds) // n_cols)
    figure = new_figure(4.2 * n_cols + 0.6, 3.4 * n_rows + 0.8)
    panels = figure.subplots(n_rows, n_cols, squeeze=False, sharex=True).ravel()
    for panel, kind in zip(panels, kinds, strict=False):
        of_kind = [row for row in study.rows if row.kind == kind]
        bound = sorted({(row.size_bytes, row.bound_ps) for row in of_kind})
        panel.plot([s for s, _ in bound], [ps / 1e6 for _, ps in bound], color="grey", linewidth=4, alpha=0.4)
        for number, algorithm in enumerate(algorithms):
            rows = [row for row in of_kind if row.algorithm == algorithm]
            timed = [(r.size_bytes, r.simulated_ps, r.model_ps) for r in rows if r.simulated_ps and r.model_ps]
            sizes = [size for size, _, _ in timed]
            panel.plot(sizes, [ps / 1e6 for _, ps, _ in timed], f"C{number}o-", label=algorithm, markersize=3)
            panel.plot(sizes, [ps / 1e6 for _, _, ps in timed], f"C{number}:")
        panel.set(xscale="log", yscale="log", title=kind, xlabel="size of the buffer in B", ylabel="time in us")
        panel.grid(linewidth=0.4, alpha=0.6)
    for panel in panels[len(kinds) :]:
        panel.set_axis_off()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(algorithms), fontsize=9)
    figure.suptitle(f"{study.about}; dotted: formula, grey: bound", fontsize=10)
    return figure


def _cells(row: CollectiveTime, fastest: bool) -> list[str]:
    start = [format_bytes(row.size_bytes), row.algorithm]
    if row.simulated_ps is None or row.model_ps is None:
        return [*start, "-", "-", format_time(row.bound_ps), "-", "-", row.fault]
    over = f"{row.simulated_ps / row.bound_ps:.2f}" if row.bound_ps else "-"
    times = [format_time(ps) for ps in (row.simulated_ps, row.model_ps, row.bound_ps)]
    return [*start, *times, over, f"{row.n_messages:,}", "*" if fastest else ""]
