"""How long a report takes to be made and its page to open: 25 devices of 50 steps, and 3,000 devices.

    python scripts/bench_page.py        # chromium and chromedriver must be there for the last column

The runs are made up (tests/synthetic_run.py). `open` is from the beginning of the page's load until its scripts are
done, the median of five; nothing asserts it.
"""

import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from browser import browser  # noqa: E402
from conftest import find_browser  # noqa: E402
from synthetic_run import make_case  # noqa: E402

from meshemu.analysis import heatmap, page, report  # noqa: E402
from meshemu.record import open_run  # noqa: E402

CASES = {"25 devices, 50 steps": (5, 5, 50), "3,000 devices, 2 steps": (60, 50, 2)}


def main() -> None:
    print(f"{'core s of':<26}{'text':>8}{'picture':>9}{'page':>8}{'bytes':>12}{'open s':>8}")
    with tempfile.TemporaryDirectory() as name:
        for case, (rows, cols, steps) in CASES.items():
            run = open_run(make_case(rows, cols).write(Path(name) / "run.h5", steps, overwrite=True))
            target = Path(name) / "run.html"
            text = clocked(partial(report.render, run))
            picture = clocked(partial(heatmap.save, run, target.with_suffix(".png")))
            made = clocked(partial(page.save, run, target))
            opens = f"{opened_s(target):>8.2f}" if find_browser() else f"{'-':>8}"
            print(f"{case:<26}{text:>8.2f}{picture:>9.2f}{made:>8.2f}{target.stat().st_size:>12,}{opens}")


def clocked(work) -> float:
    before_s = time.process_time()
    work()
    return time.process_time() - before_s


def opened_s(path: Path) -> float:
    with browser(find_browser()) as window:
        window.resize(1300, 1000)
        ready_ms = []
        for _ in range(5):
            window.open(path)
            ready_ms.append(float(window.run("return document.documentElement.dataset.ready;")))
    return statistics.median(ready_ms) / 1e3


if __name__ == "__main__":
    main()
