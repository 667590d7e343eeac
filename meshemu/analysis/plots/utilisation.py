"""How much links were in use over the recorded step: all of them as curves, the busiest one by one."""

import numpy as np
from matplotlib.figure import Figure

from meshemu.analysis.heatmap import round_up
from meshemu.analysis.link_use import link_use
from meshemu.analysis.metrics import busiest_links
from meshemu.analysis.palette import CYCLE, UNUSED, link_scale
from meshemu.analysis.sheet import sheet, time_axis
from meshemu.errors import RecordError
from meshemu.hardware import System
from meshemu.record import Run

__all__ = ["draw_utilisation"]

_ROWS = 16


def draw_utilisation(run: Run) -> Figure:
    """Above: mean of each class of links, and the busiest link of each time. Below: the busiest links of the step.

    Raises:
        RecordError: there are no links, or no timeline is recorded.
    """
    use, mesh = link_use(run), run.mesh()
    if not use.n_bins or not mesh.n_links:
        raise RecordError(f"{run.path}: no use of links over time is recorded")
    percent = 100 * use.share
    busiest = busiest_links(run, count=_ROWS)
    title = f"Links in use over the step, {System.from_json(run.system_json).name}"
    figure, [curves, rows] = sheet(title, 10, 3.4 + 0.23 * len(busiest), rows=2)
    curves.stairs(percent.max(axis=1), use.edge_ps, color=CYCLE[4], linewidth=1.3, label="busiest link at the time")
    for number, name in enumerate(mesh.class_names):
        of_class = mesh.link_class == number
        if of_class.any():
            label = f"mean of {np.count_nonzero(of_class):,} {name} links"
            mean = percent[:, of_class].mean(axis=1)
            curves.stairs(mean, use.edge_ps, color=CYCLE[number % 4], linewidth=1.6, label=label)
    curves.set_ylabel("time in use (%)")
    curves.set_ylim(0, None)
    curves.legend(fontsize=9, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    time_axis(curves, int(use.edge_ps[-1]), "")
    shown = np.ma.masked_equal(percent[:, busiest.index].T, 0)
    top = 100 * round_up(float(use.share[:, busiest.index].max()))
    image = rows.pcolormesh(
        use.edge_ps.astype(float), np.arange(len(busiest) + 1) - 0.5, shown,
        cmap=link_scale().with_extremes(bad=UNUSED), vmin=0, vmax=top, rasterized=True,
    )  # fmt: skip
    rows.set_ylim(len(busiest) - 0.5, -0.5)
    rows.set_yticks(range(len(busiest)), [f"{name}  ({link})" for link, name in busiest["name"].items()], fontsize=8)
    rows.set_title("busiest links of the step (unused grey)", fontsize=9, loc="left")
    rows.grid(visible=False)
    time_axis(rows, int(use.edge_ps[-1]))
    bar = figure.colorbar(image, ax=rows, pad=0.01)
    bar.set_label("time in use (%)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure
