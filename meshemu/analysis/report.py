"""A run as text for a performance engineer: a verdict first, then the tables behind it."""

import textwrap
from collections.abc import Mapping
from typing import Any

from meshemu.analysis import findings_text
from meshemu.analysis.step_rows import step_rows
from meshemu.analysis.summary import as_dict
from meshemu.analysis.table import fraction, percent, shortened, table
from meshemu.hardware import Router
from meshemu.record import Run
from meshemu.units import format_bytes, format_energy, format_flops, format_power, format_time

__all__ = ["as_dict", "render"]

_WIDTH = 100
_LABEL_WIDTH = 44


def render(run: Run, more: str = "") -> str:
    """The report of a run as text, without a newline at the end; more: a section to stand below the verdict."""
    content = as_dict(run)
    sections = [
        _head(content),
        "\n".join(textwrap.wrap(content["verdict"], _WIDTH)),
        findings_text.advice(content),
        more,
        _steps(content),
        _where_time_goes(content),
        findings_text.parts(content),
        _op_classes(content),
        findings_text.compute_roofs(content),
        findings_text.layers(content),
        findings_text.device_load(content),
        findings_text.memory(content),
        _collectives(content),
        _link_classes(content),
        _busiest_links(content),
        findings_text.hot_links(content),
        _assumptions(content),
    ]
    return "\n\n".join(section for section in sections if section)


def _head(content: Mapping[str, Any]) -> str:
    system, program = content["system"], content["program"]
    dead = system["n_devices"] - system["n_alive"]
    state = "complete" if content["complete"] else "NOT complete"
    units = f"{system['devices']}s" if system["n_devices"] != 1 else system["devices"]
    return "\n".join(
        [
            f"{content['path']}  ({state}, {content['steps_done']} of {content['steps_planned']} steps, "
            f"meshemu {content['meshemu_version']}, {content['created_utc']})",
            f"{system['name']}: {system['rows']} x {system['cols']} = {system['n_devices']:,} {units}"
            f"{f' ({dead} dead)' if dead else ''}, {system['n_links']:,} directed links; {program['n_ops']:,} ops and "
            f"{program['n_messages']:,} messages ({format_bytes(program['message_bytes'])}) a step",
            *textwrap.wrap(f"Timed with {_network(content['router'])}.", _WIDTH),
        ]
    )


def _network(router: Mapping[str, Any] | None) -> str:
    return "unbounded FIFOs on links" if router is None else f"routers: {Router(**router).describe()}"


def _steps(content: Mapping[str, Any]) -> str:
    head, rows = step_rows(content)
    if not rows:
        return ""
    rate = content["compute_rate"]
    peak = "unknown" if rate["peak_flops_per_s"] is None else format_flops(rate["peak_flops_per_s"])
    reached = (
        f"Last step: {format_flops(round(rate['achieved_flops_per_s']))} of {peak} peak in "
        f"{rate['number_format'] or 'no format'} ({fraction(rate['fraction_of_peak'])} of peak over all formats)"
    )
    return "\n".join([f"Steps\n{table(head, rows)}", *map(_indent, [reached, *_energy(content["energy"])])])


def _energy(energy: Mapping[str, Any]) -> list[str]:
    """Lines on the estimated energy of the last step; none where nothing is known."""
    lines = []
    if energy["total_j"] is not None:
        lines.append(
            f"Energy of the last step, estimated: {format_energy(energy['total_j'])} = "
            f"{format_power(energy['power_w'])} x time; {energy['basis']}"
        )
    for name, value in energy["links_j"].items():
        lines.append(f"Part of it on {name} links, by the energy per bit that was assumed: {format_energy(value)}")
    return lines


def _where_time_goes(content: Mapping[str, Any]) -> str:
    path = content["critical_path"]
    if path is None:
        return ""
    total = path["total_ps"]
    parts = [("compute", path["compute_ps"])]
    parts += [(f"  {name}", value) for name, value in list(path["compute_ps_by_class"].items())[:8]]
    parts += [
        ("combining in reductions", path["combine_ps"]),
        ("link latency", path["latency_ps"]),
        ("serialisation on links", path["serialisation_ps"]),
        ("waiting for links" if content["router"] is None else "in routers, waiting included", path["waiting_ps"]),
    ]
    parts += [(name, path[f"{name}_ps"]) for name in ("ingest", "spill") if path[f"{name}_ps"]]
    parts += [(f"  {name}", value) for name, value in list(path["interface_ps_by_unit"].items())[:8]]
    rows = [[name, format_time(value), percent(value, total)] for name, value in parts]
    rows.append(["total", format_time(total), percent(total, total)])
    title = f"Critical path of step {path['step']} ({path['n_ops']:,} ops, {path['n_messages']:,} messages)"
    return f"{title}\n{table(['', 'time', 'share'], rows)}"


def _op_classes(content: Mapping[str, Any]) -> str:
    rows = content["op_classes"]
    if not rows:
        return ""
    n_alive, step_ps = max(content["system"]["n_alive"], 1), content["critical_path"]["total_ps"]
    cells = [
        [
            row["op_class"],
            row["kind"],
            f"{row['ops']:,}",
            format_time(round(row["device_ps"] / n_alive)),
            format_time(row["busiest_device_ps"]),
            percent(row["busiest_device_ps"], step_ps),
            _count(row["flops"], "FLOP"),
        ]
        for row in rows
    ]
    head = ["class", "kind", "ops", "mean device", "busiest device", "of step", "work"]
    return f"Time by op class\n{table(head, cells, left=2)}"


def _collectives(content: Mapping[str, Any]) -> str:
    rows = content["collectives"]
    if not rows:
        return ""
    cells = [
        [
            f"{row['kind']} {row['algorithm']}".strip(),
            f"{row['count']:,}",
            format_bytes(row["size_bytes"]),
            format_bytes(row["traffic_bytes"]),
            _time(row["active_ps"]),
            _time(row["longest_ps"]),
            shortened(row["longest_label"] or "", _LABEL_WIDTH),
        ]
        for row in rows
    ]
    head = ["collective", "count", "buffers", "sent", "active", "longest", "which"]
    return f"Collectives and other messages\n{table(head, cells, right_to=6)}"


def _link_classes(content: Mapping[str, Any]) -> str:
    cells = [
        [
            row["class"],
            f"{row['links']:,}",
            format_bytes(row["bytes"]),
            fraction(row["mean_utilisation"]),
            fraction(row["max_utilisation"]),
            format_time(row["wait_ps"]),
        ]
        for row in content["link_classes"]
    ]
    head = ["class", "links", "carried", "mean in use", "most in use", "waited (all packets)"]
    return f"Links by class, last step\n{table(head, cells)}" if cells else ""


def _busiest_links(content: Mapping[str, Any]) -> str:
    cells = [
        [
            f"{row['name']}",
            str(row["link"]),
            row["class"],
            fraction(row["utilisation"]),
            format_bytes(row["bytes"]),
            format_time(row["wait_ps"]),
            f"{row['max_queue']:,}",
        ]
        for row in content["busiest_links"]
    ]
    head = ["link", "id", "class", "in use", "carried", "waited", "queue"]
    return f"Busiest links, last step\n{table(head, cells)}" if cells else ""


def _assumptions(content: Mapping[str, Any]) -> str:
    wrapped = [
        textwrap.fill(text, _WIDTH, initial_indent="  - ", subsequent_indent="    ") for text in content["assumptions"]
    ]
    return "\n".join(["Assumptions that these figures rest on", *wrapped]) if wrapped else ""


def _indent(text: str) -> str:
    return f"  {text}"


def _time(value_ps: int | None) -> str:
    return "-" if value_ps is None else format_time(value_ps)


def _count(value: int, unit: str) -> str:
    return format_flops(value).replace("FLOP/s", unit)
