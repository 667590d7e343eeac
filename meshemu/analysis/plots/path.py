"""The critical path of the recorded step: which part took how much of each stretch of time."""

import numpy as np
from matplotlib.figure import Figure

from meshemu.analysis.palette import PARTS as COLOURS
from meshemu.analysis.path_strip import PARTS, PathStrip, part_names, path_strip
from meshemu.analysis.sheet import sheet, time_axis
from meshemu.hardware import System
from meshemu.record import Run
from meshemu.units import format_time

__all__ = ["draw_path"]

_BINS = 120


def draw_path(run: Run) -> Figure:
    """Shares of parts over time, stacked, with totals; RecordError without recorded op times."""
    strip = path_strip(run)
    total_ps = strip.path.total_ps
    step = run.recorded_steps[0]
    title = f"Critical path, {System.from_json(run.system_json).name}, step {step}: {format_time(total_ps)}"
    figure, [axes] = sheet(title, 10, 4)
    edges = np.linspace(0, total_ps, _BINS + 1)
    base = np.zeros(_BINS)
    for part, name in part_names(run).items():
        share = 100 * _time_per_bin(strip, part, edges) / max(edges[1], 1e-9)
        taken_ps = strip.total_ps(part)
        label = f"{name}: {format_time(taken_ps)} ({100 * taken_ps / max(total_ps, 1):.1f} %)"
        axes.stairs(base + share, edges, baseline=base, fill=True, color=COLOURS[part], label=label)
        base = base + share
    axes.set_ylim(0, 100)
    axes.set_ylabel("share of the time (%)")
    time_axis(axes, total_ps)
    figure.legend(loc="outside lower left", ncols=2, fontsize=9, frameon=False)
    return figure


def _time_per_bin(strip: PathStrip, part: str, edges: np.ndarray) -> np.ndarray:
    """Time of a part between neighbouring edges."""
    of_part = strip.part == PARTS.index(part)
    start, end = strip.start_ps[of_part].astype(float), strip.end_ps[of_part].astype(float)
    if not len(start):
        return np.zeros(len(edges) - 1)
    before = np.concatenate([[0.0], np.cumsum(end - start)])
    # Time of the part up to an edge: all pieces that began before it, less what the last of them has beyond it.
    begun = np.searchsorted(start, edges, side="left")
    beyond = np.where(begun > 0, np.maximum(end[np.maximum(begun - 1, 0)] - edges, 0), 0)
    return np.diff(before[begun] - beyond)
