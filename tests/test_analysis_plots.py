"""Pictures say what the run says, with units, and the same run gives the same bytes."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from stored_step import stored_step
from synthetic_run import make_case

import meshemu
from meshemu.analysis import plots
from meshemu.analysis.activity import representatives, unit_spans
from meshemu.analysis.link_use import link_use
from meshemu.analysis.metrics import union_ps
from meshemu.analysis.path_strip import PARTS, PathStrip, path_strip
from meshemu.analysis.plots.path import _time_per_bin
from meshemu.analysis.sheet import write
from meshemu.cli import drawing, main
from meshemu.cli.commands import Commands, Parser
from meshemu.errors import RecordError
from meshemu.network.results import Timeline
from meshemu.program.ir import OpKind
from meshemu.record import Run, open_run
from meshemu.units import format_time


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return open_run(make_case(5, 5, dead=(18,)).write(tmp_path_factory.mktemp("plots") / "run.h5"))


def drawn(run: Run, kind: str, devices: Sequence[int] = ()) -> Figure:
    """A picture, laid out as it is when it is written."""
    figure = plots.draw(run, kind, devices)
    FigureCanvasAgg(figure).draw()
    return figure


def words_of(figure: Figure) -> list[str]:
    """All text in a figure that was drawn."""
    found = figure.findobj(lambda artist: hasattr(artist, "get_text") and artist.get_visible())
    return [artist.get_text() for artist in found if artist.get_text()]


def test_the_same_run_gives_the_same_bytes(run: Run, tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg", "a.png", "b.png"):
        plots.save(run, "path", tmp_path / name)
    for form in ("svg", "png"):
        assert (tmp_path / f"a.{form}").read_bytes() == (tmp_path / f"b.{form}").read_bytes()
    height, width, _ = imread(tmp_path / "a.png").shape
    assert (width, height) == (1500, 600)


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of tick labels of one axis that run into each other, and texts that leave the page."""
    page = figure.bbox
    found = []
    for axes in figure.axes:
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            shown = [label for label in labels if label.get_text() and label.get_visible()]
            boxes = [(label.get_text(), label.get_window_extent()) for label in shown]
            for (one, a), (two, b) in pairwise(boxes):
                if a.overlaps(b):
                    found.append((one, two))
        for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
            box = label.get_window_extent()
            if label.get_text() and not (page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1):
                found.append((label.get_text(), "the edge of the page"))
    return found


UNITS = {
    "timeline": "us", "utilisation": "time in use (%)", "memory": "peak memory (MB)",
    "roofline": "achieved per device (FLOP/s)", "path": "share of the time (%)", "loss": "training step",
    "links": "time in use  (% of the step)",
}  # fmt: skip
ON_THE_MESH = ("timeline", "utilisation", "memory")  # their layout depends on the number of devices


@pytest.mark.parametrize(("rows", "cols", "kinds"), [(5, 5, plots.KINDS), (1, 40, ON_THE_MESH)])
def test_labels_carry_units_and_stay_apart(rows: int, cols: int, kinds: Sequence[str], tmp_path: Path) -> None:
    run = open_run(make_case(rows, cols).write(tmp_path / "run.h5"))
    for kind in kinds:
        figure = plots.draw(run, kind)
        write(figure, tmp_path / f"{kind}.svg")
        assert b"<text" in (tmp_path / f"{kind}.svg").read_bytes()
        assert any(UNITS[kind] in text for text in words_of(figure)), kind
        if kind != "links":
            assert overlapping(figure) == [], kind


def test_totals_of_the_path_are_in_the_legend(run: Run) -> None:
    words = " ".join(words_of(drawn(run, "path")))
    strip = path_strip(run)
    for part in PARTS:
        assert format_time(strip.total_ps(part)) in words


def test_the_path_laid_out_has_the_parts_of_the_critical_path(tmp_path: Path, run: Run) -> None:
    system = meshemu.System.preset("dojo-tile")
    runs = [run]
    for kind, algorithm in (("all_reduce", "tree"), ("all_gather", "ring")):
        program = meshemu.collective(kind, algorithm=algorithm, system=system, size_bytes=2**14)
        runs.append(open_run(stored_step(tmp_path / f"{algorithm}.h5", program, system)))
    for one in runs:
        strip = path_strip(one)
        assert {part: strip.total_ps(part) for part in PARTS} == {
            part: getattr(strip.path, f"{part}_ps") for part in PARTS
        }
        assert (strip.start_ps[1:] == strip.end_ps[:-1]).all() and strip.start_ps[0] == 0
        assert strip.end_ps[-1] == one.steps["time_ps"].iloc[0] and (strip.end_ps > strip.start_ps).all()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 4)), min_size=1, max_size=20), bins=st.integers(1, 9)
)
def test_time_per_bin_counts_every_ps_once(lengths: list[tuple[int, int]], bins: int) -> None:
    length, part = np.array(lengths).T
    end = np.cumsum(length)
    strip = PathStrip(end - length, end, part, part, None)  # type: ignore[arg-type]
    edges = np.linspace(0, end[-1], bins + 1)
    for number, name in enumerate(PARTS):
        found = _time_per_bin(strip, name, edges)
        pieces = [(e - n, e) for n, p, e in zip(length, part, end, strict=True) if p == number]
        expected = [
            sum(max(0.0, min(e, high) - max(s, low)) for s, e in pieces)
            for low, high in pairwise(edges)
        ]
        assert found == pytest.approx(expected, abs=1e-9)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    ops=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9), st.integers(0, 1)), max_size=25),
    gap=st.integers(0, 5),
)
def test_spans_cover_the_ops_of_a_unit(ops: list[tuple[int, int, int]], gap: int) -> None:
    start, taken, device = np.array(ops, np.int64).reshape(-1, 3).T
    program = SimpleNamespace(device=device, kind=np.full(len(ops), OpKind.COMPUTE))
    spans = unit_spans(program, start, start + taken, 1, OpKind.COMPUTE, gap)  # type: ignore[arg-type]
    own = (device == 1) & (taken > 0)
    assert spans.n_ops.sum() == own.sum()
    assert (spans.start_ps[1:] - spans.end_ps[:-1] >= gap).all()
    covered = int((spans.end_ps - spans.start_ps).sum())
    exact = union_ps(start[own].astype(float), (start + taken)[own].astype(float))
    assert covered == exact if gap <= 1 else exact <= covered <= exact + gap * own.sum()
    for first, last, op in zip(spans.start_ps, spans.end_ps, spans.op, strict=True):
        inside = own & (start >= first) & (start + taken <= last)
        assert taken[op] == taken[inside].max() and inside[op]


def test_representatives_are_live_and_different() -> None:
    compute = np.array([5, 9, 1, 7, 0, 9])
    alive = np.array([True, True, True, True, False, True])
    assert representatives(compute, alive) == [("busiest", 1), ("median", 3), ("idlest", 2)]
    assert representatives(compute[:1], alive[:1]) == [("busiest", 0)]
    assert representatives(compute, np.zeros(6, bool)) == []


def test_use_of_links_is_kept_when_bins_are_merged(tmp_path: Path) -> None:
    case = make_case(3, 3)
    busy = np.arange(16 * case.mesh.n_links).reshape(16, -1)
    bin_ps = -(-case.time_ps // 11)  # 11 of 16 bins begin within the step
    path = tmp_path / "run.h5"
    with case.writer(path, 1) as writer:
        writer.append_step(case.step(0))
        writer.write_ops(case.ops)
        writer.write_timeline(Timeline(bin_ps=bin_ps, link_busy_ps=busy))
        writer.finish({"ranks": 1})
    run = open_run(path)
    whole = link_use(run)
    assert whole.n_bins == 11 and whole.edge_ps[-1] == case.time_ps
    for most in (1, 2, 3, 10, 11, 100):
        merged = link_use(run, most)
        assert merged.n_bins <= most and (merged.busy_ps.sum(axis=0) == busy[:11].sum(axis=0)).all()
        assert (np.diff(merged.edge_ps) > 0).all() and merged.edge_ps[[0, -1]].tolist() == [0, case.time_ps]
        assert (merged.share * np.diff(merged.edge_ps)[:, None]).sum() == pytest.approx(busy[:11].sum())


def test_devices_of_a_timeline_can_be_chosen(run: Run) -> None:
    words = " ".join(words_of(drawn(run, "timeline", [3, 7])))
    assert "device 3\n" in words and "device 7\n" in words and "busiest" not in words


def test_refusals(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for kind, output, devices, said in (
        ("pie", "a.png", [], "no picture 'pie'; there are links, timeline"),
        ("links", "a.gif", [], r"name a picture \*.png or \*.svg"),
        ("timeline", "a.png", [25], "no device 25; there are 0 to 24"),
        ("links", "a.png", [1], "devices are chosen for the picture timeline"),
        ("path", "nowhere/a.svg", [], "cannot write .*No such file"),
    ):
        with pytest.raises(RecordError, match=said):
            plots.save(run, kind, tmp_path / output, devices)
    case = make_case(2, 2)
    timed = replace(case.step(0).training, loss=float("nan"))
    with case.writer(tmp_path / "timed.h5", 1) as writer:
        writer.append_step(case.step(0, training=timed))
        writer.finish({"ranks": 1})
    with case.writer(tmp_path / "none.h5", 1):
        pass
    for name, kind, said in (
        ("timed", "loss", "no loss was computed"), ("timed", "path", "are not recorded"),
        ("timed", "roofline", "are not recorded"), ("timed", "memory", "is not recorded"),
        ("timed", "utilisation", "is recorded"), ("none", "links", "no completed step"),
    ):  # fmt: skip
        assert main(["plot", kind, str(tmp_path / f"{name}.h5")]) == 2
        [line] = capfd.readouterr().err.splitlines()
        assert said in line, (kind, line)


def test_command_writes_beside_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = make_case(2, 2).write(tmp_path / "run.h5")
    assert main(["plot", "path", str(path)]) == 0
    assert main(["plot", "timeline", str(path), "--devices", "0", "3", "-o", str(tmp_path / "t.svg")]) == 0
    assert (tmp_path / "run.path.png").exists() and b"device 3" in (tmp_path / "t.svg").read_bytes()
    parser = Parser(prog="meshemu")
    drawing.register(Commands(parser))
    with pytest.raises(SystemExit):
        parser.parse_args(["plot", "--help"])
    said = capfd.readouterr().out
    assert all(kind in said for kind in plots.KINDS)
