"""The page in a real browser: it draws, answers pointer and keys, sorts, and complains about nothing."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, browser
from conftest import find_browser
from stored_step import stored_step
from synthetic_run import make_case
from test_analysis_html import HOSTILE

import meshemu
from meshemu.analysis import page
from meshemu.analysis.report import as_dict
from meshemu.analysis.step_rows import step_rows
from meshemu.mesh.mesh import WEST
from meshemu.network.results import Timeline
from meshemu.record import Run, open_run
from meshemu.units import format_bytes, format_time

pytestmark = pytest.mark.browser

PIXEL = """
    const canvas = document.querySelector("#wafer canvas");
    const sharp = canvas.width / canvas.clientWidth;
    const [x, y] = [arguments[0] * sharp, arguments[1] * sharp];
    const copy = new OffscreenCanvas(1, 1).getContext("2d");
    copy.drawImage(canvas, Math.round(x), Math.round(y), 1, 1, 0, 0, 1, 1);
    return Array.from(copy.getImageData(0, 0, 1, 1).data);
"""
SLIDE = """
    const time = document.getElementById("time");
    time.value = arguments[0];
    time.dispatchEvent(new Event("input", {bubbles: true}));
    return document.getElementById("time-text").textContent;
"""
CHOOSE = """
    const menu = document.getElementById(arguments[0]);
    menu.value = arguments[1];
    menu.dispatchEvent(new Event("input", {bubbles: true}));
    return document.querySelector(arguments[2]).textContent;
"""
MARGIN = 0.6  # of the drawing around the grid, in pitches


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    programs = find_browser()
    if programs is None:
        pytest.fail("CI_BROWSER=1, but there is no chromium with a chromedriver on this machine")
    with browser(programs) as opened:
        opened.resize(1300, 1000)
        yield opened


def tip(window: Browser) -> str:
    return window.run("const tip = document.getElementById('tip'); return tip.hidden ? '' : tip.innerText;")


def texts(window: Browser, selector: str) -> list[str]:
    return window.run("return Array.from(document.querySelectorAll(arguments[0]), (e) => e.textContent);", selector)


def opened(window: Browser, run: Run, path: Path) -> None:
    page.save(run, path)
    window.open(path)
    assert window.console() == []
    ready_ms = window.run("return document.documentElement.dataset.ready;")
    print(f"{path.name}: ready {ready_ms} ms after it began to load, {path.stat().st_size:,} bytes")
    assert ready_ms is not None
    assert window.run("return performance.getEntriesByType('resource').length;") == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """25 devices, one of them dead; all links are in use in the first quarter of the step only."""
    case = make_case(5, 5, dead=(18,))
    program = replace(case.program, labels=tuple(f"{HOSTILE} {name}" for name in case.program.labels))
    case = replace(case, program=program)
    busy = np.zeros((4, case.mesh.n_links), np.int64)
    busy[0] = 1000 + np.arange(case.mesh.n_links)
    path = tmp_path_factory.mktemp("browser") / "<i>run.h5"
    with case.writer(path, 50) as writer:
        for number in range(50):
            writer.append_step(case.step(number))
            if number == 0:
                writer.write_ops(case.ops)
                writer.write_timeline(Timeline(bin_ps=-(-case.time_ps // 4), link_busy_ps=busy))
        writer.finish({"ranks": 1})
    return open_run(path)


def test_pointer_slider_keys_and_tables(window: Browser, run: Run, tmp_path: Path) -> None:
    opened(window, run, tmp_path / "page.html")
    assert window.run("return window.broken;") is None
    assert texts(window, "h1") == ["<i>run.h5: grid"]
    assert format_time(int(run.steps["time_ps"].iloc[-1])) in texts(window, "#figures dd")

    width = window.run("return document.querySelector('#wafer canvas').clientWidth;")
    pitch = width / (4 + 2 * MARGIN)
    row, col = 2, 1
    device = 5 * row + col
    west = int(run.mesh().out_link[device, WEST])  # westward traffic is drawn above eastward
    arrow = ((col - 0.5 + MARGIN) * pitch, (row - 0.1 + MARGIN) * pitch)

    # Over time: coloured in the first bin, grey in the second, coloured again over the whole step.
    colours = []
    for place in (1, 2, 0):
        said = window.run(SLIDE, place)
        colours.append(tuple(window.run(PIXEL, *arrow)))
        assert (said == "whole step") == (place == 0)
    unused = (0xE6, 0xE8, 0xEB, 255)
    assert colours[1] == unused and unused not in (colours[0], colours[2])

    window.move_to("#wafer canvas", *arrow)
    links = run.links(-1)
    assert f"link {west}: {links['name'][west]}" in tip(window)
    assert format_bytes(int(links["bytes"][west])) in tip(window)
    assert format_time(int(links["wait_ps"][west])) in tip(window)
    window.move_to("#wafer canvas", (col + MARGIN) * pitch, (row + MARGIN) * pitch)
    assert f"device {device}:" in tip(window)
    assert format_time(int(run.devices(-1)["compute_ps"][device])) in tip(window)
    window.move_to("#wafer canvas", (3 + MARGIN) * pitch, (3 + MARGIN) * pitch)
    assert "dead" in tip(window)
    window.press("#wafer canvas", "\ue014")  # arrow to the right
    assert "device 19:" in tip(window)
    window.press("#wafer canvas", "l")
    assert "link " in tip(window)
    window.press("#wafer canvas", "\ue00c")  # escape
    assert tip(window) == ""

    before = tuple(window.run(PIXEL, (col + MARGIN) * pitch - 8, (row + MARGIN) * pitch - 8))
    said = window.run(CHOOSE, "devices-by", "compute", "#devices-legend")
    assert "share of the step" in said and "100.0 %" in said
    assert tuple(window.run(PIXEL, (col + MARGIN) * pitch - 8, (row + MARGIN) * pitch - 8)) != before
    most = format_bytes(int(links["bytes"].max()))
    assert most in window.run(CHOOSE, "links-by", "bytes", "#links-legend")
    assert window.run("return document.getElementById('time').disabled;") is True

    column = 4  # carried
    for ascending in (False, True):
        window.click(f"#table-links th:nth-child({column + 1}) button")
        values = links["bytes"].sort_values(ascending=ascending)
        assert texts(window, f"#table-links tbody td:nth-child({column + 1})")[0] == format_bytes(int(values.iloc[0]))
        order = window.run("return document.querySelectorAll('#table-links th')[arguments[0]].ariaSort;", column)
        assert order == ("ascending" if ascending else "descending")
    shown = len(texts(window, "#table-links tbody tr"))
    window.click("#table-links .more")
    assert shown < len(texts(window, "#table-links tbody tr")) == len(links)

    heads, lines = step_rows(as_dict(run))
    assert texts(window, "#table-steps th") == heads
    assert texts(window, "#table-steps td") == [cell for line in lines for cell in line]
    heights = window.run("return Array.from(document.querySelectorAll('#table-steps tr'), (e) => e.offsetHeight);")
    assert max(heights) < 30, "each on one line"

    assert any(text.startswith(HOSTILE) for text in texts(window, "#path-table td"))
    window.move_to("#path canvas", 300, 10)
    assert HOSTILE.split()[0] in tip(window)
    assert len(texts(window, "#training svg .title")) >= 1
    assert window.console() == []


def test_a_page_of_3000_devices_answers(window: Browser, tmp_path: Path) -> None:
    """All corners of the mesh, slider, keys and the longest table."""
    run = open_run(make_case(60, 50, dead=(1234,)).write(tmp_path / "large.h5", 2))
    opened(window, run, tmp_path / "large.html")
    assert "3,000" in texts(window, "#about")[0]
    pitch = window.run("return document.querySelector('#wafer canvas').clientWidth;") / (49 + 2 * MARGIN)
    compute = run.devices(-1)["compute_ps"]
    for row, col in ((0, 0), (59, 49), (0, 49), (33, 17)):
        window.move_to("#wafer canvas", (col + MARGIN) * pitch, (row + MARGIN) * pitch)
        assert f"device {50 * row + col}:" in tip(window) and format_time(int(compute[50 * row + col])) in tip(window)
    window.press("#wafer canvas", "\ue014")  # arrow to the right
    assert f"device {50 * 33 + 18}:" in tip(window)
    assert window.run(SLIDE, 1) != window.run(SLIDE, 2) != window.run(SLIDE, 0) == "whole step"
    links = run.links(-1)
    window.click("#table-links th:nth-child(5) button")
    first = texts(window, "#table-links tbody tr:first-child td")
    assert first[4] == format_bytes(int(links["bytes"].max()))
    assert links["bytes"][int(first[0].replace(",", ""))] == links["bytes"].max()
    shown = len(texts(window, "#table-links tbody tr"))
    window.click("#table-links .more")
    assert shown < len(texts(window, "#table-links tbody tr")) <= len(links)
    assert window.console() == []


def test_times_read_as_meshemu_prints_them(window: Browser, run: Run, tmp_path: Path) -> None:
    """The page formats quantities itself: it must agree with units.py, at the edges of prefixes too."""
    opened(window, run, tmp_path / "page.html")
    times = sorted(set(run.links(-1)["wait_ps"].tolist()))
    shown = set(texts(window, "#table-links tbody td:nth-child(6)"))
    assert shown <= {format_time(value) for value in times} and shown


def test_dark_paper_and_pages_that_lack_things(window: Browser, tmp_path: Path) -> None:
    case = make_case(2, 2)
    with case.writer(tmp_path / "none.h5", 2):
        pass
    with case.writer(tmp_path / "figures.h5", 1) as writer:
        writer.append_step(case.step(0))
        writer.finish({"ranks": 1})
    system = meshemu.System.preset("a100-24")
    program = meshemu.collective("all_reduce", algorithm="ring", system=system, size_bytes=2**12)
    stored_step(tmp_path / "switched.h5", program, system)
    make_case(1, 1).write(tmp_path / "alone.h5")
    for name in ("none", "figures", "switched", "alone"):
        opened(window, open_run(tmp_path / f"{name}.h5"), tmp_path / f"{name}.html")
        assert window.run("return document.querySelector('#wafer canvas').width > 0;")
    paper = "return getComputedStyle(document.body).backgroundColor;"
    first = "return getComputedStyle(document.querySelector('#links-legend .bar')).backgroundImage.split('), ')[1];"
    light, on_light = window.run(paper), window.run(first)
    window.dark(True)
    assert light == "rgb(255, 255, 255)" != window.run(paper)
    deadline_s = time.monotonic() + 10
    while (on_dark := window.run(first)) == on_light:  # the page is told in its own time
        assert time.monotonic() < deadline_s
    window.run("dispatchEvent(new Event('beforeprint'));")  # paper is white, whatever the screen is
    assert window.run(first) != on_dark
    window.run("dispatchEvent(new Event('afterprint'));")
    assert window.run(first) == on_dark
    window.dark(False)
    assert window.console() == []
