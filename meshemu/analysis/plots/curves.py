"""Curves of a training run."""

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from meshemu.analysis.curves import charts_of
from meshemu.analysis.palette import CYCLE
from meshemu.analysis.sheet import sheet
from meshemu.errors import RecordError
from meshemu.record import Run
from meshemu.units import format_time

__all__ = ["draw_curves"]

_MOST_MARKED = 60


def draw_curves(run: Run) -> Figure:
    """One chart for the loss, and one for each other figure that the run has; RecordError if it was timed only."""
    charts = charts_of(run.steps, run.loss_names)
    if not any(title == "Loss" for title, _, _ in charts):
        raise RecordError(f"{run.path}: no loss was computed: the run was timed only")
    figure, rows = sheet(f"Training, {run.path.name}", 9, 1 + 2.1 * len(charts), rows=len(charts))
    for axes, (title, kind, curves) in zip(rows, charts, strict=True):
        for number, (name, column) in enumerate(curves):
            values = run.steps[column].dropna()
            marker = "o" if len(values) <= _MOST_MARKED else ""
            axes.plot(values.index, values, color=CYCLE[number % len(CYCLE)], marker=marker, markersize=3, label=name)
        axes.set_ylabel(title.lower() if kind != "share" else f"{title.lower()} (%)")
        if kind == "share":
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
        elif kind == "time":
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_time(round(value))))
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
        axes.set_xlim(-0.5, max(run.n_steps - 0.5, 0.5))
        if len(curves) > 1:
            axes.legend(fontsize=9, frameon=False)
    rows[-1].set_xlabel("training step")
    return figure
