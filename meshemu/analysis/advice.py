"""What would make a step faster, in sentences with the numbers behind them.

Each kind of advice is a function from figures of the run to a sentence or None. Savings are estimates on a free mesh or
upper bounds, and the sentence says which; the least that is worth a word is a hundredth of the step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.analysis.exposure import Exposure
from meshemu.analysis.hot_spots import Cut, short_name
from meshemu.analysis.ingest import IngestWait, remedy
from meshemu.analysis.roofline import ClassRoof
from meshemu.analysis.stragglers import DeviceLoad
from meshemu.collectives import ALGORITHMS, closed_form_ps, feasible
from meshemu.collectives.recurrence import Combine
from meshemu.mesh import Mesh
from meshemu.program.ir import CollectiveUse
from meshemu.units import format_bandwidth, format_bytes, format_time

__all__ = ["ADVISERS", "Advice", "Figures", "advise"]

WORTH = 0.01  # of the step
_CROWDED = 1.5  # times the mean traffic
_UNEVEN = 1.1  # times the mean compute time


@dataclass(frozen=True)
class Advice:
    """key: what it is about; text: sentences; saving_ps: what it would save by estimate or at most, None if unknown."""

    key: str
    text: str
    saving_ps: int | None


@dataclass(frozen=True, eq=False)
class Figures:
    """What advice is drawn from, of one step that takes step_ps.

    parts: most exposed first. path_ps: critical path by part. collectives: of the Program; router: whether it was timed
    with routers. charged: (link, ps), most charged first. cuts: most crowded first. compute_ps: on the critical path.
    """

    step_ps: int
    ingest: IngestWait
    parts: Sequence[Exposure]
    path_ps: Mapping[str, int]
    collectives: Sequence[CollectiveUse]
    combine: Combine
    mesh: Mesh
    router: bool
    charged: Sequence[tuple[int, int]]
    cuts: Sequence[Cut]
    load: DeviceLoad
    roofs: Sequence[ClassRoof]


def advise(figures: Figures) -> list[Advice]:
    """All that can be said, by the time it would save, unknown savings last; a slow link first, as others follow it."""
    found = [advice for adviser in ADVISERS for advice in adviser(figures)] if figures.step_ps else []
    return sorted(found, key=lambda advice: (advice.key != "slow link", -(advice.saving_ps or 0)))


def slow_link(figures: Figures) -> list[Advice]:
    """A link that holds up the step and is slower than others of its class."""
    if not figures.charged:
        return []
    (link, charged_ps), mesh = figures.charged[0], figures.mesh
    usual = int(np.median(mesh.bandwidth_bytes_per_s[mesh.link_class == mesh.link_class[link]]))
    rate = int(mesh.bandwidth_bytes_per_s[link])
    saving_ps = round(charged_ps * (1 - rate / usual)) if rate < usual else 0
    if saving_ps < WORTH * figures.step_ps:
        return []
    return [
        Advice(
            "slow link",
            f"Link {short_name(mesh, link)} has {format_bandwidth(rate)} where links of its class have "
            f"{format_bandwidth(usual)}, and takes {format_time(charged_ps)} of the {format_time(figures.step_ps)} "
            f"step: at full speed, or avoided by another placement, it would save about {format_time(saving_ps)}.",
            saving_ps,
        )
    ]


def other_algorithm(figures: Figures) -> list[Advice]:
    """Exposed collectives that another algorithm would do faster, by the formulas for a free mesh."""
    known: dict[tuple[object, ...], dict[str, int]] = {}
    savings: dict[tuple[str, str, str], list[tuple[int, Exposure]]] = {}
    for part in (part for part in figures.parts if part.collective >= 0 and part.exposed_ps):
        use = figures.collectives[part.collective]
        alike = use.kind, use.devices, use.grid, use.size_bytes, use.root
        if alike not in known:
            known[alike] = _free_times_ps(use, figures)
        times = known[alike]
        if use.algorithm in times:
            best = min(times, key=lambda name: times[name])
            saving_ps = min(part.exposed_ps, times[use.algorithm] - times[best])
            if saving_ps > 0:
                savings.setdefault((use.kind, use.algorithm, best), []).append((saving_ps, part))
    return [
        _exchanged(figures, *names, saved)
        for names, saved in savings.items()
        if sum(saving_ps for saving_ps, _ in saved) >= WORTH * figures.step_ps
    ]


def _exchanged(figures: Figures, kind: str, algorithm: str, best: str, saved: list[tuple[int, Exposure]]) -> Advice:
    """Collectives of one kind by another algorithm; saved: (ps, part) of each, the most exposed first."""
    saving_ps, exposed_ps = sum(ps for ps, _ in saved), sum(part.exposed_ps for _, part in saved)
    label, size = saved[0][1].label, figures.collectives[saved[0][1].collective].size_bytes
    which = f"The {kind} of {label} ({algorithm}, {format_bytes(size)}) is"
    if len(saved) > 1:
        which = f"{len(saved)} collectives {kind} ({algorithm}), first of all {label} ({format_bytes(size)}), are"
    return Advice(
        "collective",
        f"{which} exposed for {format_time(exposed_ps)} of the {format_time(figures.step_ps)} step; {best} would save "
        f"an estimated {format_time(saving_ps)}, by the times of both on a free mesh (timing.collective).",
        saving_ps,
    )


def combinations(figures: Figures) -> list[Advice]:
    """Many combinations of received pieces after one another."""
    combine_ps = figures.path_ps["combine"]
    if 4 * combine_ps < figures.step_ps:
        return []
    part = max(figures.parts, key=lambda part: part.exposed_ps_by_part.get("combine", 0))
    times = sum(part.exposed_ps_by_part.get("combine", 0) > 0 for part in figures.parts)
    return [
        Advice(
            "combinations",
            f"Combining received pieces takes {format_time(combine_ps)} of the {format_time(figures.step_ps)} step, in "
            f"{times} parts of it, most of all in {_name(part)} ({format_time(part.exposed_ps_by_part['combine'])}): "
            "fewer reductions, or devices that combine faster, would save part of it.",
            None,
        )
    ]


def bandwidth(figures: Figures) -> list[Advice]:
    """The class of links on which the step spends most time putting bytes."""
    if 4 * figures.path_ps["serialisation"] < figures.step_ps:
        return []
    mesh = figures.mesh
    by_class = np.zeros(len(mesh.class_names), np.int64)
    for link, charged_ps in figures.charged:
        by_class[mesh.link_class[link]] += charged_ps
    name = mesh.class_names[int(by_class.argmax())]
    saving_ps = min(int(by_class.max()), figures.path_ps["serialisation"]) // 2
    return [
        Advice(
            "bandwidth",
            f"Putting bytes on links takes {format_time(figures.path_ps['serialisation'])} of the "
            f"{format_time(figures.step_ps)} step, most of it on {name} links: with twice their bandwidth it would "
            f"save up to {format_time(saving_ps)}; so would half the bytes, as 16-bit gradients are of fp32.",
            saving_ps,
        )
    ]


def latency(figures: Figures) -> list[Advice]:
    """Many small messages after one another."""
    latency_ps = figures.path_ps["latency"]
    if 4 * latency_ps < figures.step_ps:
        return []
    part = max(figures.parts, key=lambda part: part.exposed_ps_by_part.get("latency", 0))
    return [
        Advice(
            "latency",
            f"Latency of links takes {format_time(latency_ps)} of the {format_time(figures.step_ps)} step, most of all "
            f"in {_name(part)} ({format_time(part.exposed_ps_by_part['latency'])}): fewer and larger messages, or "
            "devices closer together, would save part of it.",
            None,
        )
    ]


def crowded_line(figures: Figures) -> list[Advice]:
    """Traffic that gathers on one line while messages of the critical path wait."""
    waiting_ps = figures.path_ps["waiting"]
    if 10 * waiting_ps < figures.step_ps or not figures.cuts or figures.cuts[0].ratio < _CROWDED:
        return []
    if slow_link(figures):  # what waits then, waits for that link
        return []
    cut = figures.cuts[0]
    return [
        Advice(
            "crowded links",
            f"The {cut.links} links {cut.where} carry {cut.ratio:.1f} times the mean, and messages on the critical "
            f"path wait {format_time(waiting_ps)} for links: another placement or routing would save up to that.",
            waiting_ps,
        )
    ]


def uneven_compute(figures: Figures) -> list[Advice]:
    """Devices that compute longer than others, or not at all."""
    load, found = figures.load, []
    if load.imbalance >= _UNEVEN:
        saving_ps = round(load.busiest_ps * (1 - 1 / load.imbalance))
        who = f", {len(load.stragglers)} of them above the median," if load.stragglers else ""
        found.append(
            Advice(
                "imbalance",
                f"The busiest device computes {load.imbalance:.2f} times as long as the mean{who}: spread evenly it "
                f"would save up to {format_time(saving_ps)}.",
                saving_ps,
            )
        )
    if load.unused and load.imbalance:
        n_alive = int(figures.mesh.alive.sum())
        unused = f"{len(load.unused)} of {n_alive} devices compute nothing: the plan leaves them out."
        found.append(Advice("unused", unused, None))
    return found


def below_the_roof(figures: Figures) -> list[Advice]:
    """The class of compute that takes most of the critical path, where it is not arithmetic that bounds it."""
    found = []
    for roof in figures.roofs:
        of_path = sum(p.exposed_ps for p in figures.parts if p.kind == "compute" and p.label == roof.op_class)
        if 10 * of_path < figures.step_ps or roof.bound not in _REMEDY:
            continue
        found.append(
            Advice(
                "roofline",
                f"{roof.op_class} in {roof.number_format} takes {format_time(of_path)} of the "
                f"{format_time(figures.step_ps)} step and is bound by {_REMEDY[roof.bound]} "
                f"({100 * roof.share:.0f} % of its time).",
                None,
            )
        )
    return found[:1]


def ingest(figures: Figures) -> list[Advice]:
    """A step that waits for its batch, and at which rate it would not."""
    waits_ps = figures.ingest.waits_ps
    if waits_ps < WORTH * figures.step_ps:
        return []
    waits = f"The step waits {format_time(waits_ps)} of {format_time(figures.step_ps)} for input data"
    return [Advice("ingest", f"{waits}: {remedy(figures.ingest)}.", waits_ps)]


ADVISERS: tuple[Callable[[Figures], list[Advice]], ...] = (
    slow_link, other_algorithm, combinations, bandwidth, latency, crowded_line, uneven_compute, below_the_roof, ingest,
)  # fmt: skip

_REMEDY = {
    "load": "loads from memory: fused operators or a narrower number format would load less",
    "store": "stores to memory: fused operators or a narrower number format would store less",
    "launch": "the launch of ops: larger blocks or fused operators would need fewer",
    "broadcast": "operands on the network within the device: larger blocks would use each more often",
}


def _free_times_ps(use: CollectiveUse, figures: Figures) -> dict[str, int]:
    """Time of a collective on a free mesh by every algorithm that can do it; empty where its grid is not known."""
    grid = _grid(use, figures.mesh)
    if grid is None:
        return {}
    itemsize = 4 if use.size_bytes % 4 == 0 else 1
    possible = {use.algorithm, *feasible(use.kind, figures.mesh, grid)}
    names = [name for name in ALGORITHMS if name in possible and not (name == "in_network" and figures.router)]
    return {
        name: closed_form_ps(
            use.kind, name, figures.mesh, grid, use.size_bytes, itemsize, figures.combine, root=max(use.root, 0)
        )
        for name in names
    }


def _grid(use: CollectiveUse, mesh: Mesh) -> NDArray[np.int64] | None:
    """Ids of the participants on the grid of the group, -1 where none takes part."""
    rows, cols = use.grid
    devices = np.array(use.devices, np.int64)
    if len(devices) == rows * cols:
        return devices.reshape(rows, cols)
    row, in_row = np.unique(mesh.row[devices], return_inverse=True)
    col, in_col = np.unique(mesh.col[devices], return_inverse=True)
    if (len(row), len(col)) != (rows, cols):
        return None
    grid = np.full((rows, cols), -1, np.int64)
    grid[in_row, in_col] = devices
    return grid


def _name(part: Exposure) -> str:
    return f"{part.kind} {part.label}".strip()
