"""The kinds of pictures by name."""

import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from matplotlib.figure import Figure

from meshemu.analysis import heatmap
from meshemu.analysis.plots.curves import draw_curves
from meshemu.analysis.plots.gantt import draw_gantt
from meshemu.analysis.plots.memory import draw_memory
from meshemu.analysis.plots.path import draw_path
from meshemu.analysis.plots.roofline import draw_roofline
from meshemu.analysis.plots.utilisation import draw_utilisation
from meshemu.analysis.sheet import picture_format, write
from meshemu.errors import RecordError
from meshemu.record import Run

__all__ = ["KINDS", "draw", "save"]

KINDS: Mapping[str, Callable[[Run], Figure]] = MappingProxyType(
    {
        "links": heatmap.picture,
        "timeline": draw_gantt,
        "utilisation": draw_utilisation,
        "roofline": draw_roofline,
        "path": draw_path,
        "loss": draw_curves,
        "memory": draw_memory,
    }
)


def draw(run: Run, kind: str, devices: Sequence[int] = ()) -> Figure:
    """The picture of a kind; devices: those to show in a timeline (none: the busiest, median and idlest).

    Raises:
        RecordError: there is no such kind, or the run has not recorded what it shows.
    """
    if kind not in KINDS:
        raise RecordError(f"no picture {kind!r}; there are {', '.join(KINDS)}")
    if devices and kind != "timeline":
        raise RecordError(f"devices are chosen for the picture timeline, not for {kind}")
    if not run.n_steps:
        raise RecordError(f"{run.path}: no completed step to draw")
    return draw_gantt(run, devices) if devices else KINDS[kind](run)


def save(run: Run, kind: str, path: str | os.PathLike[str], devices: Sequence[int] = ()) -> None:
    """Write the picture of a kind to a file named .png or .svg; RecordError as `draw`, or if it cannot be written."""
    picture_format(path)
    write(draw(run, kind, devices), path)
