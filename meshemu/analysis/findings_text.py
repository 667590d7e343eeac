"""The findings on a run as sections of its report."""

import textwrap
from collections.abc import Mapping
from typing import Any

from meshemu.analysis.table import percent, shortened, table
from meshemu.units import format_bytes, format_flops, format_time

__all__ = ["advice", "compute_roofs", "device_load", "hot_links", "layers", "memory", "parts"]

_WIDTH = 100
_MOST_PARTS, _MOST_LINKS, _MOST_ROOFS, _MOST_LAYERS = 12, 5, 8, 24
_LABEL_WIDTH = 44
_GROUPS = {
    "stragglers": "more than 5 % above the median",
    "waiting": "more than 5 % below the median",
    "unused": "without compute",
}


def advice(content: Mapping[str, Any]) -> str:
    """What would make the step faster."""
    lines = [
        textwrap.fill(one["text"], _WIDTH, initial_indent="  - ", subsequent_indent="    ")
        for one in content["advice"]
    ]
    return "\n".join(["Advice", *lines]) if lines else ""


def parts(content: Mapping[str, Any]) -> str:
    """What each collective, kind of message and class of compute takes of the step."""
    every = content["parts"]
    if not every:
        return ""
    total = sum(part["exposed_ps"] for part in every)
    shown = [part for part in every if part["exposed_ps"]][:_MOST_PARTS]
    cells = [
        [
            f"{part['kind']} {part['algorithm']}".strip(),
            format_time(part["exposed_ps"]),
            percent(part["exposed_ps"], total),
            format_time(part["start_ps"]),
            format_time(part["end_ps"]),
            format_bytes(part["size_bytes"]) if part["messages"] else "-",
            shortened(part["label"], _LABEL_WIDTH),
        ]
        for part in shown
    ]
    rest_ps = total - sum(part["exposed_ps"] for part in shown)
    if rest_ps:
        count = sum(part["exposed_ps"] > 0 for part in every) - len(shown)
        cells.append([f"{count} others", format_time(rest_ps), percent(rest_ps, total), "", "", "", ""])
    hidden = sum(part["exposed_ps"] == 0 for part in every)
    cells.append(["total", format_time(total), percent(total, total), "", "", "", f"{hidden} more are hidden"])
    head = ["part of the step", "exposed", "share", "from", "to", "sent", "which"]
    return f"What the step is made of\n{table(head, cells, right_to=6)}"


def hot_links(content: Mapping[str, Any]) -> str:
    """Which links the critical path waits for, where packets wait, and where traffic gathers."""
    sections = []
    if content["charged_links"]:
        cells = [
            [row["name"], row["class"], format_time(row["charged_ps"]), f"{100 * row['share']:.1f} %"]
            for row in content["charged_links"][:_MOST_LINKS]
        ]
        head = ["link on the critical path", "class", "serialising and waiting", "of step"]
        sections.append(table(head, cells, left=2))
    if content["hot_links"]:
        cells = [
            [
                row["name"], row["class"], format_time(row["wait_ps"]), f"{100 * row['wait_share']:.1f} %",
                f"{row['max_queue']:,}", f"{row['of_mean']:.2f}",
            ]
            for row in content["hot_links"][:_MOST_LINKS]
        ]  # fmt: skip
        head = ["link with most queueing", "class", "waited (all packets)", "of all", "queue", "bytes / mean"]
        sections.append(table(head, cells, left=2))
    crowded = [cut for cut in content["cuts"] if cut["ratio"] >= 1.25][:3]
    if crowded:
        words = ", ".join(f"{cut['where']} {cut['ratio']:.1f} times" for cut in crowded)
        sections.append(_wrapped(f"Bytes against the mean of all links: those {words}"))
    return "\n".join(["Hot spots", *sections]) if sections else ""


def device_load(content: Mapping[str, Any]) -> str:
    """How evenly compute lies on the devices."""
    load = content["device_load"]
    if load is None or not load["imbalance"]:
        return ""
    lines = [
        f"busiest {format_time(load['busiest_ps'])}, median {format_time(load['median_ps'])}, busiest over mean "
        f"{load['imbalance']:.3f}"
    ]
    for key, words in _GROUPS.items():
        if count := load[f"n_{key}"]:
            places = "; ".join(load[key][:3]) + (" ..." if count > 3 else "")
            lines.append(f"{count:,} {words}: {places}")
    return "\n".join(["Compute by device", *map(_wrapped, lines)])


def compute_roofs(content: Mapping[str, Any]) -> str:
    """What classes of compute reach of the roofs of a device."""
    rows = content["roofline"][:_MOST_ROOFS]
    if not rows:
        return ""
    cells = [
        [
            row["op_class"],
            row["number_format"],
            format_flops(round(row["achieved_flops_per_s"])) if row["flops"] else "-",
            f"{100 * row['of_roof']:.1f} %" if row["flops"] else "-",
            "-" if row["intensity_flop_per_byte"] is None else f"{row['intensity_flop_per_byte']:.3g}",
            f"{row['bound']} ({100 * row['share']:.0f} %)",
        ]
        for row in rows
    ]
    head = ["class", "format", "of one device", "of its roof", "FLOP/byte", "bound by (of its time)"]
    return f"Compute against the roofs of a device\n{table(head, cells, left=2)}"


def layers(content: Mapping[str, Any]) -> str:
    """What bounds each layer."""
    rows = content["layers"]
    if len(rows) < 2:
        return ""
    n_devices = max(content["system"]["n_alive"], 1)
    total = sum(row["device_ps"] for row in rows)
    longest = sorted(rows, key=lambda row: -row["device_ps"])[:_MOST_LAYERS]
    cells = [
        [
            row["name"] or "(no module)",
            f"{row['ops']:,}",
            format_time(round(row["device_ps"] / n_devices)),
            percent(row["device_ps"], total),
            f"{row['bound']} ({100 * row['share']:.0f} %)",
            shortened(row["op_class"], _LABEL_WIDTH),
        ]
        for row in rows
        if row in longest
    ]
    head = ["layer", "ops", "mean device", "of compute", "bound by (of its time)", "most of it"]
    more = f"\n  {len(rows) - len(longest)} others take less" if len(rows) > len(longest) else ""
    return f"Layers of the model, both passes\n{table(head, cells, right_to=4)}{more}"


def memory(content: Mapping[str, Any]) -> str:
    """What the fullest device holds when it holds most."""
    held = content["memory"]
    if held is None:
        return ""
    words = ", ".join(f"{name} {format_bytes(size)}" for name, size in held["bytes_by_category"].items())
    at = f" at {held['point']}" if held["point"] else ""
    line = f"{held['device']}, {format_bytes(held['peak_bytes'])}{at}: {words}"
    others = f"Peaks of devices: from {format_bytes(held['least_bytes'])}, median {format_bytes(held['median_bytes'])}"
    return f"Memory of the fullest device\n{_wrapped(line)}\n{_wrapped(others)}"


def _wrapped(line: str) -> str:
    return textwrap.fill(line, _WIDTH, initial_indent="  ", subsequent_indent="  ")
