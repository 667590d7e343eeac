"""Everything that the page shows, as one JSON-able value: the report's figures and what is drawn beside them."""

from typing import Any

from meshemu.analysis.page.arrays import plain
from meshemu.analysis.page.lanes import lanes
from meshemu.analysis.page.memory import memory
from meshemu.analysis.page.path import path_content
from meshemu.analysis.page.roofline import roofline
from meshemu.analysis.page.tables import tables
from meshemu.analysis.page.training import training
from meshemu.analysis.page.wafer import wafer
from meshemu.analysis.palette import CYCLE, PARTS, device_scale, hex_steps, link_scale
from meshemu.analysis.report import as_dict
from meshemu.record import Run

__all__ = ["page_content"]


def page_content(run: Run) -> dict[str, Any]:
    """The content of a run's page; parts that the run has no figures for are None or empty."""
    report = as_dict(run)
    return {
        "title": f"{run.path.name}: {report['system']['name']}",
        "about": _about(report),
        "headline": _headline(report),
        "report": plain({key: report[key] for key in ("verdict", "system", "last_step", "assumptions")}),
        "advice": [one["text"] for one in report["advice"]],
        "wafer": wafer(run),
        "lanes": lanes(run),
        "path": path_content(run),
        "roofline": roofline(run, report),
        "memory": memory(run),
        "training": training(run),
        "tables": tables(run, report),
        "config": run.config,
        "colours": {
            "links": {"light": hex_steps(link_scale()), "dark": hex_steps(link_scale(dark=True))},
            "devices": {"light": hex_steps(device_scale()), "dark": hex_steps(device_scale(dark=True))},
            "parts": dict(PARTS),
            "cycle": list(CYCLE),
        },
    }


def _about(report: dict[str, Any]) -> str:
    system, program = report["system"], report["program"]
    dead = system["n_devices"] - system["n_alive"]
    return (
        f"{system['name']}: {system['rows']} x {system['cols']} = {system['n_devices']:,} {system['devices']}s"
        f"{f', {dead:,} of them dead' if dead else ''}, {system['n_links']:,} directed links; "
        f"{program['n_ops']:,} ops and {program['n_messages']:,} messages a step. {report['steps_done']:,} of "
        f"{report['steps_planned']:,} steps recorded. meshemu {report['meshemu_version']}, {report['created_utc']}."
    )


def _headline(report: dict[str, Any]) -> list[list[Any]]:
    """[name, kind, value] of the figures at the top."""
    last, rate, energy = report["last_step"], report["compute_rate"], report["energy"]
    if last is None:
        return []
    rows = [
        ["time of the step", "time", last["time_ps"]],
        ["compute, busiest device", "time", last["compute_ps"]],
        ["exposed communication", "time", last["exposed_comm_ps"]],
        ["achieved", "rate", rate["achieved_flops_per_s"]],
        ["of peak", "share", rate["fraction_of_peak"]],
        ["loss", "number", last["loss"]],
        ["accuracy, held out", "share", last["accuracy"]],
        ["energy of the step, estimated", "energy", energy["total_j"]],
    ]
    return [plain(row) for row in rows if row[2] is not None]
