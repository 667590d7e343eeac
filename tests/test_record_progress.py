"""`meshemu watch` follows a file that another process writes: not there yet, growing, replaced, abandoned, complete."""

import os
import threading
import time
from pathlib import Path

import pytest
from synthetic_run import Case, make_case

from meshemu import cli
from meshemu.record.progress import Watcher


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case(1, 3)


def watch(*arguments: object) -> int:
    return cli.main(["watch", *map(str, arguments)])


def test_once_tells_the_state_now(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.h5"
    assert watch(path, "--once") == 2
    assert "there is no run in it yet" in capsys.readouterr().err
    with case.writer(path, 4) as writer:
        writer.append_step(case.step(0))
        writer.append_step(case.step(1))
        assert watch(path, "--once") == 0
        assert capsys.readouterr().out == "step 2 of 4, loss 1, 1.086 us a step, 4 steps/s, 0:00:00 to go\n"
        writer.append_step(case.step(2))
        writer.append_step(case.step(3))
        writer.finish({})
    assert watch(path, "--once") == 0
    assert capsys.readouterr().out == "step 4 of 4, loss 0.5, 1.086 us a step, 4 steps/s, complete\n"


def test_a_line_for_each_new_step_until_complete(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The watcher starts before the file is there."""
    path, seen = tmp_path / "run.h5", Watcher(tmp_path / "run.h5")
    assert seen.look() is None

    def write() -> None:
        with case.writer(path, 3) as writer:
            for number in range(3):
                writer.append_step(case.step(number))
                time.sleep(0.15)
            writer.finish({})

    thread = threading.Thread(target=write)
    thread.start()
    code = watch(path, "--interval", 0.02, "--stale", 20)
    thread.join()
    lines = capsys.readouterr().out.splitlines()
    assert code == 0 and lines[-1].endswith("complete")
    steps = [int(line.split()[1]) for line in lines]
    assert steps == sorted(steps) and steps[-1] == 3 and len(set(lines)) == len(lines) >= 3


def test_a_run_that_stops_is_noticed(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its writer is gone: nothing was written for longer than told."""
    path = tmp_path / "run.h5"
    with case.writer(path, 9) as writer:
        writer.append_step(case.step(0))
    long_ago = time.time() - 100
    os.utime(path, (long_ago, long_ago))
    assert watch(path, "--stale", 5) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("step 1 of 9") and last == f"{path}: no step for 100 s; its run has ended or hangs"
    assert watch(tmp_path / "never.h5", "--stale", 0.1, "--interval", 0.05) == 1
    assert "no run for 0 s" in capsys.readouterr().out


def test_a_replaced_file_is_another_run(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    watcher = Watcher(path)
    case.write(path, 2)
    first, identity = watcher.look(), watcher.identity
    case.write(tmp_path / "other.h5", 1).replace(path)
    second = watcher.look()
    assert first is not None and second is not None
    assert (first.n_steps, second.n_steps) == (2, 1) and watcher.identity != identity


@pytest.mark.parametrize("option", [("--interval", "0"), ("--stale", "nan")])
def test_bad_options(tmp_path: Path, option: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert watch(tmp_path / "run.h5", *option) == 2
    assert f"{option[0]} " in capsys.readouterr().err


def test_what_is_no_run_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("notes")
    os.utime(path, (1, 1))
    assert watch(path) == 2 and "not an HDF5 file" in capsys.readouterr().err
    assert watch(tmp_path) == 2 and "it is no file" in capsys.readouterr().err
