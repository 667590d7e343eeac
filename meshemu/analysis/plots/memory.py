"""What devices hold: the fullest one over the step, by category, and the most of each on the mesh."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from meshemu.analysis.palette import CYCLE, device_scale
from meshemu.analysis.sheet import sheet
from meshemu.cost.memory_use import MEMORY_CATEGORIES, MemoryUse
from meshemu.errors import RecordError
from meshemu.hardware import System
from meshemu.mesh import Mesh
from meshemu.record import Run
from meshemu.units import format_bytes

__all__ = ["draw_memory"]

_MEGABYTE = 1e6
_DEAD = "#9aa1ab"


def draw_memory(run: Run) -> Figure:
    """Above, where it is recorded, bytes held over the step; below, peaks of all devices.

    Raises:
        RecordError: the memory of devices is not known.
    """
    mesh, system = run.mesh(), System.from_json(run.system_json)
    peak_bytes = run.column("/results/devices/peak_memory_bytes").astype(float)
    known = mesh.alive & (peak_bytes >= 0)
    if not known.any():
        raise RecordError(f"{run.path}: the peak memory of devices is not recorded")
    use = run.memory_use()
    over_time = use is not None and len(use.points) > 1
    has = system.device.sram_bytes if system.device is not None else 0
    most = peak_bytes[known].max()
    title = f"Memory of devices, {system.name}: at most {format_bytes(int(most))}"
    if has:
        title += f" of {format_bytes(has)} ({100 * most / has:.3g} %)"
    width = 10.0 if over_time else max(6.5, min(10.0, 3.0 + 0.6 * mesh.cols))
    map_height = min(3.4 if over_time else 6.0, max(1.8, 1.2 + (width - 2.2) * mesh.rows / mesh.cols))
    figure, axes = sheet(title, width, map_height + (4.2 if over_time else 0.4), rows=1 + over_time)
    if use is not None and over_time:
        _draw_live(axes[0], use, mesh.place(use.busiest))
    _draw_peaks(figure, axes[-1], mesh, np.where(known, peak_bytes, np.nan), system.devices)
    return figure


def _draw_live(axes: Axes, use: MemoryUse, place: str) -> None:
    """Categories on top of each other, those that hold nothing left out."""
    held = [i for i in range(len(MEMORY_CATEGORIES)) if use.live_bytes[:, i].any()]
    live = np.concatenate([use.live_bytes, use.live_bytes[-1:]]) / _MEGABYTE  # so that the last one has a width too
    axes.stackplot(
        np.arange(len(live)), *(live[:, i] for i in held), step="post",
        labels=[MEMORY_CATEGORIES[i] for i in held], colors=[CYCLE[i] for i in held],
    )  # fmt: skip
    axes.set_xlim(0, len(use.points))
    axes.set_ylim(0, None)
    axes.set_xlabel(f"instruction of the step on {place}, which holds most")
    axes.set_ylabel("held (MB)")
    axes.legend(fontsize=9, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=6)


def _draw_peaks(figure: Figure, axes: Axes, mesh: Mesh, peak_bytes: NDArray[np.float64], unit: str) -> None:
    """Devices on their grid; what is not known is white, and dead devices are crossed."""
    scale = device_scale().with_extremes(bad="#ffffff")
    grid = peak_bytes.reshape(mesh.rows, mesh.cols) / _MEGABYTE
    image = axes.imshow(grid, cmap=scale, vmin=0, interpolation="nearest")
    axes.grid(visible=False)
    axes.set_xlabel(f"column of {unit}s")
    axes.set_ylabel("row")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(10, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    row, col = np.nonzero(~mesh.alive.reshape(mesh.rows, mesh.cols))
    axes.scatter(col, row, marker="x", color=_DEAD, s=min(60, 6000 / mesh.n_devices))
    bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.05, anchor=(0, 0.5), panchor=(0, 0.5))
    bar.set_label("peak memory (MB)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.ax.yaxis.set_major_locator(MaxNLocator(4))
