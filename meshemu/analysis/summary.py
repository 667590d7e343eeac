"""Everything that a report says about a run, as one dictionary of plain values (times in ps, shares from 0 to 1)."""

import math
from typing import Any

import numpy as np

from meshemu.analysis import metrics
from meshemu.analysis.energy import step_energy
from meshemu.analysis.findings import findings
from meshemu.analysis.verdict import verdict
from meshemu.hardware import System
from meshemu.record import Run

__all__ = ["as_dict"]


def as_dict(run: Run) -> dict[str, Any]:
    """The report of a run as JSON-able values; what was not computed or not recorded is None or an empty list.

    Page and text are made from the same one, which is not to be changed.
    """
    return run.once(_as_dict)


def _as_dict(run: Run) -> dict[str, Any]:
    content: dict[str, Any] = {
        "path": str(run.path),
        "meshemu_version": run.meshemu_version,
        "created_utc": run.created_utc,
        "complete": run.complete,
        "steps_done": run.n_steps,
        "steps_planned": run.n_steps_planned,
        "system": _system(run),
        "program": _program(run),
        "router": metrics.router_table(run.config),
        "loss_names": list(run.loss_names),
        "first_step": _step(run, 0),
        "last_step": _step(run, -1),
        "compute_rate": _compute_rate(run),
        "energy": dict(vars(step_energy(run))) if run.n_steps else None,
        "critical_path": _critical_path(run),
        "op_classes": _rows(metrics.op_classes(run)) if run.recorded_steps else [],
        "collectives": _collectives(run),
        "link_classes": _rows(metrics.link_classes(run).reset_index()) if run.n_steps else [],
        "busiest_links": _rows(metrics.busiest_links(run).reset_index()) if run.n_steps else [],
        **{key: _json(value) for key, value in findings(run).items()},
        "assumptions": list(run.assumptions),
        "run": dict(run.run_attributes),
    }
    return {"verdict": verdict(content), **content}


def _system(run: Run) -> dict[str, Any]:
    system = System.from_json(run.system_json)
    sizes = {"rows": system.rows, "cols": system.cols, "n_devices": system.n_devices, "n_alive": system.n_alive}
    return {"name": system.name, "devices": system.devices, **sizes, "n_links": run.mesh().n_links}


def _program(run: Run) -> dict[str, Any]:
    program = run.program()
    traffic_bytes = int(program.size_bytes.sum())
    return {"n_ops": program.n_ops, "n_messages": program.n_messages, "message_bytes": traffic_bytes}


def _step(run: Run, step: int) -> dict[str, Any] | None:
    if not run.n_steps:
        return None
    row = run.steps.iloc[step]
    return {"step": int(run.steps.index[step]), **{name: _plain(value) for name, value in row.items()}}


def _compute_rate(run: Run) -> dict[str, Any] | None:
    return dict(vars(metrics.compute_rate(run))) if run.n_steps else None


def _critical_path(run: Run) -> dict[str, Any] | None:
    if not run.recorded_steps:
        return None
    path = metrics.path_of(run)
    parts = {name: value for name, value in vars(path).items() if name != "ops"}
    totals = {"communication_ps": path.communication_ps, "total_ps": path.total_ps, "n_ops": len(path.ops)}
    return {"step": run.recorded_steps[0], **parts, **totals}


def _collectives(run: Run) -> list[dict[str, Any]]:
    """Collectives by kind and algorithm; active_ps: time in which at least one of them was under way."""
    table = metrics.collectives(run)
    rows = []
    for (kind, algorithm), group in table.groupby(["kind", "algorithm"], sort=False):
        timed = group.dropna(subset=["start_ps", "end_ps"])
        span_ps = timed["end_ps"] - timed["start_ps"]
        rows.append(
            {
                "kind": kind,
                "algorithm": algorithm,
                "count": len(group),
                "size_bytes": int(group["size_bytes"].sum()),
                "messages": int(group["messages"].sum()),
                "traffic_bytes": int(group["traffic_bytes"].sum()),
                "active_ps": metrics.union_ps(timed["start_ps"].to_numpy(), timed["end_ps"].to_numpy())
                if len(timed)
                else None,
                "longest_ps": int(span_ps.max()) if len(timed) else None,
                "longest_label": str(timed.loc[span_ps.idxmax(), "label"]) if len(timed) else None,
            }
        )
    return rows + _point_to_point(run)


def _point_to_point(run: Run) -> list[dict[str, Any]]:
    """Messages outside collectives, such as halos, as one more row."""
    program = run.program()
    alone = program.collective[program.send_op] < 0
    if not alone.any():
        return []
    active_ps = longest_ps = longest_label = None
    if run.recorded_steps:
        start_ps, end_ps = run.op_times()
        start, end = start_ps[program.send_op[alone]], end_ps[program.recv_op[alone]]
        active_ps = metrics.union_ps(start.astype(np.float64), end.astype(np.float64))
        longest = int((end - start).argmax())
        longest_ps = int((end - start)[longest])
        longest_label = program.labels[program.label[program.send_op[alone][longest]]]
    size_bytes = int(program.size_bytes[alone].sum())
    counts = {"count": int(alone.sum()), "size_bytes": size_bytes, "messages": int(alone.sum())}
    times = {"active_ps": active_ps, "longest_ps": longest_ps, "longest_label": longest_label}
    return [{"kind": "point-to-point", "algorithm": "", **counts, "traffic_bytes": size_bytes, **times}]


def _rows(table: Any) -> list[dict[str, Any]]:
    return [{name: _plain(value) for name, value in row.items()} for row in table.to_dict("records")]


def _json(value: Any) -> Any:
    """Values with everything in them as `_plain` makes it."""
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    return [_json(item) for item in value] if isinstance(value, list | tuple) else _plain(value)


def _plain(value: Any) -> Any:
    """A NumPy scalar as a Python value; NaN, which JSON lacks, as None."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and math.isnan(value) else value
