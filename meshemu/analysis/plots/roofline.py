"""Classes of ops under the roofs of one device."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from meshemu.analysis.findings import cost_options
from meshemu.analysis.palette import CYCLE
from meshemu.analysis.roofline import ClassRoof, class_roofs
from meshemu.analysis.roofs import Roof, roofs
from meshemu.analysis.sheet import INK, sheet
from meshemu.errors import RecordError
from meshemu.hardware import System
from meshemu.record import Run
from meshemu.units import format_bandwidth, format_flops, format_time

__all__ = ["draw_roofline"]

_MOST_NAMED = 14
_CLOSE = 0.2, 0.25  # decades of intensity and of rate: numbers of points that lie closer would hide each other
_LARGEST_AREA, _LEAST_AREA = 420.0, 14.0  # square points, in proportion to the time that a class takes


def draw_roofline(run: Run) -> Figure:
    """Achieved rate over intensity; the classes that take most time by number, with a list beside.

    Raises:
        RecordError: no op times are recorded, or no op computes.
    """
    points = _points(run)
    if not points:
        raise RecordError(f"{run.path}: no op computes anything on a device that is known, so there is no roofline")
    above = roofs(run)
    system = System.from_json(run.system_json)
    figure, [axes] = sheet(f"Roofline of one device, {system.name} ({system.devices}s)", 10, 5.6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    total_ps = sum(point.device_ps for point in points)
    bounds = sorted({point.bound for point in points})
    for number, bound in enumerate(bounds):
        bounded = [point for point in points if point.bound == bound]
        axes.scatter(
            [point.intensity_flop_per_byte or 0.0 for point in bounded],
            [point.achieved_flops_per_s for point in bounded],
            s=[max(_LARGEST_AREA * point.device_ps / total_ps, _LEAST_AREA) for point in bounded],
            color=CYCLE[number % len(CYCLE)], alpha=0.75, edgecolors="white", linewidths=0.6, zorder=3,
        )  # fmt: skip
    low, high = _reach(points, above)
    axes.set_xlim(low, high)
    for roof in above:
        _draw_roof(axes, roof, low, high)
    axes.set_xlabel("intensity (FLOP per byte of the device's memory)")
    axes.set_ylabel("achieved per device (FLOP/s)")
    _name(axes, points, total_ps)
    handles = [Patch(color=CYCLE[i % len(CYCLE)], label=f"bound by {bound}") for i, bound in enumerate(bounds)]
    figure.legend(handles=handles, loc="outside lower left", ncols=5, fontsize=9, frameon=False)
    return figure


def _points(run: Run) -> list[ClassRoof]:
    """Classes of the report that compute and move bytes, the longest first."""
    start_ps, end_ps = run.op_times()
    device = System.from_json(run.system_json).device
    if device is None:
        return []
    found = class_roofs(run.program(), device, end_ps - start_ps, cost_options(run.config))
    return [point for point in found if point.intensity_flop_per_byte]


def _reach(points: Sequence[ClassRoof], above: Sequence[Roof]) -> tuple[float, float]:
    """From the lowest to the highest intensity, with the ridges of the roofs in view."""
    places = [point.intensity_flop_per_byte or 0.0 for point in points]
    slopes = [roof.rate_per_s for roof in above if roof.slope]
    places += [roof.rate_per_s / slope for roof in above if not roof.slope for slope in slopes]
    return min(places) / 3, max(places) * 3


def _draw_roof(axes: Axes, roof: Roof, low: float, high: float) -> None:
    x = np.array([low, high])
    y = roof.rate_per_s * x if roof.slope else np.full(2, float(roof.rate_per_s))
    axes.plot(x, y, color=INK, linewidth=1.2, linestyle="--" if roof.slope else "-", zorder=2)
    figure = format_bandwidth(roof.rate_per_s) if roof.slope else format_flops(roof.rate_per_s)
    at = (low * 1.15, roof.rate_per_s * low * 1.15) if roof.slope else (high / 1.1, float(roof.rate_per_s))
    axes.annotate(
        f"{roof.name}: {figure}", at, xytext=(6, -10) if roof.slope else (0, 4), textcoords="offset points",
        ha="left" if roof.slope else "right", va="top" if roof.slope else "bottom", fontsize=8, color=INK, zorder=4,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5},
    )  # fmt: skip


def _name(axes: Axes, points: Sequence[ClassRoof], total_ps: int) -> None:
    """Numbers at the points and what they stand for beside the axes: names in the picture would hide each other."""
    lines, numbers = [], dict[tuple[float, float], list[str]]()
    for number, point in enumerate(points[:_MOST_NAMED], 1):
        at = (point.intensity_flop_per_byte or 0.0, point.achieved_flops_per_s)
        close = next((other for other in numbers if _is_close(other, at)), at)
        numbers.setdefault(close, []).append(str(number))
        share, mean_ps = 100 * point.device_ps / total_ps, point.device_ps // point.ops
        lines.append(f"{number:>2}  {point.op_class}: {share:.1f} %, {format_time(mean_ps)} an op")
    for at, words in numbers.items():
        axes.annotate(", ".join(words), at, xytext=(5, 4), textcoords="offset points", fontsize=8, color=INK, zorder=5)
    if len(points) > _MOST_NAMED:
        lines.append(f"and {len(points) - _MOST_NAMED} more")
    text = "share of the compute time (area)\n\n" + "\n".join(lines)
    axes.text(1.02, 1, text, transform=axes.transAxes, va="top", fontsize=8, color=INK)


def _is_close(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return bool(np.all(np.abs(np.log10(np.divide(one, other))) < _CLOSE))
