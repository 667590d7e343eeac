"""The trace keeps to the rules of the trace event format, and says in ps what the run says."""

import gzip
import json
from collections import defaultdict
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from stored_step import stored_step
from synthetic_run import make_case
from trace_format import faults

import meshemu
from meshemu.analysis import perfetto
from meshemu.cli import main
from meshemu.errors import RecordError
from meshemu.network.results import OpTimes
from meshemu.program.ir import OpKind
from meshemu.record import open_run


def ps(value_us: float) -> int:
    return round(value_us * 1e6)


def check_rules(trace: dict) -> dict[str, list[dict]]:
    """The events by phase, after checks that hold for every trace."""
    assert faults(json.dumps(trace)) == []
    events = trace["traceEvents"]
    by_phase = defaultdict(list)
    for event in events:
        by_phase[event["ph"]].append(event)
    times = [event["ts"] for event in events if event["ph"] != "M"]
    assert times == sorted(times)
    assert all(event["ph"] == "M" for event in events[: len(by_phase["M"])])
    used = {(event["pid"], event["tid"]) for event in by_phase["X"]}
    assert used == {(event["pid"], event["tid"]) for event in by_phase["M"] if event["name"] == "thread_name"}
    return by_phase


@pytest.fixture(scope="module")
def reduced(tmp_path_factory: pytest.TempPathFactory) -> meshemu.record.Run:
    """An all-reduce by trees over a tile."""
    system = meshemu.System.preset("dojo-tile")
    program = meshemu.collective("all_reduce", algorithm="tree", system=system, size_bytes=2**16)
    return open_run(stored_step(tmp_path_factory.mktemp("trace") / "run.h5", program, system))


def test_trace_of_an_all_reduce(reduced: meshemu.record.Run) -> None:
    program = reduced.program()
    start_ps, end_ps = reduced.op_times()
    by_phase = check_rules(perfetto.trace(reduced))
    ops = {event["args"]["op"]: event for event in by_phase["X"] if event["cat"] != "MESSAGE"}
    on_unit = np.isin(program.kind, (OpKind.COMPUTE, OpKind.REDUCE)) & (end_ps > start_ps)
    assert sorted(ops) == np.flatnonzero(on_unit).tolist()
    for op, event in ops.items():
        assert (ps(event["ts"]), ps(event["dur"])) == (start_ps[op], end_ps[op] - start_ps[op])
        assert event["pid"] == program.device[op] + 1 and event["args"]["flops"] == program.flops[op]
    messages = {event["args"]["message"]: event for event in by_phase["X"] if event["cat"] == "MESSAGE"}
    assert sorted(messages) == list(range(program.n_messages))
    assert sum(event["args"]["bytes"] for event in messages.values()) == program.size_bytes.sum()
    for message, event in messages.items():
        assert ps(event["ts"]) + ps(event["dur"]) == end_ps[program.recv_op[message]]
    for flow in by_phase["f"]:  # nobody uses what has not arrived
        assert ps(flow["ts"]) >= end_ps[program.recv_op[flow["id"]]]
    assert len(by_phase["s"]) > program.n_messages / 2


def test_counters_hold_the_use_of_links(reduced: meshemu.record.Run) -> None:
    counters = defaultdict(list)
    for event in check_rules(perfetto.trace(reduced))["C"]:
        counters[event["name"]].append((ps(event["ts"]), *event["args"].values()))
    assert len(counters) == 16
    links = reduced.links(-1)
    for name, values in counters.items():
        link = int(name.removeprefix("link ").partition(":")[0])
        width = np.diff([time for time, _ in values])
        busy = sum(share / 100 * length for (_, share), length in zip(values[:-1], width, strict=True))
        assert busy == pytest.approx(links["busy_ps"][link], rel=1e-5)
        assert values[-1] == (reduced.steps["time_ps"].iloc[0], 0)


def followed(event: dict, events: list[dict]) -> bool:
    """Whether there is a later slice on the same thread."""
    place = event["pid"], event["tid"]
    return any((other["pid"], other["tid"]) == place and other["ts"] > event["ts"] for other in events)


Change = Callable[[dict[str, list[dict]]], object]
WRONG: dict[str, Change] = {
    "no name": lambda of: of["X"][0].pop("name"),
    "no dur": lambda of: of["X"][0].pop("dur"),
    "dur is -1": lambda of: of["X"][0].update(dur=-1),
    "ts is '1'": lambda of: of["X"][0].update(ts="1"),
    "no pid": lambda of: of["C"][0].pop("pid"),
    "unknown field colour": lambda of: of["X"][0].update(colour=1),
    "phase 'B'": lambda of: of["X"][0].update(ph="B"),
    "counts {}": lambda of: of["C"][0].update(args={}),
    "metadata process_name of {}": lambda of: of["processes"][0].update(args={}),
    "NaN is no JSON": lambda of: of["C"][0].update(args={"in use": float("nan")}),
    "binds to the next slice": lambda of: of["f"][0].update(bp="n"),
    "has no other end": lambda of: of["f"][0].update(id=-1),
    "ends before it begins": lambda of: [of["s"][0].update(ts=of["f"][-1]["ts"] + 1), of["f"][0].update(ts=0)],
    "lies in no slice": lambda of: of["s"][0].update(tid=999),
    "time goes back on": lambda of: of["C"][-1].update(ts=0),
    "slices overlap": lambda of: next(one for one in of["X"] if followed(one, of["X"])).update(dur=1e9),
    "has no name before": lambda of: of["X"][0].update(pid=9999),
    "is given 2 times": lambda of: of["processes"][1].update(pid=of["processes"][0]["pid"]),
    "are called alike": lambda of: of["processes"][1].update(args=of["processes"][0]["args"]),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_broken_rule_is_noticed(fault: str, reduced: meshemu.record.Run) -> None:
    trace = deepcopy(perfetto.trace(reduced))
    by_phase = check_rules(trace)
    by_phase["processes"] = [event for event in by_phase["M"] if event["name"] == "process_name"]
    WRONG[fault](by_phase)
    assert any(fault in said for said in faults(json.dumps(trace)))


@settings(max_examples=8, deadline=None, derandomize=True, phases=(Phase.generate,))
@given(seed=st.integers(0, 2**16), most=st.integers(1, 60))
def test_any_times_and_any_bound_keep_to_the_rules(
    seed: int, most: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Ops that overlap on a unit, as no engine would time them, still get threads on which nothing overlaps."""
    case = make_case(3, 3)
    random = np.random.default_rng(seed)
    start = random.integers(0, 1000, case.program.n_ops)
    end = start + random.integers(0, 400, case.program.n_ops)
    send_of = dict(zip(case.program.recv_op.tolist(), case.program.send_op.tolist(), strict=True))
    order = sorted(range(case.program.n_ops), key=lambda op: (case.program.label[op], case.program.kind[op]))
    for op in order:  # causality alone: an op starts after what it waits for
        waited = end[case.program.dep[case.program.dep_ptr[op] : case.program.dep_ptr[op + 1]]]
        later = max(0, waited.max(initial=0) - start[op], start[send_of.get(op, op)] - start[op])
        start[op] += later
        end[op] += later
    wrong = replace(case, ops=OpTimes(start, end), time_ps=int(end.max()))
    run = open_run(wrong.write(tmp_path_factory.mktemp("times") / "run.h5", n_steps=1))
    trace = perfetto.trace(run, most)
    by_phase = check_rules(trace)
    shown = {event["pid"] - 1 for event in by_phase["X"]}
    assert len(by_phase["X"]) <= most or len(shown) == 1
    note = trace["otherData"]["left_out"]
    assert (note == "nothing") if len(shown) == 9 else (f"{9 - len(shown)} of 9 devices" in note)


def test_files_plain_and_compressed(tmp_path: Path, reduced: meshemu.record.Run) -> None:
    perfetto.save(reduced, tmp_path / "trace.json")
    perfetto.save(reduced, tmp_path / "trace.json.gz")
    text = (tmp_path / "trace.json").read_bytes()
    packed = (tmp_path / "trace.json.gz").read_bytes()
    assert gzip.decompress(packed) == text and len(packed) < len(text) / 4
    assert json.loads(text)["otherData"]["system"] == "dojo-tile"
    perfetto.save(reduced, tmp_path / "again.json.gz")
    assert (tmp_path / "again.json.gz").read_bytes() == packed
    with pytest.raises(RecordError, match="cannot write"):
        perfetto.save(reduced, tmp_path / "nowhere" / "trace.json")


def test_a_run_without_op_times_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    case = make_case(2, 2)
    with case.writer(tmp_path / "run.h5", 1) as writer:
        writer.append_step(case.step(0))
        writer.finish({"ranks": 1})
    target = tmp_path / "trace.json"
    assert main(["report", str(tmp_path / "run.h5"), "--no-png", "--perfetto", str(target)]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert "op times of step 0 are not recorded" in line and not target.exists()
