"""The trace event format by the letter: which fields an event of each phase has, of which type, and what ties events.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU and what Perfetto says of its importer.
"""

import json
import math
from collections import defaultdict
from typing import Any

__all__ = ["faults"]

_PLACE = {"name": str, "pid": int, "tid": int}
_TIMED = _PLACE | {"ts": (int, float)}
_FIELDS: dict[str, dict[str, Any]] = {
    "M": _PLACE | {"args": dict},
    "X": _TIMED | {"dur": (int, float), "cat": str, "args": dict},
    "C": _TIMED | {"args": dict},
    "s": _TIMED | {"cat": str, "id": (int, str)},
    "f": _TIMED | {"cat": str, "id": (int, str), "bp": str},
}
_METADATA = {"process_name": ("name", str), "thread_name": ("name", str), "process_sort_index": ("sort_index", int),
             "thread_sort_index": ("sort_index", int)}  # fmt: skip


def faults(text: str) -> list[str]:
    """What is wrong with a trace, one line each; [] for one that every viewer takes as it is meant."""
    found: list[str] = []
    trace = json.loads(text, parse_constant=lambda name: found.append(f"{name} is no JSON"))
    if trace.keys() - {"traceEvents", "displayTimeUnit", "otherData"} or "traceEvents" not in trace:
        found.append(f"its keys are {sorted(trace)}")
    if trace.get("displayTimeUnit", "ms") not in ("ms", "ns"):
        found.append(f"displayTimeUnit is {trace['displayTimeUnit']}")
    events = trace["traceEvents"]
    for number, event in enumerate(events):
        found += [f"event {number}: {fault}" for fault in _of_event(event)]
    return found or [*_of_tracks(events), *_of_flows(events)]


def _of_event(event: dict[str, Any]) -> list[str]:
    fields = _FIELDS.get(event.get("ph", ""))
    if fields is None:
        return [f"phase {event.get('ph')!r}"]
    found = [f"no {name}" for name in fields if name not in event]
    found += [f"unknown field {name}" for name in event.keys() - fields.keys() - {"ph"}]
    for name, kind in fields.items():
        value = event.get(name)
        if name in event and (not isinstance(value, kind) or isinstance(value, bool)):
            found.append(f"{name} is {value!r}")
        elif isinstance(value, int | float) and not 0 <= value < math.inf and name != "id":
            found.append(f"{name} is {value}")
    arguments = event.get("args", {})
    if event["ph"] == "M":
        name, kind = _METADATA.get(event.get("name", ""), ("", object))
        if not name or not isinstance(arguments.get(name), kind):
            found.append(f"metadata {event.get('name')} of {arguments}")
    if event["ph"] == "C" and not (arguments and all(isinstance(v, int | float) for v in arguments.values())):
        found.append(f"counts {arguments}")
    if event["ph"] == "f" and event.get("bp") != "e":
        found.append("binds to the next slice")
    return found


def _of_tracks(events: list[dict[str, Any]]) -> list[str]:
    """Time goes on along every track, slices of one do not overlap, and every process and thread is named once."""
    found, names = [], defaultdict(list)
    slices, latest = defaultdict(list), {}
    for event in events:
        place = event["pid"], event["tid"]
        if event["ph"] == "M":
            if event["name"].endswith("_name"):
                names[event["name"], event["pid"], event["tid"] * (event["name"] == "thread_name")].append(event)
            continue
        track = (*place, event["name"] if event["ph"] == "C" else event["ph"])
        if event["ts"] < latest.get(track, 0):
            found.append(f"time goes back on {track} to {event['ts']}")
        latest[track] = event["ts"]
        if event["ph"] == "X":
            slices[place].append((_ps(event["ts"]), _ps(event["ts"]) + _ps(event["dur"])))
        if ("process_name", event["pid"], 0) not in names:
            found.append(f"process {event['pid']} has no name before it is used")
    for place, of_thread in slices.items():
        if ("thread_name", *place) not in names:
            found.append(f"thread {place} has no name")
        ends = [end for _, end in sorted(of_thread)]
        if any(start < end for end, (start, _) in zip(ends, sorted(of_thread)[1:], strict=False)):
            found.append(f"slices overlap on {place}")
    found += [f"{name} is given {len(given)} times" for name, given in names.items() if len(given) > 1]
    shown = defaultdict(set)
    for (kind, pid, tid), (event, *_) in names.items():
        shown[kind, 0 if kind == "process_name" else pid].add((event["args"]["name"], tid, pid))
    found += [f"{kind}s of {pid} are called alike" for (kind, pid), those in shown.items()
              if len({name for name, *_ in those}) < len(those)]  # fmt: skip
    return found


def _of_flows(events: list[dict[str, Any]]) -> list[str]:
    """Each flow begins once and ends once, later and under the same name, and each end lies within a slice."""
    found = []
    ends: dict[str, dict[Any, dict[str, Any]]] = {"s": {}, "f": {}}
    for event in events:
        if event["ph"] in ends:
            key = event["cat"], event["name"], event["id"]
            if key in ends[event["ph"]]:
                found.append(f"flow {key} has two {event['ph']}")
            ends[event["ph"]][key] = event
    found += [f"flow {key} has no other end" for key in ends["s"].keys() ^ ends["f"].keys()]
    for key in ends["s"].keys() & ends["f"].keys():
        if ends["f"][key]["ts"] < ends["s"][key]["ts"]:
            found.append(f"flow {key} ends before it begins")
    open_slices: dict[tuple[int, int], tuple[int, int]] = {}
    for event in events:  # a flow binds to the slice that was begun last, which must not have ended
        place = event["pid"], event["tid"]
        if event["ph"] == "X":
            open_slices[place] = _ps(event["ts"]), _ps(event["ts"]) + _ps(event["dur"])
        elif event["ph"] in ends:
            start, end = open_slices.get(place, (0, -1))
            if not start <= _ps(event["ts"]) < end:
                found.append(f"a {event['ph']} of flow {event['id']} lies in no slice")
    return found


def _ps(value_us: float) -> int:
    return round(value_us * 1e6)
