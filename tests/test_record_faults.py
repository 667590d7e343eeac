"""Files that are cut off, damaged, foreign or in the way: exact results or one clear line, never a traceback."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from synthetic_run import Case, make_case

from meshemu.errors import RecordError
from meshemu.record import compare, open_run
from meshemu.record.schema import SCHEMA_VERSION

HERE = Path(__file__).resolve().parent

WRITE_UNTIL_KILLED = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
from synthetic_run import make_case
case = make_case()
writer = case.writer(Path(sys.argv[1]), 100_000)
for number in range(100_000):
    writer.append_step(case.step(number))
    if number == 0:
        writer.write_ops(case.ops)
    print(number, flush=True)
"""


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case()


@pytest.fixture(scope="module")
def good(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case.write(tmp_path_factory.mktemp("good") / "run.h5")


def python(code: str, *arguments: str) -> "subprocess.Popen[str]":
    program = code.format(tests=str(HERE), root=str(HERE.parent))
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("steps", [1, 7, 40])
def test_a_killed_run_holds_its_committed_steps(case: Case, tmp_path: Path, steps: int) -> None:
    """Kill -9 after k reported steps, in the middle of writing the next ones."""
    path = tmp_path / "run.h5"
    with python(WRITE_UNTIL_KILLED, str(path)) as process:
        assert process.stdout is not None
        for _ in range(steps):
            process.stdout.readline()
        seen_alive = open_run(path).n_steps
        process.send_signal(signal.SIGKILL)
        reported = steps + len(process.stdout.read().split())
    run = open_run(path)
    assert not run.complete and steps <= seen_alive <= run.n_steps and reported <= run.n_steps <= reported + 1
    assert run.steps["loss"].tolist() == [2.0 / (number + 1) for number in range(run.n_steps)]
    wait_ps = run.column("/results/links/wait_ps")
    assert np.array_equal(wait_ps, case.links.wait_ps + np.arange(run.n_steps)[:, None])
    assert run.recorded_steps == (0,) and run.ops()["end_ps"].tolist() == case.ops.end_ps.tolist()
    assert len(run.dataset("/results/devices")["step"]) == run.n_steps


def test_rows_beyond_the_committed_steps_are_not_read(case: Case, good: Path, tmp_path: Path) -> None:
    """A kill between the data of a step and its index leaves rows that do not count."""
    path = tmp_path / "run.h5"
    path.write_bytes(good.read_bytes())
    with h5py.File(path, "r+") as file:
        file["/results/steps/step"].resize(2, axis=0)
        file.attrs["complete"] = np.int8(0)
    run = open_run(path)
    assert run.n_steps == len(run.steps) == 2 and len(run.links()) == 2 * case.mesh.n_links
    assert run.dataset("/results/links").sizes["step"] == 2
    assert run.links(-1)["wait_ps"].tolist() == (case.links.wait_ps + 1).tolist()


def readable(path: Path) -> RecordError | None:
    """Read all that a report reads; the error if it cannot be read."""
    try:
        run = open_run(path)
        run.steps, run.links(), run.devices(), run.ops(), run.timeline(), run.assumptions
        compare(path, path)
    except RecordError as error:
        assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 600
        return error
    return None


@pytest.mark.parametrize("fraction", [0.0, 0.0001, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_truncated_files(good: Path, tmp_path: Path, fraction: float) -> None:
    content = good.read_bytes()
    path = tmp_path / "cut.h5"
    path.write_bytes(content[: int(fraction * len(content))])
    error = readable(path)
    assert error is not None and ("cut short" in str(error) or "not an HDF5 file" in str(error))


def test_random_bytes(tmp_path: Path) -> None:
    path = tmp_path / "noise.h5"
    path.write_bytes(np.random.default_rng(3).bytes(50_000))
    assert "not an HDF5 file" in str(readable(path))


def test_foreign_newer_and_incomplete_files(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "file.h5"
    assert "No such file or directory" in str(readable(path))
    assert "it is no file" in str(readable(tmp_path))
    assert "File name too long" in str(readable(tmp_path / ("x" * 300)))
    with h5py.File(path, "w") as file:
        file["data"] = [1, 2, 3]
    assert "no results file of meshemu" in str(readable(path))
    path.write_bytes(good.read_bytes())
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = 99
    assert f"its schema_version is 99, this meshemu reads up to {SCHEMA_VERSION}" in str(readable(path))
    path.write_bytes(good.read_bytes())
    with h5py.File(path, "r+") as file:
        del file["/results/links/bytes"]
    assert "/results/links/bytes is missing" in str(readable(path))


def test_existing_files_are_kept_unless_told_otherwise(case: Case, good: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    path.write_bytes(good.read_bytes())
    with pytest.raises(RecordError, match=r"run\.h5: it exists already"):
        case.writer(path)
    assert path.read_bytes() == good.read_bytes()
    case.write(path, 1, overwrite=True)
    assert open_run(path).n_steps == 1
    notes = tmp_path / "notes.txt"
    notes.write_text("keep me")
    with pytest.raises(RecordError, match="it is not a results file"):
        case.writer(notes, overwrite=True)
    assert notes.read_text() == "keep me"
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RecordError, match="another process is using it"):
            case.writer(path, overwrite=True)


def test_paths_that_cannot_be_written(case: Case, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"directory .*/nowhere does not exist"):
        case.writer(tmp_path / "nowhere" / "run.h5")
    with pytest.raises(RecordError, match="it is a directory"):
        case.writer(tmp_path)
    with pytest.raises(RecordError, match="File name too long"):
        case.writer(tmp_path / ("x" * 300))
    with pytest.raises(RecordError, match=r"cannot write /proc/run\.h5: "):
        case.writer(Path("/proc/run.h5"))


def test_wrong_lengths_are_refused(case: Case, tmp_path: Path) -> None:
    other = make_case(2, 2)
    with case.writer(tmp_path / "run.h5") as writer:
        with pytest.raises(RecordError, match=f"links has {other.mesh.n_links} entries where the file holds"):
            writer.append_step(case.step(0, links=other.links))
        with pytest.raises(RecordError, match="ops has"):
            writer.write_ops(other.ops)
        writer.append_step(case.step(0))
    run = open_run(tmp_path / "run.h5")
    assert run.n_steps == 1 and not run.complete


def test_an_exception_leaves_a_readable_incomplete_file(case: Case, tmp_path: Path) -> None:
    with pytest.raises(KeyError), case.writer(tmp_path / "run.h5") as writer:
        writer.append_step(case.step(0))
        raise KeyError("the run failed")
    run = open_run(tmp_path / "run.h5")
    assert (run.n_steps, run.complete) == (1, False)


def test_a_growing_file_can_be_watched(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with python(WRITE_UNTIL_KILLED, str(path)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        counts = []
        for _ in range(15):
            run = open_run(path)
            counts.append(run.n_steps)
            assert run.steps["time_ps"].tolist() == [case.time_ps + number for number in range(run.n_steps)]
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    assert counts == sorted(counts) and counts[-1] > counts[0] >= 1
