"""The critical path for the page: a strip of pieces, sums by part, and a table of what takes longest."""

from typing import Any

import numpy as np

from meshemu.analysis.page.arrays import packed
from meshemu.analysis.path_strip import PARTS, PathStrip, part_names, path_strip
from meshemu.record import Run

__all__ = ["path_content"]

_MOST_ROWS = 500


def path_content(run: Run) -> dict[str, Any] | None:
    """Pieces, totals and table; None without recorded op times."""
    if not run.recorded_steps:
        return None
    program, strip = run.program(), path_strip(run)
    label = program.label[strip.op]
    used, label_index = np.unique(label, return_inverse=True)
    path = strip.path
    note = (
        f"{len(path.ops):,} ops and {path.n_messages:,} messages, each of which the next one waited for. A message "
        "is drawn as latency, serialisation and waiting; what it takes on a free mesh is known, not the order."
    )
    return {
        "step": run.recorded_steps[0],
        "total_ps": path.total_ps,
        "parts": list(PARTS),
        "totals": [[part, name, getattr(path, f"{part}_ps")] for part, name in part_names(run).items()],
        "start_ps": packed(strip.start_ps),
        "end_ps": packed(strip.end_ps),
        "part": packed(strip.part, "u1"),
        "op": packed(strip.op),
        "device": packed(program.device[strip.op], "i4"),
        "label": packed(label_index, "i4"),
        "labels": [program.labels[i] for i in used],
        "note": note,
        "table": _table(run, strip),
    }


def _table(run: Run, strip: PathStrip) -> dict[str, Any]:
    """The longest pieces in order of time."""
    program, mesh = run.program(), run.mesh()
    length_ps = strip.end_ps - strip.start_ps
    rows = np.sort(np.argsort(-length_ps, kind="stable")[:_MOST_ROWS])
    op = strip.op[rows]
    columns = [
        ("from", "time", packed(strip.start_ps[rows])),
        ("took", "time", packed(length_ps[rows])),
        ("part", "text", [PARTS[part] for part in strip.part[rows]]),
        ("op", "count", packed(op)),
        ("name", "text", [program.labels[label] for label in program.label[op]]),
        ("class", "text", [program.op_classes[index] or "-" for index in program.op_class[op]]),
        ("device", "text", [mesh.place(int(device)) for device in program.device[op]]),
    ]
    few = f"the {len(rows):,} longest of {len(length_ps):,} pieces" if len(rows) < len(length_ps) else "all pieces"
    return {
        "name": "path",
        "title": f"Critical path: {few}",
        "columns": [{"heading": heading, "kind": kind, "values": values} for heading, kind, values in columns],
    }
