"""A stored run timed in both modes of the network, and how far they disagree.

Links that are FIFOs without bounds never hold a sender back; routers with finite buffers do. Where both give the same
time, the network is not congested and the fast mode is as good; where they differ, this says by how much and on which
links. The stored Program is timed again, so neither torch nor the model is needed.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meshemu.analysis.table import percent, table
from meshemu.emulator.changes import Setting, changed_setting
from meshemu.emulator.retiming import time_stored
from meshemu.emulator.timed_step import TimedStep
from meshemu.hardware import Router
from meshemu.network import Disagreement
from meshemu.record import Run
from meshemu.runtime.local import SingleComm
from meshemu.units import format_time

__all__ = ["both_modes", "render"]

MODES = ("fifo", "router")
MOST_LINKS = 3  # of each mode
AGREE = 0.01  # relative difference up to which the modes are said to agree
_WIDTH = 100
def both_modes(run: Run, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Times of a step in both modes as JSON-able values, in ps.

    overrides: as of `retime`; the router is that of the run after them or, where it has none, `Router()`. Raises
    InputError for a Program that routers cannot carry, and for what does not fit them.

    router: its figures. fifo, router of `step`: time_ps, exposed_comm_ps and wait_ps, which is how long all packets
    waited for links. disagreement: of time_ps, relative to FIFOs. links: those where packets waited longest in either
    mode, with their wait_ps in both. meaning: a sentence.
    """
    setting = changed_setting(run, overrides)
    router = setting.options.router or Router()
    fifo, routers = (_timed(run, setting, mode) for mode in (None, router))
    both = Disagreement(fifo=fifo.timing, router=routers.timing)
    wait_ps = dict(zip(MODES, both.wait_ps, strict=True))
    step = {mode: _figures(timed) for mode, timed in zip(MODES, (fifo, routers), strict=True)}
    mesh = routers.mesh
    return {
        "router": router.as_table(),
        "words": router.describe(),
        "step": step,
        "disagreement": both.relative,
        "links": [
            {
                "link": int(link),
                "name": mesh.link_name(int(link)),
                "class": mesh.class_names[mesh.link_class[link]],
                "wait_ps": {mode: int(wait_ps[mode][link]) for mode in MODES},
            }
            for link in _most_contended(wait_ps["fifo"], wait_ps["router"])
        ],
        "meaning": _meaning(both.relative, any(figures["wait_ps"] for figures in step.values()), router),
    }


def render(content: Mapping[str, Any]) -> str:
    """What `both_modes` found, as text. How long packets wait is told of each mode by itself: it counts whole backlogs
    in FIFOs, but only heads of packets in routers, whose virtual channels share a link.
    """
    step = content["step"]
    times = {key: [step[mode][key] for mode in MODES] for key in ("time_ps", "exposed_comm_ps", "wait_ps")}
    rows = [
        ["time of the step", *map(format_time, times["time_ps"]), _change(*times["time_ps"])],
        ["exposed communication", *map(format_time, times["exposed_comm_ps"]), _change(*times["exposed_comm_ps"])],
        ["packets waited, all together", *map(format_time, times["wait_ps"]), ""],
    ]
    lines = [
        *textwrap.wrap(f"Both modes: unbounded FIFOs, and routers with {content['words']}", _WIDTH),
        table(["", "FIFO", "routers", "disagreement"], rows),
    ]
    if content["links"]:
        cells = [
            [row["name"], str(row["link"]), row["class"], *(format_time(row["wait_ps"][mode]) for mode in MODES)]
            for row in content["links"]
        ]
        head = ["most contended links", "id", "class", "waited, FIFO", "waited, routers"]
        lines.append(table(head, cells))
    return "\n".join([*lines, *textwrap.wrap(content["meaning"], _WIDTH)])


def _timed(run: Run, setting: Setting, router: Router | None) -> TimedStep:
    options = replace(setting.options, router=router, timeline_bins=1)
    return time_stored(run, replace(setting, options=options), SingleComm())


def _figures(timed: TimedStep) -> dict[str, int]:
    summary = timed.summary
    wait_ps = int(timed.timing.links.wait_ps.sum())
    return {"time_ps": summary.time_ps, "exposed_comm_ps": summary.exposed_comm_ps, "wait_ps": wait_ps}


def _most_contended(fifo_ps: NDArray[np.int64], router_ps: NDArray[np.int64]) -> list[int]:
    """The links where packets waited longest in either mode, by the longer of both (ties: lowest id)."""
    chosen = {int(link) for wait in (fifo_ps, router_ps) for link in np.argsort(-wait, kind="stable")[:MOST_LINKS]}
    longer_ps = np.maximum(fifo_ps, router_ps)
    return sorted((link for link in chosen if longer_ps[link] > 0), key=lambda link: (-longer_ps[link], link))


def _change(fifo_ps: int, router_ps: int) -> str:
    return percent(router_ps - fifo_ps, fifo_ps, sign=True)


def _meaning(relative: float, some_wait: bool, router: Router) -> str:
    """What the disagreement of the step's time says about its figures."""
    share = percent(abs(relative), 1)
    if relative == 0:
        return "Both modes agree exactly: nothing that waits delays the step, so the times of FIFOs hold."
    if not some_wait:
        return (
            f"No packet waits in either mode: the {share} are what routers take to pass flits on (pipeline, injection "
            "and ejection), not contention. But for that, the times of FIFOs hold."
        )
    if abs(relative) <= AGREE:
        return f"Both modes agree within {AGREE:.0%}: buffers hold hardly anybody back, so the times of FIFOs hold."
    if relative < 0:
        return (
            f"With routers the step is {share} shorter: they serve messages that compete for a link by turns, FIFOs in "
            "the order in which they came. The time depends on arbitration: take neither as exact."
        )
    meaning = (
        f"With routers the step is {share} longer: where buffers are full they hold senders back, and a packet that "
        "waits holds up those behind it. The times of FIFOs are too short by that much."
    )
    if router.buffer_flits is None:
        return meaning
    return (
        f"{meaning} Moreover, buffer_flits = {router.buffer_flits} may be too few to keep a link busy until credits "
        "come back; left out, they are enough."
    )
