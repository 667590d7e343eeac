"""What all pictures share: paper and ink, axes of time, and how a figure becomes a file."""

import os
from pathlib import Path
from typing import Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from meshemu.errors import RecordError
from meshemu.units import format_time

__all__ = ["FORMATS", "INK", "LINE", "picture_format", "sheet", "style", "time_axis", "write"]

FORMATS = ("png", "svg")
INK, LINE = "#30343b", "#d5d9df"
_DPI = 150
_TEXT_POINTS, _TITLE_POINTS = 9, 11


def sheet(title: str, width: float = 9.0, height: float = 4.5, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A white page in inches with `rows` axes, one below the other, under a title."""
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    figure.suptitle(title, fontsize=_TITLE_POINTS, color=INK, x=0.01, ha="left", wrap=True)
    axes = [figure.add_subplot(rows, 1, row + 1) for row in range(rows)]
    for one in axes:
        style(one)
    return figure, axes


def style(axes: Axes) -> None:
    """Thin lines, no frame above and to the right, readable text."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(INK)
    axes.tick_params(labelsize=_TEXT_POINTS, colors=INK)
    axes.grid(visible=True, color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=INK, fontsize=_TEXT_POINTS)


def time_axis(axes: Axes, end_ps: int, label: str = "time since the start of the step") -> None:
    """Ticks of the horizontal axis, whose values are ps, with their units."""
    axes.set_xlim(0, max(end_ps, 1))
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_time(round(value))))
    axes.set_xlabel(label)


def picture_format(path: str | os.PathLike[str]) -> Literal["png", "svg"]:
    """The format that the name of a file asks for; RecordError if it is none of FORMATS."""
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix == "png":
        return "png"
    if suffix == "svg":
        return "svg"
    raise RecordError(f"cannot write {path}: name a picture {' or '.join(f'*.{form}' for form in FORMATS)}")


def write(figure: Figure, path: str | os.PathLike[str], form: Literal["png", "svg"] | None = None) -> None:
    """Write a figure, by default in the format of the file's name; the same figure gives the same bytes.

    Raises:
        RecordError: the file cannot be written, or its name asks for no known format.
    """
    form = form or picture_format(path)
    metadata = {"Date": None} if form == "svg" else None
    try:
        with rc_context({"svg.hashsalt": "meshemu", "svg.fonttype": "none"}):
            FigureCanvasAgg(figure).print_figure(Path(path), dpi=_DPI, format=form, metadata=metadata)
    except OSError as error:
        raise RecordError(f"cannot write {path}: {os.strerror(error.errno) if error.errno else error}") from None
