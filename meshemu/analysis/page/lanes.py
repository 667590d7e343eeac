"""What representative devices did over the recorded step, for the page's timeline."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from meshemu.analysis.activity import UNITS, representatives, unit_spans
from meshemu.analysis.page.arrays import packed
from meshemu.record import Run

__all__ = ["lanes"]

_FINEST = 4000  # gaps shorter than this part of the step are not drawn


def lanes(run: Run) -> dict[str, Any] | None:
    """One entry per device and unit with its busy spans; None without recorded op times."""
    if not run.recorded_steps:
        return None
    step = run.recorded_steps[0]
    program, mesh = run.program(), run.mesh()
    start_ps, end_ps = run.op_times()
    time_ps = int(run.steps["time_ps"].iloc[step])
    chosen = representatives(run.devices(step)["compute_ps"].to_numpy(), mesh.alive)
    rows = []
    for stands_for, device in chosen:
        for part, kind in UNITS:
            spans = unit_spans(program, start_ps, end_ps, device, kind, time_ps // _FINEST)
            rows.append(
                {
                    "device": device,
                    "title": f"{stands_for}: {mesh.place(device)}",
                    "part": part,
                    "start_ps": packed(spans.start_ps),
                    "end_ps": packed(spans.end_ps),
                    "n_ops": packed(spans.n_ops, "i4"),
                    **_labels(program.labels, program.label[spans.op]),
                }
            )
    return {"step": step, "time_ps": time_ps, "rows": rows, "least_gap_ps": time_ps // _FINEST}


def _labels(labels: tuple[str, ...], label: NDArray[np.int32]) -> dict[str, Any]:
    """Which label each span has, with only the labels that occur."""
    used, index = np.unique(label, return_inverse=True)
    return {"labels": [labels[i] for i in used], "label": packed(index, "i4")}
