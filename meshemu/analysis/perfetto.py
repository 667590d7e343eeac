"""A step as a trace that ui.perfetto.dev and chrome://tracing open (Chrome trace event format, JSON).

    process   a device; one more for the links
    thread    "compute", "combine", "messages out", "interface processors"; a second where slices of one overlap
    slice     a COMPUTE, REDUCE or INTERFACE op; a message, on its sender, from hand-over until it has arrived
    flow      from a message to the op, or the message sent on, that first had to wait for it
    counter   use of the busiest links, bin by bin

ts and dur are in us; six decimals keep picoseconds, of which Perfetto shows nanoseconds. Large Programs are bounded:
the devices busiest by compute and combinations are kept whole, and otherData says what was left out.
"""

import gzip
import heapq
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meshemu.analysis.link_use import link_use
from meshemu.analysis.metrics import busiest_links
from meshemu.errors import RecordError
from meshemu.hardware import System
from meshemu.mesh import Mesh
from meshemu.program.ir import OpKind, Program
from meshemu.record import Run

__all__ = ["save", "trace"]

_I64 = NDArray[np.int64]
_Event = dict[str, Any]

_MOST_SLICES = 80_000
_N_COUNTERS = 16
_SLICE, _FLOW = 0, 1  # at one time, slices come first: a flow binds to the slice that is open
_THREADS = ("compute", "combine", "messages out", "interface processors")
_MESSAGES = _THREADS.index("messages out")
_THREAD_OF = {OpKind.COMPUTE: 0, OpKind.REDUCE: 1, OpKind.INTERFACE: 3}
_LANES_APART = 1000  # thread ids of one kind lie this far from those of the next


def save(run: Run, path: str | os.PathLike[str], most_slices: int = _MOST_SLICES) -> None:
    """Write the trace of the first recorded step to `path`, compressed if its name ends in .gz.

    Raises:
        RecordError: no op times are recorded, or the file cannot be written.
    """
    target = Path(path)
    text = json.dumps(trace(run, most_slices), ensure_ascii=True, separators=(",", ":")).encode()
    try:
        target.write_bytes(gzip.compress(text, 6, mtime=0) if target.suffix == ".gz" else text)
    except OSError as error:
        raise RecordError(f"cannot write {path}: {os.strerror(error.errno) if error.errno else error}") from None


def trace(run: Run, most_slices: int = _MOST_SLICES) -> dict[str, Any]:
    """The trace as a JSON object: traceEvents in order of time, displayTimeUnit, otherData.

    most_slices: bound on ops and messages together; at least one device is kept.

    Raises:
        RecordError: no op times are recorded.
    """
    program, mesh = run.program(), run.mesh()
    start_ps, end_ps = run.op_times()
    devices = _devices_kept(program, start_ps, end_ps, most_slices)
    slices = _Slices(program, start_ps, end_ps, devices)
    events = [*slices.events(mesh), *_counters(run, program.n_devices + 1)]
    events.sort(key=lambda entry: entry[:2])
    names = [*slices.names(mesh), _named("process_name", program.n_devices + 1, 0, "busiest links")]
    return {
        "traceEvents": [*names, *(event for _, _, event in events)],
        "displayTimeUnit": "ns",
        "otherData": _other_data(run, program, devices, len(slices.op)),
    }


class _Slices:
    """Ops and messages of some devices, each on a thread of its device where it overlaps no other."""

    def __init__(self, program: Program, start_ps: _I64, end_ps: _I64, devices: _I64) -> None:
        self.program, self.devices = program, devices
        kept = np.isin(program.device, devices)
        ops = np.flatnonzero(kept & np.isin(program.kind, list(_THREAD_OF)) & (end_ps > start_ps))
        messages = np.flatnonzero(kept[program.send_op]) if program.n_messages else np.zeros(0, np.int64)
        sends = program.send_op[messages]
        self.op = np.concatenate([ops, sends])
        self.message = np.concatenate([np.full(len(ops), -1), messages])
        self.start_ps = start_ps[self.op]
        self.end_ps = np.concatenate([end_ps[ops], end_ps[program.recv_op[messages]]])
        thread_of = np.array([_THREAD_OF.get(kind, -1) for kind in OpKind])
        self.kind = np.concatenate([thread_of[program.kind[ops]], np.full(len(messages), _MESSAGES)])
        self.lane = self._lanes()

    def events(self, mesh: Mesh) -> Iterator[tuple[int, int, _Event]]:
        """(time in ps, order, event) of slices and flows."""
        thread = self.kind * _LANES_APART + self.lane
        waits_for = self._first_waiting()
        for at in range(len(self.op)):
            message, start = int(self.message[at]), int(self.start_ps[at])
            place = {"pid": int(self.program.device[self.op[at]]) + 1, "tid": int(thread[at])}
            duration = {"ts": start / 1e6, "dur": (int(self.end_ps[at]) - start) / 1e6}
            about = self._of_op(int(self.op[at])) if message < 0 else self._of_message(message, mesh)
            yield start, _SLICE, {"ph": "X", **place, **duration, **about}
            if (there := waits_for.get(message, -1)) >= 0:
                flow = {"name": "message", "cat": "message", "id": message}
                yield start, _FLOW, {"ph": "s", **place, "ts": start / 1e6, **flow}
                begins = int(self.start_ps[there])
                place = {"pid": int(self.program.device[self.op[there]]) + 1, "tid": int(thread[there])}
                yield begins, _FLOW, {"ph": "f", "bp": "e", **place, "ts": begins / 1e6, **flow}

    def names(self, mesh: Mesh) -> Iterator[_Event]:
        """Names of processes and threads."""
        for device in self.devices.tolist():
            yield _named("process_name", device + 1, 0, f"device {device}: {mesh.place(device)}")
            yield {"ph": "M", "pid": device + 1, "tid": 0, "name": "process_sort_index", "args": {"sort_index": device}}
        used = np.unique(np.stack([self.program.device[self.op], self.kind, self.lane]), axis=1)
        for device, kind, lane in used.T.tolist():
            tid, name = kind * _LANES_APART + lane, _THREADS[kind]
            yield _named("thread_name", device + 1, tid, f"{name} {lane + 1}" if lane else name)
            yield {"ph": "M", "pid": device + 1, "tid": tid, "name": "thread_sort_index", "args": {"sort_index": tid}}

    def _lanes(self) -> _I64:
        """For each slice the lowest lane of its device and kind that is free when it starts."""
        lane = np.zeros(len(self.op), np.int64)
        group = self.program.device[self.op] * len(_THREADS) + self.kind
        in_use: list[tuple[int, int]] = []  # (when it becomes free, lane)
        free: list[int] = []
        before = -1
        for at in np.lexsort((self.end_ps, self.start_ps, group)).tolist():
            if group[at] != before:
                in_use, free, before = [], [], int(group[at])
            while in_use and in_use[0][0] <= self.start_ps[at]:
                heapq.heappush(free, heapq.heappop(in_use)[1])
            lane[at] = heapq.heappop(free) if free else len(in_use)
            heapq.heappush(in_use, (int(self.end_ps[at]), int(lane[at])))
        return lane

    def _first_waiting(self) -> dict[int, int]:
        """Message -> the slice among those that depend on its arrival that starts first (lowest of several)."""
        program = self.program
        slice_of = np.full(program.n_ops, -1)
        slice_of[self.op[::-1]] = np.arange(len(self.op))[::-1]
        waiting = np.repeat(np.arange(program.n_ops), np.diff(program.dep_ptr))
        shown = slice_of[waiting] >= 0
        waiting, needed = slice_of[waiting[shown]], program.dep[shown]
        order = np.lexsort((waiting, self.start_ps[waiting]))[::-1]  # so that the first is the one that stays
        first = dict(zip(needed[order].tolist(), waiting[order].tolist(), strict=True))
        messages = self.message[self.message >= 0]
        return {int(m): first.get(int(program.recv_op[m]), -1) for m in messages}

    def _of_op(self, op: int) -> _Event:
        program = self.program
        args = {
            "op": op,
            "class": program.op_classes[program.op_class[op]],
            "number_format": program.number_formats[program.number_format[op]],
            "flops": int(program.flops[op]),
            "read_bytes": int(program.read_bytes[op]),
            "write_bytes": int(program.write_bytes[op]),
        }
        if program.interface[op] >= 0:
            args["interface"] = int(program.interface[op])
        return {"name": program.labels[program.label[op]], "cat": OpKind(program.kind[op]).name, "args": args}

    def _of_message(self, message: int, mesh: Mesh) -> _Event:
        program = self.program
        send, dst = int(program.send_op[message]), int(program.dst[message])
        args = {
            "message": message,
            "send_op": send,
            "recv_op": int(program.recv_op[message]),
            "bytes": int(program.size_bytes[message]),
            "to": f"device {dst}: {mesh.place(dst)}",
        }
        return {"name": program.labels[program.label[send]], "cat": "MESSAGE", "args": args}


def _devices_kept(program: Program, start_ps: _I64, end_ps: _I64, most_slices: int) -> _I64:
    """The busiest devices whose ops and messages stay within the bound, by id; all that do anything if they fit."""
    slices = np.bincount(program.device[program.kind != OpKind.RECV], minlength=program.n_devices)
    busy_ps = np.zeros(program.n_devices, np.int64)
    unit = (program.kind == OpKind.COMPUTE) | (program.kind == OpKind.REDUCE)
    np.add.at(busy_ps, program.device[unit], (end_ps - start_ps)[unit])
    ranked = np.argsort(-busy_ps, kind="stable")
    ranked = ranked[slices[ranked] > 0]
    fits = int(np.searchsorted(np.cumsum(slices[ranked]), most_slices, side="right"))
    return np.sort(ranked[: max(fits, 1)])


def _counters(run: Run, pid: int) -> Iterable[tuple[int, int, _Event]]:
    """Use of the busiest links in percent of each bin, and zero at the end of the step."""
    use = link_use(run)
    if not use.n_bins:
        return
    table = busiest_links(run, count=_N_COUNTERS)
    percent = 100 * use.share
    for link, name in zip(table.index.tolist(), table["name"].tolist(), strict=True):
        values = [*percent[:, link].tolist(), 0.0]
        for time_ps, value in zip(use.edge_ps.tolist(), values, strict=True):
            event = {"ph": "C", "pid": pid, "tid": 0, "ts": time_ps / 1e6, "name": f"link {link}: {name}"}
            yield time_ps, _SLICE, {**event, "args": {"in use, %": round(value, 6)}}


def _named(kind: str, pid: int, tid: int, name: str) -> _Event:
    return {"ph": "M", "pid": pid, "tid": tid, "name": kind, "args": {"name": name}}


def _other_data(run: Run, program: Program, devices: _I64, n_slices: int) -> dict[str, Any]:
    """What the trace is of, and what it leaves out."""
    active = len(np.unique(program.device)) if program.n_ops else 0
    left_out = active - len(devices)
    note = f"{left_out:,} of {active:,} devices that take part: only the {len(devices):,} busiest are shown"
    return {
        "made_by": f"meshemu {run.meshemu_version}",
        "run": run.path.name,
        "system": System.from_json(run.system_json).name,
        "step": run.recorded_steps[0],
        "time_ps": int(run.steps["time_ps"].iloc[run.recorded_steps[0]]),
        "slices": n_slices,
        "left_out": note if left_out else "nothing",
    }
