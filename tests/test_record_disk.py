"""A disk that is really full, places that may really not be written: what the kernel refuses, not what a test injects.

RLIMIT_FSIZE bounds the size of all files of a process, for root too, and a write beyond it fails in its middle (EFBIG).
Permissions bind everybody but root, so that as root a copy of this process goes on as nobody.
"""

import io
import os
import resource
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from synthetic_run import Case, make_case

from meshemu.errors import RecordError
from meshemu.record import RunWriter, compare, open_run
from meshemu.record.atomic import write_atomically
from meshemu.record.checkpoint_files import CheckpointFolder
from meshemu.record.claim import Claim

NOBODY = 65534


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case(3, 3)


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """Python ignores the signal that comes with it, so that the write fails instead."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


STEPS = 12


@pytest.fixture(scope="module")
def whole(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case.write(tmp_path_factory.mktemp("whole") / "run.h5", STEPS)


@pytest.mark.parametrize("reserving", [True, False])
def test_a_disk_that_fills_up_keeps_what_was_committed(
    case: Case, whole: Path, reserving: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While steps 0, 1, 5 and 11 are written: before a step or between a step and its index, where space for it is set
    aside; without that, in the middle of a write.
    """
    path, asked = tmp_path / "run.h5", []
    reserve = Claim.reserve
    monkeypatch.setattr(Claim, "reserve", lambda self, *room: (asked.append(sum(room)), reserve(self, *room)))
    with case.writer(path, STEPS) as writer:
        fill(writer, case)
        sizes = []
        for number in range(STEPS):
            writer.append_step(case.step(number))
            sizes.append(writer.size_bytes)
    monkeypatch.setattr(Claim, "reserve", reserve if reserving else lambda *_: None)
    for steps in (0, 1, 5, 11):
        limit = asked[2 * steps + 1] - 1 if reserving else sizes[steps] - 1
        expected = asked.index(limit + 1) // 2 if reserving else steps
        writer = case.writer(path, STEPS, overwrite=True)
        fill(writer, case)
        done = 0
        with files_of_at_most(limit), pytest.raises(RecordError) as raised:
            for number in range(STEPS):
                writer.append_step(case.step(number))
                done = number + 1
            writer.finish({"ranks": 1})
        kept = f"; the {done} steps before are kept" if done else ""
        assert str(raised.value) == f"cannot write {path}: File too large{kept}"
        assert path.stat().st_size <= limit
        writer.discard()
        assert done == expected
        run = open_run(path)
        assert run.n_steps == done and not run.complete
        assert run.steps["loss"].tolist() == [2.0 / (number + 1) for number in range(done)]
        with RunWriter.resume(path, STEPS) as again:  # there is room again
            for number in range(done, STEPS):
                again.append_step(case.step(number))
            again.finish({"ranks": 1})
        assert compare(path, whole) is None


def fill(writer: RunWriter, case: Case) -> None:
    """What a run records before its first step."""
    writer.write_ops(case.ops)
    writer.write_timeline(case.timeline())
    writer.write_peak_memory(torch.arange(case.mesh.n_devices).numpy() + 1000)
    writer.publish()


def test_a_full_disk_before_the_first_step_leaves_what_was_there(case: Case, tmp_path: Path) -> None:
    path = case.write(tmp_path / "run.h5", 1)
    content = path.read_bytes()
    for limit in (0, 100, len(content) // 4):
        with files_of_at_most(limit), pytest.raises(RecordError, match=r"^cannot write .*run\.h5: File too large$"):
            fill(case.writer(path, overwrite=True), case)
        assert path.read_bytes() == content and os.listdir(tmp_path) == ["run.h5"]


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "states", keep=1)
    folder.write(1, lambda file: torch.save({"step": 1}, file))
    large = {"step": 2, "weights": torch.zeros(100_000)}
    for limit in (0, 10, 10_000, 300_000):
        with files_of_at_most(limit), pytest.raises(RecordError, match=r"step-000002\.pt: cannot be written: "):
            folder.write(2, lambda file: torch.save(large, file))
        assert os.listdir(folder.path) == ["step-000001.pt"]
    assert torch.load(folder.file(1), weights_only=True) == {"step": 1}


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that nobody can enter too; those of pytest are their owner's alone."""
    with tempfile.TemporaryDirectory(prefix="meshemu-permissions-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def said_as_nobody(act: Callable[[], object]) -> str:
    """The error of `act` in a process that permissions bind; "" without one."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        said = "it ended otherwise"
        try:
            if os.geteuid() == 0:
                os.setresuid(NOBODY, NOBODY, NOBODY)
            act()
            said = ""
        except RecordError as error:
            said = str(error)
        finally:
            os.write(writable, said.encode())
            os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as told:
        said = told.read().decode()
    os.waitpid(child, 0)
    return said


def test_what_may_not_be_written_is_one_line(case: Case, open_folder: Path) -> None:
    path, states = case.write(open_folder / "run.h5", 1), open_folder / "states"
    states.mkdir()
    for place in (path, states):
        os.chmod(place, stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH | (stat.S_IXOTH if place == states else 0))
    content = path.read_bytes()
    denied = "Permission denied"
    os.chmod(open_folder, 0o555)
    try:
        assert said_as_nobody(lambda: case.writer(open_folder / "new.h5")) == (
            f"cannot write {open_folder}/new.h5: {denied}"
        )
        assert said_as_nobody(lambda: case.writer(path, overwrite=True)) == f"cannot write {path}: {denied}"
        assert said_as_nobody(lambda: RunWriter.resume(path, 2)) == f"cannot write {path}: {denied}"
        assert said_as_nobody(lambda: write_atomically(states / "step", io.BytesIO.getvalue)) == (
            f"{states}/step: cannot be written: {denied}"
        )
        assert said_as_nobody(lambda: open_run(path).column("/results/steps/loss")) == ""  # it may still be read
        os.chmod(path, 0)
        assert said_as_nobody(lambda: open_run(path)) == f"cannot read {path}: permission denied"
    finally:
        os.chmod(open_folder, 0o755)
        os.chmod(path, 0o644)
    assert path.read_bytes() == content and sorted(os.listdir(open_folder)) == ["run.h5", "states"]
