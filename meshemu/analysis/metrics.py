"""Figures of one run that its tables do not hold directly: rates, shares, spans, rankings."""

import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from meshemu.analysis.critical_path import CriticalPath, critical_path
from meshemu.cost.number_formats import flops_per_s
from meshemu.errors import RecordError
from meshemu.hardware import DeviceSpec, System
from meshemu.mesh import Order
from meshemu.program.ir import OpKind, Program
from meshemu.record import Run

if TYPE_CHECKING:  # heavy, and needed only when a table is made
    import pandas as pd

__all__ = [
    "ComputeRate",
    "busiest_links",
    "collectives",
    "compute_rate",
    "link_classes",
    "op_classes",
    "path_of",
    "router_table",
    "routing",
    "union_ps",
]


@dataclass(frozen=True)
class ComputeRate:
    """Achieved and peak compute rate of all live devices together.

    number_format: that of most of the work. peak_flops_per_s: of that format, None where the system gives no rate.
    fraction_of_peak: time that all the work would take at the peak rate of its formats, over the time it took.
    """

    number_format: str
    achieved_flops_per_s: float
    peak_flops_per_s: int | None
    fraction_of_peak: float | None


def compute_rate(run: Run, step: int = -1) -> ComputeRate:
    """FLOP/s of a step against the peak of the system."""
    program, system = run.program(), System.from_json(run.system_json)
    figures = run.steps.iloc[step]
    work = np.zeros(len(program.number_formats), np.int64)
    np.add.at(work, program.number_format, program.flops)
    time_s = figures["time_ps"] / 1e12
    achieved = float(figures["flops"]) / time_s if time_s > 0 else 0.0
    main = program.number_formats[int(work.argmax())] if len(work) else ""
    peaks = [
        _peak(system.device, name, system.n_alive) if flops else None
        for name, flops in zip(program.number_formats, work, strict=True)
    ]
    peak = peaks[int(work.argmax())] if len(work) else None
    least_s = sum(int(flops) / rate for flops, rate in zip(work, peaks, strict=True) if flops and rate)
    known = all(rate for flops, rate in zip(work, peaks, strict=True) if flops)
    fraction = least_s / time_s if known and peak and time_s > 0 else None
    return ComputeRate(main, achieved, peak, fraction)


def busiest_links(run: Run, step: int = -1, count: int = 10) -> "pd.DataFrame":
    """The links with the highest utilisation (ties: lowest id), as `run.links`."""
    return run.links(step).sort_values("utilisation", ascending=False, kind="stable").head(count)


def link_classes(run: Run, step: int = -1) -> "pd.DataFrame":
    """Per link class: number of links, bytes carried, mean and highest utilisation, wait_ps."""
    table = run.links(step)
    grouped = table.groupby("class", observed=True)
    return grouped.agg(
        links=("src", "size"),
        bytes=("bytes", "sum"),
        mean_utilisation=("utilisation", "mean"),
        max_utilisation=("utilisation", "max"),
        wait_ps=("wait_ps", "sum"),
    )


def op_classes(run: Run) -> "pd.DataFrame":
    """Per class of COMPUTE and REDUCE ops: kind, ops, flops, device_ps (of all devices), busiest_device_ps.

    The class that takes most time first. Needs recorded op times.
    """
    import pandas as pd

    program = run.program()
    start_ps, end_ps = run.op_times()
    rows = []
    for kind in (OpKind.COMPUTE, OpKind.REDUCE):
        for index, name in enumerate(program.op_classes):
            ops = np.flatnonzero((program.kind == kind) & (program.op_class == index))
            if len(ops):
                per_device = np.zeros(program.n_devices, np.int64)
                np.add.at(per_device, program.device[ops], end_ps[ops] - start_ps[ops])
                flops = int(program.flops[ops].sum())
                rows.append((name, kind.name, len(ops), flops, int(per_device.sum()), int(per_device.max())))
    columns = ["op_class", "kind", "ops", "flops", "device_ps", "busiest_device_ps"]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values("device_ps", ascending=False, kind="stable", ignore_index=True)


def collectives(run: Run) -> "pd.DataFrame":
    """One row per collective: kind, algorithm, label, devices, size_bytes, messages, traffic_bytes, start_ps, end_ps.

    start_ps, end_ps: from the first hand-over of a message or combination to the end of its last op (NaN without ops or
    without recorded times). traffic_bytes: sum of its messages.
    """
    import pandas as pd

    program = run.program()
    n = len(program.collectives)
    owner = program.collective[program.send_op] if program.n_messages else np.zeros(0, np.int32)
    traffic, messages = np.zeros((2, n), np.int64)
    np.add.at(traffic, owner[owner >= 0], program.size_bytes[owner >= 0])
    np.add.at(messages, owner[owner >= 0], 1)
    start, end = _spans(program, *run.op_times()) if run.recorded_steps else np.full((2, n), np.nan)
    uses = program.collectives
    return pd.DataFrame(
        {
            "kind": [use.kind for use in uses],
            "algorithm": [use.algorithm for use in uses],
            "label": [use.label for use in uses],
            "devices": [len(use.devices) for use in uses],
            "size_bytes": [use.size_bytes for use in uses],
            "messages": messages,
            "traffic_bytes": traffic,
            "start_ps": start,
            "end_ps": end,
        }
    )


def union_ps(start_ps: NDArray[np.float64], end_ps: NDArray[np.float64]) -> int:
    """Time covered by at least one of the intervals."""
    order = np.argsort(start_ps, kind="stable")
    start, end = start_ps[order], np.maximum.accumulate(end_ps[order]) if len(order) else end_ps
    covered_before = np.concatenate([start[:1], end[:-1]])
    return int(np.maximum(end - np.maximum(start, covered_before), 0).sum())


def path_of(run: Run) -> CriticalPath:
    """The critical path of the first recorded step."""
    return run.once(_path_of)


def _path_of(run: Run) -> CriticalPath:
    return critical_path(run.program(), run.mesh(), *run.op_times(), order=routing(run.config))


def _peak(device: DeviceSpec | None, number_format: str, n_devices: int) -> int | None:
    """The highest rate at which ops in a format are timed, by a stand-in where it is not listed; None if unknown."""
    if device is None or not (device.matrix_flops_per_s or device.vector_flops_per_s):
        return None
    return flops_per_s(device, number_format, matrix=True) * n_devices


def _spans(
    program: Program, start_ps: NDArray[np.int64], end_ps: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First start and last end of every collective, NaN without ops. A RECV may be posted long before: not a start."""
    n = len(program.collectives)
    start, end = np.full(n, np.inf), np.full(n, -np.inf)
    member = program.collective >= 0
    begins = member & (program.kind != OpKind.RECV)
    np.minimum.at(start, program.collective[begins], start_ps[begins])
    np.maximum.at(end, program.collective[member], end_ps[member])
    none = ~np.isfinite(start)
    return np.where(none, np.nan, start), np.where(none, np.nan, end)


def router_table(config: str) -> dict[str, Any] | None:
    """Figures of the routers that a run was timed with, by keyword of `Router`; None for unbounded FIFOs."""
    table = _document(config).get("network", {}).get("router")
    return table if isinstance(table, dict) else None


def routing(config: str) -> Order:
    """How the run routed its messages."""
    return "yx" if _document(config).get("timing", {}).get("routing") == "yx" else "xy"


def _document(config: str) -> dict[str, Any]:
    try:
        return tomllib.loads(config)
    except tomllib.TOMLDecodeError as error:
        raise RecordError(f"the config in the results file is not TOML: {error}") from None
