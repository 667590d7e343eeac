"""The page holds the figures of the run and nothing that a name could break, and renders whatever a run lacks."""

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from stored_step import stored_step
from synthetic_run import CONFIG, make_case

import meshemu
from meshemu.analysis import page
from meshemu.analysis.page.arrays import packed, plain
from meshemu.analysis.report import as_dict
from meshemu.cli import main
from meshemu.record import Run, open_run

TYPES = {"u1": np.uint8, "u2": np.uint16, "i4": np.int32, "f4": np.float32, "f8": np.float64}
HOSTILE = "</script><script>window.broken = 1</script> <!-- \"quoted\" 'single' & µ 网格 \u2028 ${data}"


class Page(HTMLParser):
    """Elements, what scripts hold, and what refers elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.elsewhere: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.elsewhere += [value or "" for name, value in attrs if name in ("src", "href") and value != "data:,"]
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, text: str) -> None:
        if self._inside == "script":
            attributes, before = self.scripts[-1]
            self.scripts[-1] = (attributes, before + text)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""


def content_of(run: Run) -> dict:
    found = Page(page.render(run))
    assert [attributes.get("id") for attributes, _ in found.scripts] == ["data", None]
    return json.loads(found.scripts[0][1])


def unpacked(value: dict) -> np.ndarray:
    data = np.frombuffer(base64.b64decode(value["base64"]), np.dtype(TYPES[value["dtype"]]).newbyteorder("<"))
    return data.reshape(value["shape"])


def test_figures_are_those_of_the_run(tmp_path: Path) -> None:
    case = make_case(4, 5, dead=(7,))
    run = open_run(case.write(tmp_path / "run.h5"))
    content, report = content_of(run), as_dict(run)
    assert content["report"]["verdict"] == report["verdict"]
    assert content["config"] == CONFIG and content["report"]["assumptions"] == report["assumptions"]
    links, devices = content["wafer"]["links"], content["wafer"]["devices"]
    table = run.links(-1)
    for name in ("bytes", "busy_ps", "wait_ps", "max_queue", "utilisation"):
        assert (unpacked(links[name]) == table[name].to_numpy()).all()
    assert links["name"] == table["name"].tolist()
    assert (unpacked(devices["alive"]) == run.mesh().alive).all()
    assert (unpacked(devices["peak_memory_bytes"]) == run.devices(-1)["peak_memory_bytes"]).all()
    use = content["wafer"]["use"]
    edges, share = unpacked(use["edge_ps"]), unpacked(use["share"]) / use["share_units"]
    width = np.diff(edges)[:, None]
    assert edges[-1] == run.steps["time_ps"].iloc[0] and use["share_units"] == 2**16 - 1
    expected = np.minimum(run.timeline().to_numpy()[: len(share)] / width, 1)
    assert np.abs(share - expected).max() <= 0.501 / use["share_units"]
    path = content["path"]
    totals = {part: value for part, _, value in path["totals"]}
    in_report = {part: report["critical_path"][f"{part}_ps"] for part in path["parts"]}
    assert totals | {part: 0 for part in in_report.keys() - totals.keys()} == in_report
    took = unpacked(path["end_ps"]) - unpacked(path["start_ps"])
    for number, part in enumerate(path["parts"]):
        assert took[unpacked(path["part"]) == number].sum() == in_report[part]
    tables = {table["name"]: table for table in content["tables"]}
    columns = {column["heading"]: column["values"] for column in tables["op-classes"]["columns"]}
    assert columns["busiest device"] == [row["busiest_device_ps"] for row in report["op_classes"]]
    assert [chart["title"] for chart in content["training"]["charts"]][:1] == ["Loss"]
    assert (unpacked(content["training"]["charts"][0]["curves"][0]["values"]) == run.steps["loss"]).all()


def test_a_page_is_one_file_that_names_cannot_break(tmp_path: Path) -> None:
    case = make_case(2, 3)
    program = replace(case.program, labels=tuple(HOSTILE + name for name in case.program.labels))
    hostile = replace(case, program=program)
    path = tmp_path / "<b>run's \"1\" & 2.h5"
    run = open_run(hostile.write(path, config_text=f"# {HOSTILE}\n{CONFIG}", assumptions=(HOSTILE,)))
    text = page.render(run)
    found = Page(text)
    assert found.elsewhere == [] and not re.search(r"https?://(?!www\.w3\.org/)", text)
    assert len(re.findall(r"<script\b", text)) == 2 and "window.broken = 1</script>" not in text
    assert "<title>&lt;b&gt;run" in text
    content = json.loads(found.scripts[0][1])
    assert content["report"]["assumptions"] == [HOSTILE] and HOSTILE in content["config"]
    assert any(label.startswith(HOSTILE) for label in content["path"]["labels"])


def test_runs_that_lack_something(tmp_path: Path) -> None:
    case = make_case(2, 3)
    with case.writer(tmp_path / "none.h5", 2):
        pass
    none = content_of(open_run(tmp_path / "none.h5"))
    assert none["lanes"] is none["path"] is none["training"] is none["wafer"]["use"] is None
    assert none["headline"] == [] and "No step was completed" in none["report"]["verdict"]
    with case.writer(tmp_path / "figures.h5", 1) as writer:
        writer.append_step(case.step(0))
        writer.finish({"ranks": 1})
    figures = content_of(open_run(tmp_path / "figures.h5"))
    assert figures["path"] is figures["lanes"] is figures["roofline"] is None
    assert {"links", "devices"} <= {table["name"] for table in figures["tables"]}
    alone = make_case(1, 1)
    assert content_of(open_run(alone.write(tmp_path / "alone.h5")))["wafer"]["use"] is None


@pytest.mark.parametrize("preset", ["a100-24", "dojo-tray"])
def test_switches_and_tiles(preset: str, tmp_path: Path) -> None:
    system = meshemu.System.preset(preset)
    program = meshemu.collective("all_reduce", algorithm="ring", system=system, size_bytes=2**12)
    run = open_run(stored_step(tmp_path / "run.h5", program, system))
    wafer, mesh = content_of(run)["wafer"], run.mesh()
    assert len(wafer["bars"]) == mesh.n_vertices - mesh.n_devices
    assert len(unpacked(wafer["links"]["arrow"])) == len(unpacked(wafer["links"]["on_grid"])) == mesh.n_links
    assert len(wafer["tile_edges"]["x"]) == 4  # three columns of tiles, or three nodes


def test_bins_are_merged_where_there_are_many_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(3, 3)
    run = open_run(case.write(tmp_path / "run.h5"))
    monkeypatch.setattr("meshemu.analysis.page.wafer._MOST_SHARES", 3 * case.mesh.n_links)
    use = content_of(run)["wafer"]["use"]
    assert len(unpacked(use["share"])) <= 3 and unpacked(use["edge_ps"])[-1] == case.time_ps


def test_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = make_case(2, 2).write(tmp_path / "run.h5")
    assert main(["report", str(run), "--no-png", "--html", str(tmp_path / "run.html")]) == 0
    assert "page: " in capfd.readouterr().err and Page((tmp_path / "run.html").read_text()).scripts
    assert main(["report", str(run), "--no-png", "--html", str(tmp_path / "nowhere" / "run.html")]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert "cannot write" in line and "No such file" in line


def test_arrays_and_values_survive() -> None:
    values = np.array([[1, 2**53], [-5, 0]])
    assert (unpacked(packed(values)) == values).all()
    assert plain({"a": [np.float64("nan"), np.int64(3), float("inf")], "b": "x"}) == {"a": [None, 3, None], "b": "x"}
