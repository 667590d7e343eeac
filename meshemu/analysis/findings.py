"""What holds up the recorded step of a run, as plain values: its parts, its links, its devices, its ops, and advice."""

import tomllib
from typing import Any

import numpy as np

from meshemu.analysis import metrics
from meshemu.analysis.advice import Figures, advise
from meshemu.analysis.exposure import exposures
from meshemu.analysis.hot_spots import charged_links, cuts, hot_links, short_name
from meshemu.analysis.ingest import ingest_wait
from meshemu.analysis.layers import layers
from meshemu.analysis.path_strip import PARTS, PathStrip, path_strip
from meshemu.analysis.roofline import ClassRoof, class_roofs
from meshemu.analysis.stragglers import DeviceLoad, device_load
from meshemu.cost import CostOptions, combine_cost
from meshemu.cost.memory_use import MEMORY_CATEGORIES
from meshemu.hardware import System
from meshemu.mesh import Mesh
from meshemu.program.ir import OpKind, Program
from meshemu.record import Run

__all__ = ["NOTHING", "cost_options", "findings"]

_MOST = 10
NOTHING: dict[str, Any] = {
    "parts": [],
    "longest_op": None,
    "charged_links": [],
    "hot_links": [],
    "cuts": [],
    "device_load": None,
    "memory": None,
    "roofline": [],
    "layers": [],
    "advice": [],
}
"""What `findings` gives where op times are not recorded."""


def findings(run: Run) -> dict[str, Any]:
    """JSON-able figures of the first recorded step, times in ps.

    parts: as `Exposure`, the most exposed first; their exposed_ps add up to the step. longest_op: the label that takes
    most compute on the critical path. charged_links: what messages on the critical path spend on each link, and as a
    share of the step. hot_links, cuts: as in `hot_spots`. device_load: as `DeviceLoad`, with places in words. memory:
    what the fullest device holds when it holds most, at which instruction, and the least and median peak of devices
    that hold anything. roofline: as `ClassRoof`. layers: as `Layer`. advice: key, text and saving_ps.
    """
    if not run.recorded_steps or run.recorded_steps[0] >= run.n_steps:
        return NOTHING
    step, program, mesh = run.recorded_steps[0], run.program(), run.mesh()
    start_ps, end_ps = run.op_times()
    figures = run.steps.iloc[step]
    strip = path_strip(run)
    parts = exposures(program, start_ps, end_ps, strip)
    links = run.links(step)
    charged = charged_links(program, mesh, strip, links["wait_ps"].to_numpy(), metrics.routing(run.config))
    crowded = cuts(mesh, links["bytes"].to_numpy())
    load = device_load(run.devices(step)["compute_ps"].to_numpy(), mesh.alive)
    system = System.from_json(run.system_json)
    device = system.device
    roofs = [] if device is None else class_roofs(program, device, end_ps - start_ps, cost_options(run.config))
    of_layers = [] if device is None else layers(program, device, end_ps - start_ps, cost_options(run.config))
    advice = advise(
        Figures(
            step_ps=int(figures["time_ps"]),
            ingest=ingest_wait(program, strip, int(figures["ingest_ps"]), system),
            parts=parts,
            path_ps={name: strip.total_ps(name) for name in PARTS},
            collectives=program.collectives,
            combine=combine_cost(device, "fp32"),
            mesh=mesh,
            router=metrics.router_table(run.config) is not None,
            charged=charged,
            cuts=crowded,
            load=load,
            roofs=roofs,
        )
    )
    return {
        "parts": [vars(part) | {"span_ps": part.span_ps} for part in parts],
        "longest_op": _longest_op(program, strip),
        "charged_links": [_charged(mesh, link, ps, int(figures["time_ps"])) for link, ps in charged[:_MOST]],
        "hot_links": hot_links(run, step, _MOST).reset_index().to_dict("records"),
        "cuts": [vars(cut) for cut in crowded[:_MOST]],
        "device_load": _load(mesh, load),
        "memory": _memory(run),
        "roofline": [_roof(roof) for roof in roofs],
        "layers": [vars(one) for one in of_layers],
        "advice": [vars(one) for one in advice],
    }


def _longest_op(program: Program, strip: PathStrip) -> dict[str, Any] | None:
    """Of the labels of COMPUTE ops on the critical path, that which takes most of it."""
    pieces = np.flatnonzero(program.kind[strip.op] == OpKind.COMPUTE)
    pieces = pieces[strip.part[pieces] == PARTS.index("compute")]
    if not len(pieces):
        return None
    by_label = np.zeros(len(program.labels), np.int64)
    np.add.at(by_label, program.label[strip.op[pieces]], (strip.end_ps - strip.start_ps)[pieces])
    label = int(by_label.argmax())
    op = int(strip.op[pieces][program.label[strip.op[pieces]] == label][0])
    op_class = program.op_classes[program.op_class[op]]
    return {"label": program.labels[label], "op_class": op_class, "op": op, "path_ps": int(by_label[label])}


def _charged(mesh: Mesh, link: int, charged_ps: int, step_ps: int) -> dict[str, Any]:
    name, kind = short_name(mesh, link), mesh.class_names[mesh.link_class[link]]
    return {"link": link, "name": name, "class": kind, "charged_ps": charged_ps, "share": charged_ps / max(step_ps, 1)}


def _load(mesh: Mesh, load: DeviceLoad) -> dict[str, Any]:
    def named(devices: tuple[int, ...]) -> list[str]:
        return [mesh.place(device) for device in devices[:_MOST]]

    groups = {"stragglers": load.stragglers, "waiting": load.waiting, "unused": load.unused}
    counts = {f"n_{name}": len(devices) for name, devices in groups.items()}
    names = {name: named(devices) for name, devices in groups.items()}
    times = {"median_ps": load.median_ps, "busiest_ps": load.busiest_ps}
    return {"imbalance": load.imbalance, **times, **counts, **names}


def _memory(run: Run) -> dict[str, Any] | None:
    use = run.memory_use()
    if use is None or not len(use.points):
        return None
    fullest = int(use.live_bytes.sum(axis=1).argmax())
    held = dict(zip(MEMORY_CATEGORIES, use.live_bytes[fullest].tolist(), strict=True))
    by_category = {name: size for name, size in held.items() if size}
    peaks = use.total_bytes[use.total_bytes > 0]
    return {
        "device": run.mesh().place(use.busiest),
        "point": use.points[fullest],
        "peak_bytes": sum(by_category.values()),
        "least_bytes": int(peaks.min()),
        "median_bytes": int(np.median(peaks)),
        "bytes_by_category": dict(sorted(by_category.items(), key=lambda item: -item[1])),
    }


def _roof(roof: ClassRoof) -> dict[str, Any]:
    return vars(roof) | {"of_roof": roof.of_roof}


def cost_options(config: str) -> CostOptions:
    """Whether ops were fused; calibration changes times, but not what bounds an op."""
    return CostOptions(fusion=bool(tomllib.loads(config).get("timing", {}).get("fusion", False)))
