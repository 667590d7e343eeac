"""The convergence tables of docs/timing-model.md are what scripts/convergence.py finds; errors shrink with packets."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COARSE = (8192, 16384, 65536)


@pytest.fixture(scope="module")
def script():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("convergence", ROOT / "scripts" / "convergence.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def tables(page: str, script) -> dict[str, dict[int, list[str]]]:
    """Cells of each row by case and packet size, without the wall time."""
    block = page.split(script.BEGIN)[1].split(script.END)[0]
    parts = re.split(r"^\*\*(.+)\*\*$", block, flags=re.MULTILINE)[1:]
    found = {}
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "%" in line]
        found[name] = {int(row[0].replace(",", "")): row[1:-1] for row in rows}
    return found


def test_the_page_has_the_numbers_of_the_script(script):
    page = tables((ROOT / "docs" / "timing-model.md").read_text(), script)
    assert len(page) == 3
    for case in (script.all_to_all(), script.uniform()):
        shown = page[case.name]
        assert list(shown) == list(script.PACKETS)
        for outcome in script.study(case, COARSE):
            end, _, transit, _, hops = shown[outcome.packet_bytes]
            assert end == f"{outcome.end_ps / 1e6:.3f}"
            assert transit == f"{outcome.mean_transit_ps / 1e6:.6g}"
            assert hops == f"{outcome.packet_hops:,}"


def test_errors_of_the_page_follow_from_its_times(script):
    for rows in tables((ROOT / "docs" / "timing-model.md").read_text(), script).values():
        first = rows[script.PACKETS[0]]
        for cells in rows.values():
            for time, error in ((0, 1), (2, 3)):
                ratio = float(cells[time]) / float(first[time])
                assert abs(float(cells[error].rstrip(" %")) - 100 * (ratio - 1)) < 0.02


def test_small_packets_converge_and_cost(script):
    for case in (script.all_to_all(3, 3, 8192), script.uniform(3, 4, 8192, n=60)):
        fine, middle, coarse = script.study(case, (64, 512, 8192))
        assert abs(middle.mean_transit_ps - fine.mean_transit_ps) <= abs(coarse.mean_transit_ps - fine.mean_transit_ps)
        assert abs(middle.end_ps / fine.end_ps - 1) < 0.02
        assert fine.packet_hops == 8 * middle.packet_hops == 128 * coarse.packet_hops


def test_the_block_is_written_between_its_marks(script, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n")
    monkeypatch.setattr(script, "PAGE", page)
    case = script.all_to_all(2, 2, 1024)
    script.write(script.table(case.name, script.study(case, (64, 1024))))
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert list(tables(text, script)[case.name]) == [64, 1024]
