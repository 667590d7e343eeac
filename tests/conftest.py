"""MPI tests under one roof with serial ones.

Plain `pytest` runs the serial tests; test_launch.py among them runs the `mpi` tests under mpirun. A failure on one rank
ends the job at once, since the other ranks may be waiting for it inside a collective.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch: results and timings of tests on few cores

from meshemu.runtime.last_words import last_words
from meshemu.runtime.launch import detect_launch, set_launch_defaults

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = detect_launch(os.environ)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> tuple[str, str] | None:
    """(browser, driver) on this machine; None if either is missing."""
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    driver = shutil.which("chromedriver")
    return (found, driver) if found and driver else None


BROWSER = find_browser()
BROWSER_WANTED = BROWSER is not None or os.environ.get("CI_BROWSER") == "1"
set_launch_defaults(os.environ, LAUNCH)


def world() -> Any:
    from mpi4py import MPI

    return MPI.COMM_WORLD


@pytest.fixture
def comm() -> Iterator[Any]:
    """A private duplicate of COMM_WORLD, so that a test's stray messages never meet the next test."""
    duplicate = world().Dup()
    yield duplicate
    duplicate.Free()


@pytest.fixture
def collective_assert(comm: Any) -> Callable[[object, str], None]:
    """`collective_assert(condition, message)`: called by all ranks, fails on all, names those where it failed."""

    def check(condition: object, message: str = "") -> None:
        verdicts = comm.allgather(None if condition else (message or "is false"))
        failed = [f"rank {rank}: {verdict}" for rank, verdict in enumerate(verdicts) if verdict is not None]
        assert not failed, "; ".join(failed)

    return check


@pytest.fixture
def meet(comm: Any) -> Callable[[], None]:
    """`meet()`: a barrier that leaves the processors to the ranks which are still at work; MPI's own polls."""

    def wait() -> None:
        barrier = comm.Ibarrier()
        while not barrier.Test():
            time.sleep(0.02)

    return wait


Mpirun = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def mpirun() -> Mpirun:
    """`mpirun(ranks, *arguments of python, timeout_s=, cwd=, env=)`: the finished job; nothing of it survives."""
    return run_under_mpi


def run_under_mpi(
    ranks: int, *arguments: str, timeout_s: float = 60, cwd: Path = ROOT, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    launcher = os.environ.get("MPIRUN") or str(Path(sys.executable).with_name("mpirun"))
    if shutil.which(launcher) is None:
        pytest.fail(f"{launcher} is not there: install the 'mpich' wheel or set MPIRUN")
    command = [launcher, "-n", str(ranks), sys.executable, *arguments]
    # A job that is aborted leaves in its temporary folder what it had there.
    with tempfile.TemporaryDirectory(prefix="meshemu-job-", ignore_cleanup_errors=True) as scratch:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": scratch} | (env or {})
        return _finished(command, timeout_s, cwd, environment)


def _finished(
    command: list[str], timeout_s: float, cwd: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """The job when it has ended; of one that takes longer nothing survives, and the test has failed."""
    job = subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        out, err = job.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        job.terminate()  # mpirun passes it on to its proxies, which are no longer in our session
        time.sleep(1)
        os.killpg(job.pid, signal.SIGKILL)
        out, err = job.communicate()
        pytest.fail(f"still running after {timeout_s} s: {' '.join(command)}\n{out[-4000:]}\n{err[-4000:]}")
    return subprocess.CompletedProcess(command, job.returncode, out, err)


def pytest_report_header() -> str:
    """Said at the head of every run, by the process that collects nothing too."""
    if BROWSER is not None:
        return f"browser: {BROWSER[0]}"
    return "browser: none (chromium and chromedriver); tests that need one are " + (
        "failing, since CI_BROWSER=1" if BROWSER_WANTED else "left out"
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, help="write the outcome of every test as JSON (rank 0)")
    parser.addoption("--forbid-skips", action="store_true", help="a skipped test is a failure")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Give every rank its own temporary folder: ranks that tidy a common one up step on each other's feet."""
    if LAUNCH.size > 1 and config.option.basetemp is None:
        own = tempfile.TemporaryDirectory(prefix="meshemu-tests-")
        config.add_cleanup(own.cleanup)
        config.option.basetemp = own.name


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    config.stash[_OUTCOMES] = _Outcomes()
    config.pluginmanager.register(config.stash[_OUTCOMES])
    if LAUNCH.rank > 0:  # only rank 0 reports; failures go to the real stderr of their rank
        reporter = config.pluginmanager.getplugin("terminalreporter")
        reporter._tw._file = open(os.devnull, "w")  # noqa: SIM115


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take the tests of the other kind out, so that "skipped" always means a test that should have run.

    Without a browser, also those that need one, unless CI_BROWSER=1 says that there should be one.
    """
    with_mpi = config.getoption("--with-mpi") or config.getoption("--only-mpi")
    wanted = [item for item in items if (item.get_closest_marker("mpi") is not None) == bool(with_mpi)]
    if not BROWSER_WANTED:
        wanted = [item for item in wanted if item.get_closest_marker("browser") is None]
    config.hook.pytest_deselected(items=[item for item in items if item not in wanted])
    items[:] = sorted(wanted, key=_limit_s, reverse=True)  # no worker shall end alone with one that takes long
    for item in wanted:
        if unknown := _mpi_arguments(item).keys() - {"min_size"}:
            raise pytest.UsageError(f"{item.nodeid}: mpi mark with unknown argument {', '.join(sorted(unknown))}")


def _limit_s(item: pytest.Item) -> float:
    """The limit that a test sets itself, 0 for that of all."""
    mark = item.get_closest_marker("timeout")
    return float(mark.args[0]) if mark is not None else 0.0


def _mpi_arguments(item: pytest.Item) -> dict[str, Any]:
    mark = item.get_closest_marker("mpi")
    return dict(mark.kwargs) if mark is not None else {}


_OUTCOMES = pytest.StashKey["_Outcomes"]()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    report.user_properties.append(("min_size", _mpi_arguments(item).get("min_size", 1)))
    if report.failed:
        _end_all_ranks(f"FAILED {item.nodeid} ({report.when})\n{report.longreprtext}", 1)
    return report


class _Outcomes:
    """How every test ended. Reports come here from pytest's worker processes too."""

    def __init__(self) -> None:
        self.of_test: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        min_size = dict(report.user_properties).get("min_size", 1)
        entry = self.of_test.setdefault(report.nodeid, {"min_size": min_size, "outcome": "passed"})
        if report.outcome != "passed":
            entry["outcome"] = report.outcome


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _end_all_ranks(f"cannot collect {report.nodeid}\n{report.longreprtext}", 2)


def pytest_internalerror(excrepr: Any) -> None:
    _end_all_ranks(f"internal error of pytest\n{excrepr}", 3)


def pytest_sessionfinish(session: pytest.Session) -> None:
    outcomes = session.config.stash[_OUTCOMES].of_test
    if session.config.getoption("--forbid-skips") and any(o["outcome"] == "skipped" for o in outcomes.values()):
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
    path = session.config.getoption("--outcomes")
    if path is not None and LAUNCH.rank == 0:
        path.write_text(json.dumps(outcomes))


def _end_all_ranks(text: str, code: int) -> None:
    if LAUNCH.size == 1:
        return
    time.sleep(0.2 * LAUNCH.rank)  # a failure common to all ranks is told once: the first one ends the rest
    last_words(f"\n[rank {LAUNCH.rank} of {LAUNCH.size}] {text}\n")
    world().Abort(code)
