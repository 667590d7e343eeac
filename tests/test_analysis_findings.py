"""Findings: the parts of a step are the step, the link or op that bounds it is named first, advice follows figures."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_run import Case, make_case

from meshemu.analysis import advice as advising
from meshemu.analysis.exposure import Exposure, exposures
from meshemu.analysis.hot_spots import charged_links, cuts, short_name
from meshemu.analysis.ingest import NO_WAIT
from meshemu.analysis.path_strip import PARTS, path_strip
from meshemu.analysis.report import as_dict, render
from meshemu.analysis.roofline import class_roofs
from meshemu.analysis.stragglers import DeviceLoad, device_load
from meshemu.collectives import closed_form_ps, collective_program
from meshemu.cost import combine_cost, durations_ps
from meshemu.hardware import DeviceSpec, System
from meshemu.mesh import EAST, flatten
from meshemu.network import time_program
from meshemu.network.results import OpTimes
from meshemu.network.summary import step_summary
from meshemu.program.builder import ProgramBuilder
from meshemu.program.ir import Program
from meshemu.record import Run, StepRecord, open_run

SPEC = DeviceSpec(
    name="test device", n_nodes=1, matrix_flops_per_s={"bf16": 10**12}, vector_flops_per_s={"fp32": 10**11},
    sram_bytes=2**20, load_bytes_per_s=10**12, store_bytes_per_s=10**12, op_launch_ps=1000, combine_ps=1000,
)


def recorded(system: System, program: Program, path: Path) -> Run:
    """A file of one step of a Program as the engine times it."""
    mesh, duration = flatten(system), durations_ps(program, system.device)
    timing = time_program(program, mesh, duration, packet_bytes=1024)
    summary = step_summary(program, timing, duration)
    case = Case(system, mesh, program, duration, OpTimes(timing.ops.start_ps, timing.ops.end_ps), timing.links, 0)
    with case.writer(path, 1) as writer:
        writer.write_ops(timing.ops)
        writer.write_timeline(timing.timeline)
        writer.append_step(
            StepRecord(
                time_ps=summary.time_ps, compute_ps=summary.compute_ps, exposed_comm_ps=summary.exposed_comm_ps,
                flops=summary.flops, links=timing.links, device_compute_ps=summary.device_compute_ps,
                device_idle_ps=summary.device_idle_ps, wall_s=0.1,
            )
        )  # fmt: skip
        writer.finish({"ranks": 1})
    return open_run(path)


def all_reduce(system: System, algorithm: str, size_bytes: int) -> Program:
    return collective_program("all_reduce", algorithm, flatten(system), size_bytes, itemsize=4)


def grid(rows: int = 4, cols: int = 5, **figures: object) -> System:
    return System.grid(rows=rows, cols=cols, bandwidth="10 GB/s", latency="20 ns", device=SPEC).override(figures)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 3), cols=st.integers(2, 4), seed=st.integers(0, 99), algorithm=st.sampled_from(["ring", "tree"])
)
def test_the_parts_of_a_step_are_the_step(rows: int, cols: int, seed: int, algorithm: str) -> None:
    """Compute on every device, messages between random pairs, then a collective."""
    random = np.random.default_rng(seed)
    system = grid(rows, cols)
    mesh = flatten(system)
    collective = all_reduce(system, algorithm, 4096)
    start, end, strip_run = None, None, None
    builder = ProgramBuilder(mesh.n_devices)
    work = builder.compute(
        np.arange(mesh.n_devices), label="a", op_class="conv", flops=random.integers(1, 10**6, mesh.n_devices),
        read_bytes=64, write_bytes=64, number_format="bf16",
    )  # fmt: skip
    src = random.integers(0, mesh.n_devices, 6)
    dst = (src + random.integers(1, mesh.n_devices, 6)) % mesh.n_devices
    _, send, recv = builder.messages(src, dst, random.integers(1, 5000, 6), label="halo")
    builder.depend(send, work[src])
    add = builder.reduce(
        dst, label="fold", op_class="reduce_sum", flops=5, read_bytes=8, write_bytes=8, number_format="fp32", message=-1
    )
    builder.depend(add, recv)
    for program in (builder.build(), collective):
        timing = time_program(program, mesh, durations_ps(program, system.device), packet_bytes=512)
        start, end = timing.ops.start_ps, timing.ops.end_ps
        strip_run = _Stored(program, mesh, start, end)
        strip = path_strip(strip_run)
        parts = exposures(program, start, end, strip)
        assert sum(part.exposed_ps for part in parts) == timing.end_ps
        assert all(sum(part.exposed_ps_by_part.values()) == part.exposed_ps for part in parts)
        assert all(0 <= part.start_ps <= part.end_ps <= timing.end_ps for part in parts)
        assert sum(part.size_bytes for part in parts) == program.size_bytes.sum()
        assert sum(part.messages for part in parts) == program.n_messages
        kinds = {part.kind for part in parts}
        assert kinds <= ({"compute", "combine", "point-to-point"} if program is not collective else {"all_reduce"})
        charged = charged_links(program, mesh, strip, timing.links.wait_ps, "xy")
        on_links = strip.total_ps("serialisation") + strip.total_ps("waiting")
        assert sum(ps for _, ps in charged) == on_links and charged == sorted(charged, key=lambda pair: -pair[1])


class _Stored:
    """What `path_strip` asks of a run."""

    config = ""

    def __init__(self, program: Program, mesh: object, start: np.ndarray, end: np.ndarray) -> None:
        self._program, self._mesh, self._times = program, mesh, (start, end)

    def program(self) -> Program:
        return self._program

    def mesh(self) -> object:
        return self._mesh

    def op_times(self) -> tuple[np.ndarray, np.ndarray]:
        return self._times

    def once(self, function: object) -> object:
        return function(self)


def test_a_slow_link_is_named_first(tmp_path: Path) -> None:
    """One link of a ring at a tenth of its bandwidth: the verdict, the charges and the advice all begin with it."""
    slow = grid(slow_links=[[[0, 4], [1, 4], 10]])
    program = all_reduce(slow, "ring", 2**20)
    content = as_dict(recorded(slow, program, tmp_path / "slow.h5"))
    link = "r0c4 -> r1c4 south"
    assert f"bounds the step, first of all one link, {link} (link), which alone takes" in content["verdict"]
    assert content["charged_links"][0]["name"] == link and content["charged_links"][0]["share"] > 0.5
    first = content["advice"][0]
    assert f"Link {link} has 1 GB/s where links of its class have 10 GB/s" in first["text"]
    assert first["key"] == "slow link" and content["busiest_links"][0]["link"] == content["charged_links"][0]["link"]
    healthy = as_dict(recorded(grid(), all_reduce(grid(), "ring", 2**20), tmp_path / "healthy.h5"))
    assert "one link" not in healthy["verdict"]
    assert not [one for one in healthy["advice"] if one["key"] == "slow link"]
    saved = content["last_step"]["time_ps"] - healthy["last_step"]["time_ps"]
    assert first["saving_ps"] == pytest.approx(saved, rel=0.1)  # the estimate is what full speed really saves


def test_the_op_that_bounds_a_computing_step_is_named(tmp_path: Path) -> None:
    content = as_dict(open_run(make_case(2, 2, compute_ps=10**8).write(tmp_path / "run.h5")))
    assert "most of it conv (99" in content["verdict"] and "first of all conv1 – forward" in content["verdict"]
    assert content["longest_op"]["label"] == "conv1 – forward" and content["longest_op"]["op_class"] == "conv"


def test_an_exposed_collective_gets_the_faster_algorithm(tmp_path: Path) -> None:
    """By the closed forms; the algorithm that is best already is left alone."""
    system, size = grid(6, 6), 4096
    mesh = flatten(system)
    devices = np.arange(36).reshape(6, 6)
    combine = combine_cost(SPEC, "fp32")
    times = {
        name: closed_form_ps("all_reduce", name, mesh, devices, size, 4, combine)
        for name in ("ring", "rows_columns", "tree")
    }
    best, worst = min(times, key=times.__getitem__), max(times, key=times.__getitem__)
    bad = as_dict(recorded(system, all_reduce(system, worst, size), tmp_path / "bad.h5"))
    (one,) = [one for one in bad["advice"] if one["key"] == "collective"]
    assert f"; {best} would save an estimated" in one["text"] and f"({worst}, 4.096 kB)" in one["text"]
    assert one["saving_ps"] == times[worst] - times[best]
    good = as_dict(recorded(system, all_reduce(system, best, size), tmp_path / "good.h5"))
    assert not [one for one in good["advice"] if one["key"] == "collective"]
    part = bad["parts"][0]
    assert (part["kind"], part["algorithm"], part["exposed_ps"]) == ("all_reduce", worst, bad["last_step"]["time_ps"])
    text = render(open_run(tmp_path / "bad.h5"))
    assert "Advice\n  - " in text and "What the step is made of" in text and max(map(len, text.splitlines()[1:])) <= 120


def figures(**changes: object) -> advising.Figures:
    """A step of 1 us that nothing is wrong with."""
    part = Exposure("compute", "", "conv", -1, 0, 10**6, 10**6, {"compute": 10**6}, 0, 0)
    plain = advising.Figures(
        step_ps=10**6, ingest=NO_WAIT, parts=[part], path_ps=path(), collectives=(), combine=np.zeros_like,
        mesh=flatten(grid()), router=False, charged=[], cuts=[], load=DeviceLoad(1.0, 5, 5, (), (), ()), roofs=[],
    )  # fmt: skip
    return replace(plain, **changes)


def part_of(name: str) -> list[Exposure]:
    return [Exposure("all_reduce", "ring", "x", -1, 0, 9, 9, {name: 300_000}, 3, 100)]


def path(**ps: int) -> dict[str, int]:
    return dict.fromkeys(PARTS, 0) | ps


@pytest.mark.parametrize(
    ("adviser", "changes", "said"),
    [
        ("combinations", {"path_ps": path(combine=300_000), "parts": part_of("combine")}, "takes 300 ns of the 1 us"),
        ("latency", {"path_ps": path(latency=300_000), "parts": part_of("latency")}, "in all_reduce x (300 ns)"),
        ("bandwidth", {"path_ps": path(serialisation=400_000), "charged": [(3, 400_000)]}, "link links: with twice"),
        ("ingest", {"ingest": replace(NO_WAIT, waits_ps=20_000)}, "waits 20 ns of 1 us for input data: more interface"),
        ("uneven_compute", {"load": DeviceLoad(1.25, 4, 5, (3,), (), ())}, "1.25 times as long as the mean, 1 of them"),
        ("uneven_compute", {"load": DeviceLoad(1.0, 5, 5, (), (), (7, 8))}, "2 of 20 devices compute nothing"),
    ],
)
def test_advice_appears_only_where_its_figures_say_so(adviser: str, changes: dict[str, object], said: str) -> None:
    (one,) = getattr(advising, adviser)(figures(**changes))
    assert said in one.text
    assert advising.advise(figures()) == []
    assert one in advising.advise(figures(**changes))


def test_crowded_lines() -> None:
    """All traffic over column 2 to the east, and messages that wait."""
    mesh = flatten(grid())
    carried = np.ones(mesh.n_links, np.int64)
    carried[mesh.out_link[mesh.col == 2, EAST]] = 101
    first = cuts(mesh, carried)[0]
    n = int(np.count_nonzero(mesh.col == 2))
    assert (first.where, first.links, first.mean_bytes) == ("east of column 2", n, 101.0)
    assert first.ratio == pytest.approx(101 / ((mesh.n_links + 100 * n) / mesh.n_links))
    waiting = figures(cuts=[first], path_ps=path(waiting=200_000))
    (one,) = advising.crowded_line(waiting)
    assert "The 4 links east of column 2 carry" in one.text and one.saving_ps == 200_000
    assert advising.crowded_line(figures(cuts=[first])) == []
    assert short_name(mesh, int(mesh.out_link[2, EAST])) == "r0c2 -> r0c3 east"


def test_stragglers_idle_and_unused_devices() -> None:
    alive = np.array([True, True, True, True, False, True])
    load = device_load(np.array([100, 100, 110, 90, 0, 0]), alive)
    assert (load.median_ps, load.busiest_ps, load.imbalance) == (100, 110, 1.1)
    assert (load.stragglers, load.waiting, load.unused) == ((2,), (3,), (5,))
    assert device_load(np.zeros(6, np.int64), alive).imbalance == 0


def test_roofs_by_hand() -> None:
    """A product that the matrix unit bounds, an addition that loads bound, a tiny op that its launch bounds."""
    builder = ProgramBuilder(1)
    fp32 = {"number_format": "fp32"}
    bf16 = {"number_format": "bf16"}
    builder.compute([0], label="m", op_class="mm", flops=10**9, read_bytes=10**6, write_bytes=10**6, **bf16)
    builder.compute([0], label="a", op_class="add", flops=10**6, read_bytes=4 * 10**8, write_bytes=10**6, **fp32)
    builder.compute([0], label="t", op_class="relu", flops=1, read_bytes=8, write_bytes=8, **fp32)
    program = builder.build()
    roofs = {roof.op_class: roof for roof in class_roofs(program, SPEC, durations_ps(program, SPEC))}
    assert [roofs[name].bound for name in ("mm", "add", "relu")] == ["matrix", "load", "launch"]
    assert roofs["mm"].roof_flops_per_s == 1e12 and roofs["mm"].of_roof == pytest.approx(1, abs=1e-5)
    assert roofs["add"].roof_flops_per_s == pytest.approx(1e6 / 4e-4)
    assert roofs["add"].of_roof == pytest.approx(1, abs=1e-5)
    assert roofs["mm"].intensity_flop_per_byte == 500 and roofs["mm"].moved_bytes == 2 * 10**6
    bound_by_loads = figures(roofs=[roofs["add"]], parts=[replace(figures().parts[0], label="add")])
    assert "is bound by loads from memory" in advising.below_the_roof(bound_by_loads)[0].text
    assert advising.below_the_roof(figures(roofs=[roofs["mm"]])) == []
