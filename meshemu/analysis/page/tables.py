"""The tables of the page: columns with a heading, what kind of quantity they hold, and values.

Kinds are known to the page's scripts: text, figure (a number with its unit, as text), count, number, share (0 to 1),
time (ps), bytes, flops and rate (FLOP/s).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from meshemu.analysis.page.arrays import packed, plain
from meshemu.analysis.step_rows import step_rows
from meshemu.record import Run

__all__ = ["tables"]

_Columns = Sequence[tuple[str, str, str]]  # key in the rows, heading, kind

_OP_CLASSES: _Columns = (
    ("op_class", "class", "text"),
    ("kind", "kind", "text"),
    ("ops", "ops", "count"),
    ("device_ps", "all devices", "time"),
    ("busiest_device_ps", "busiest device", "time"),
    ("flops", "work", "flops"),
)
_COLLECTIVES: _Columns = (
    ("kind", "collective", "text"),
    ("algorithm", "algorithm", "text"),
    ("count", "count", "count"),
    ("size_bytes", "buffers", "bytes"),
    ("messages", "messages", "count"),
    ("traffic_bytes", "sent", "bytes"),
    ("active_ps", "active", "time"),
    ("longest_ps", "longest", "time"),
    ("longest_label", "which", "text"),
)
_LINK_CLASSES: _Columns = (
    ("class", "class", "text"),
    ("links", "links", "count"),
    ("bytes", "carried", "bytes"),
    ("mean_utilisation", "mean in use", "share"),
    ("max_utilisation", "most in use", "share"),
    ("wait_ps", "waited (all packets)", "time"),
)
_PARTS: _Columns = (
    ("kind", "part", "text"),
    ("algorithm", "algorithm", "text"),
    ("label", "which", "text"),
    ("exposed_ps", "exposed", "time"),
    ("span_ps", "under way", "time"),
    ("start_ps", "from", "time"),
    ("end_ps", "to", "time"),
    ("messages", "messages", "count"),
    ("size_bytes", "sent", "bytes"),
)
_ROOFS: _Columns = (
    ("op_class", "class", "text"),
    ("number_format", "format", "text"),
    ("ops", "ops", "count"),
    ("device_ps", "all devices", "time"),
    ("achieved_flops_per_s", "achieved", "rate"),
    ("roof_flops_per_s", "roof", "rate"),
    ("of_roof", "of roof", "share"),
    ("intensity_flop_per_byte", "FLOP/B", "number"),
    ("bound", "bound by", "text"),
    ("share", "of its time", "share"),
)
_HOT_LINKS: _Columns = (
    ("link", "id", "count"),
    ("name", "link", "text"),
    ("class", "class", "text"),
    ("wait_ps", "packets waited", "time"),
    ("wait_share", "of all waiting", "share"),
    ("max_queue", "longest queue", "count"),
    ("of_mean", "bytes over mean", "number"),
    ("utilisation", "in use", "share"),
)
_CHARGED_LINKS: _Columns = (
    ("link", "id", "count"),
    ("name", "link", "text"),
    ("class", "class", "text"),
    ("charged_ps", "of the critical path", "time"),
    ("share", "of the step", "share"),
)
_CUTS: _Columns = (
    ("where", "links", "text"),
    ("links", "number", "count"),
    ("mean_bytes", "carried by each", "bytes"),
    ("ratio", "over the mean", "number"),
)
_MESSAGES: _Columns = (
    ("message", "id", "count"),
    ("label", "message", "text"),
    ("src", "from device", "count"),
    ("dst", "to device", "count"),
    ("size_bytes", "size", "bytes"),
    ("sent_ps", "sent", "time"),
    ("received_ps", "received", "time"),
    ("taken_ps", "took", "time"),
)
_MOST_MESSAGES = 300
_MOST_PARTS = 1000


def tables(run: Run, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All tables with any rows, from the figures of the report and of links and devices in the last step."""
    found = [
        _steps(report),
        _of_rows("op-classes", "Time by op class", _OP_CLASSES, report["op_classes"]),
        _of_rows("parts", "Parts of the step, by what the critical path spends", _PARTS, report["parts"][:_MOST_PARTS]),
        _of_rows("roofline", "What classes of compute reach", _ROOFS, report["roofline"]),
        _of_rows("collectives", "Collectives and other messages", _COLLECTIVES, report["collectives"]),
        _of_rows("link-classes", "Links by class, last step", _LINK_CLASSES, report["link_classes"]),
        _of_rows("charged-links", "Links that the critical path waits for", _CHARGED_LINKS, report["charged_links"]),
        _of_rows("hot-links", "Links where packets waited longest", _HOT_LINKS, report["hot_links"]),
        _of_rows("cuts", "Most crowded lines between devices", _CUTS, report["cuts"]),
        _messages(run),
        *([_links(run), _devices(run)] if run.n_steps else []),
    ]
    return [table for table in found if table is not None]


def _of_rows(name: str, title: str, columns: _Columns, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not rows:
        return None
    parts = [_column(heading, kind, plain([row[key] for row in rows])) for key, heading, kind in columns]
    return {"name": name, "title": title, "columns": parts}


def _steps(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """First and last step side by side, as in the report."""
    heads, rows = step_rows(report)
    if not rows:
        return None
    columns = [_column(head, "figure" if at else "text", [row[at] for row in rows]) for at, head in enumerate(heads)]
    return {"name": "steps", "title": "Steps", "columns": columns}


def _messages(run: Run) -> dict[str, Any] | None:
    """Those that took longest of the recorded step."""
    if not run.recorded_steps or not run.program().n_messages:
        return None
    table = run.messages(run.recorded_steps[0])
    table["taken_ps"] = table["received_ps"] - table["sent_ps"]
    longest = table.sort_values("taken_ps", ascending=False, kind="stable").head(_MOST_MESSAGES)
    title = f"Messages, the {len(longest):,} of {len(table):,} that took longest"
    return _of_rows("messages", title, _MESSAGES, longest.rename_axis("message").reset_index().to_dict("records"))


def _links(run: Run) -> dict[str, Any]:
    table = run.links(-1)
    columns = [
        _column("id", "count", packed(table.index.to_numpy(), "i4")),
        {"heading": "link", "kind": "text", "of": "links.name"},
        {"heading": "class", "kind": "text", "of": "links.class"},
        *(
            {"heading": heading, "kind": kind, "of": f"links.{key}"}
            for key, heading, kind in (
                ("utilisation", "in use", "share"),
                ("bytes", "carried", "bytes"),
                ("wait_ps", "waited", "time"),
                ("max_queue", "queue", "count"),
            )
        ),
    ]
    return {"name": "links", "title": "Links, last step", "columns": columns, "sorted_by": 3}


def _devices(run: Run) -> dict[str, Any]:
    columns = [
        _column("id", "count", packed(np.arange(run.mesh().n_devices), "i4")),
        *(
            {"heading": heading, "kind": kind, "of": f"devices.{key}"}
            for key, heading, kind in (
                ("place", "device", "text"),
                ("alive", "alive", "yes"),
                ("compute_ps", "compute", "time"),
                ("idle_ps", "idle", "time"),
                ("peak_memory_bytes", "peak memory", "known_bytes"),
            )
        ),
    ]
    return {"name": "devices", "title": "Devices, last step", "columns": columns, "sorted_by": 3}


def _column(heading: str, kind: str, values: Any) -> dict[str, Any]:
    return {"heading": heading, "kind": kind, "values": values}
