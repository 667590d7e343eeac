"""What the units of some devices did over the recorded step."""

from collections.abc import Sequence

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from meshemu.analysis.activity import UNITS, Spans, representatives, unit_spans
from meshemu.analysis.palette import PARTS
from meshemu.analysis.sheet import sheet, time_axis
from meshemu.errors import RecordError
from meshemu.hardware import System
from meshemu.record import Run
from meshemu.units import format_time

__all__ = ["draw_gantt"]

_HEIGHT = 0.36  # of the bar of a unit; a device is one row
_FINEST = 5000  # gaps shorter than this part of the step cannot be seen


def draw_gantt(run: Run, devices: Sequence[int] = ()) -> Figure:
    """Compute above, combinations in reductions below, one row a device.

    Raises:
        RecordError: there is no such device, or no op times are recorded.
    """
    program, mesh = run.program(), run.mesh()
    start_ps, end_ps = run.op_times()
    step = run.recorded_steps[0]
    time_ps = int(run.steps["time_ps"].iloc[step])
    for device in devices:
        if not 0 <= device < mesh.n_devices:
            raise RecordError(f"{run.path}: no device {device}; there are 0 to {mesh.n_devices - 1}")
    chosen = [("", device) for device in devices] or representatives(
        run.devices(step)["compute_ps"].to_numpy(), mesh.alive
    )
    title = f"Devices over time, {System.from_json(run.system_json).name}, step {step}: {format_time(time_ps)}"
    figure, [axes] = sheet(title, height=1.5 + 0.55 * len(chosen))
    for row, (_, device) in enumerate(chosen):
        for offset, (part, kind) in zip((-_HEIGHT, 0.0), UNITS, strict=True):
            spans = unit_spans(program, start_ps, end_ps, device, kind, time_ps // _FINEST)
            bars = _bars(spans, row + offset, time_ps)
            axes.add_collection(PolyCollection(bars, facecolors=PARTS[part], edgecolors=PARTS[part], linewidths=0.3))
    axes.set_ylim(len(chosen) - 0.5, -0.5)
    labels = [f"{name + ': ' if name else ''}device {device}\n{mesh.place(device)}" for name, device in chosen]
    axes.set_yticks(range(len(chosen)), labels)
    axes.grid(visible=False, axis="y")
    time_axis(axes, time_ps)
    names = {"compute": "compute", "combine": "combining in reductions"}
    handles = [Patch(color=PARTS[part], label=name) for part, name in names.items()]
    figure.legend(handles=handles, loc="outside lower right", ncols=2, fontsize=9, frameon=False)
    return figure


def _bars(spans: Spans, top: float, time_ps: int) -> list[np.ndarray]:
    left, right = spans.start_ps.astype(float), spans.end_ps.astype(float)
    low, high = np.full_like(left, top), np.full_like(left, top + _HEIGHT)
    return list(np.stack([left, low, right, low, right, high, left, high], axis=1).reshape(-1, 4, 2))
