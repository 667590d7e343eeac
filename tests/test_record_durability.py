"""What is left of a results file when a write is the last one, or fails."""

import errno
import gc
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from synthetic_run import Case, make_case

from meshemu.errors import CheckError, RecordError
from meshemu.record import MessageRecord, RunWriter, compare, open_run, ordered_file
from meshemu.record.atomic import write_atomically
from meshemu.record.checkpoint_files import CheckpointFolder
from meshemu.record.schema import COLUMNS

STEP_COLUMNS = [column.path for column in COLUMNS if column.dims[:1] == ("step",)]


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case(2, 2)


class Images:
    """The bytes of a file after each write that reached it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writes: list[tuple[int, bytes]] = []
        self.before = b""
        write_all = ordered_file._write_all

        def write(descriptor: int, data: bytes, offset: int) -> None:
            self.writes.append((offset, data))
            write_all(descriptor, data, offset)

        monkeypatch.setattr(ordered_file, "_write_all", write)

    def start(self, path: Path) -> None:
        self.before = path.read_bytes()
        self.writes.clear()

    def __iter__(self) -> Iterator[bytes]:
        image = bytearray(self.before)
        yield bytes(image)
        for offset, data in self.writes:
            image.extend(bytes(max(offset + len(data) - len(image), 0)))
            image[offset : offset + len(data)] = data
            yield bytes(image)


def check_image(image: bytes, case: Case, committed: int) -> int:
    """All of at least `committed` steps can be read by plain h5py; how many there are."""
    with h5py.File(io.BytesIO(image), "r") as file:
        n_steps = int(file["/results/steps/step"].shape[0])
        assert n_steps >= committed
        wait_ps = file["/results/links/wait_ps"][:n_steps]
        assert np.array_equal(wait_ps, case.links.wait_ps + np.arange(n_steps)[:, None])
        assert file["/results/steps/loss"][:n_steps].tolist() == [2.0 / (step + 1) for step in range(n_steps)]
        for path in STEP_COLUMNS:
            assert len(file[path][: n_steps : max(n_steps - 1, 1)]) == min(n_steps, 2)
        assert file["/program/ops/kind"].shape[0] == case.program.n_ops
    return n_steps


def test_a_kill_between_any_two_writes_leaves_all_committed_steps(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among them steps at which the index of every column is split: its 65th chunk, and the split of a half."""
    images = Images(monkeypatch)
    with case.writer(tmp_path / "run.h5", 200) as writer:
        writer.publish()
        for number in range(122):
            images.start(tmp_path / "run.h5") if number in (0, 64, 121) else None
            writer.append_step(case.step(number))
            if number in (0, 64, 121):
                assert len(images.writes) > 40
                seen = [check_image(image, case, number) for image in list(images)[:: 1 if number == 64 else -4]]
                assert set(seen) == {number, number + 1}
    assert open_run(tmp_path / "run.h5").n_steps == 122


@pytest.mark.parametrize("steps", [63])
def test_a_file_goes_on_where_a_kill_has_left_it(
    case: Case, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From every few images of the file within a step: the same bytes in every column as without the kill."""
    images = Images(monkeypatch)
    whole, path = tmp_path / "whole.h5", tmp_path / "run.h5"
    with case.writer(whole, steps + 2) as writer:
        for number in range(steps):
            writer.append_step(case.step(number))
        images.start(whole)
        writer.append_step(case.step(steps))
        kept = list(images)[::20]
        writer.append_step(case.step(steps + 1))
        writer.finish({"ranks": 1})
    for image in kept:
        path.write_bytes(image)
        with RunWriter.resume(path, steps + 2) as writer:
            for number in range(writer.n_steps, steps + 2):
                writer.append_step(case.step(number))
            writer.finish({"ranks": 2})
        assert compare(whole, path) is None


def test_a_file_that_is_not_finished_has_no_name_yet(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    writer = case.writer(path)
    assert os.listdir(tmp_path) == ["run.h5.unfinished"]
    with pytest.raises(RecordError, match="another process is using it"):
        case.writer(path)
    writer.append_step(case.step(0))
    assert os.listdir(tmp_path) == ["run.h5"] and open_run(path).n_steps == 1
    for again in (lambda: case.writer(path, overwrite=True), lambda: RunWriter.resume(path, 3)):
        with pytest.raises(RecordError, match="another process is using it"):
            again()
    writer.close()
    os.link(path, f"{path}.unfinished")  # as a kill while it is published leaves it
    path.rename(tmp_path / "kept.h5")
    case.write(path, 2)
    assert open_run(tmp_path / "kept.h5").n_steps == 1 and open_run(path).n_steps == 2


def test_a_file_that_lacks_a_column_is_not_continued(case: Case, tmp_path: Path) -> None:
    path = case.write(tmp_path / "run.h5", 1)
    with h5py.File(path, "r+") as file:
        del file["/results/links/wait_ps"]
    content = path.read_bytes()
    with pytest.raises(RecordError, match=r"/results/links/wait_ps is missing"):
        RunWriter.resume(path, 2)
    assert path.read_bytes() == content


def test_a_closed_writer_touches_no_file_that_gets_its_descriptor(case: Case, tmp_path: Path) -> None:
    writer = case.writer(tmp_path / "run.h5")
    writer.append_step(case.step(0))
    descriptor = writer._claim.descriptor
    writer.close()
    with (tmp_path / "other").open("wb") as other:
        assert other.fileno() == descriptor
        del writer
        gc.collect()
    assert (tmp_path / "other").read_bytes() == b""


def test_what_was_there_is_kept_when_its_successor_cannot_be_made(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.write(tmp_path / "run.h5", 2)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(ordered_file, "_write_all", fail)
    with pytest.raises(RecordError, match=r"^cannot write .*run\.h5: No space left on device$"):
        case.writer(tmp_path / "run.h5", overwrite=True)
    assert os.listdir(tmp_path) == ["run.h5"] and open_run(tmp_path / "run.h5").n_steps == 2


def test_files_that_vanish_or_are_replaced_are_noticed(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    for vanish in (path.unlink, lambda: shutil.copy(case.write(tmp_path / "other.h5"), path.unlink() or path)):
        with case.writer(path, overwrite=True) as writer:
            writer.append_step(case.step(0))
            vanish()
            with pytest.raises(RecordError, match=r"removed or replaced while the run went on; the 1 steps in it are"):
                writer.append_step(case.step(1))


@pytest.mark.parametrize("failing", ["reserve", *range(0, 60, 12)])
def test_a_full_disk_at_any_write_leaves_what_was_committed(
    case: Case, failing: str | int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.h5"
    writer = case.writer(path)
    writer.append_step(case.step(0))
    calls = 0
    write_all = ordered_file._write_all

    def write(descriptor: int, data: bytes, offset: int) -> None:
        nonlocal calls
        if calls == failing:
            os.pwrite(descriptor, data[: len(data) // 2], offset) if len(data) > 5000 else None
            raise OSError(errno.ENOSPC, "full")
        calls += 1
        write_all(descriptor, data, offset)

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(ordered_file, "_write_all", write)
    if failing == "reserve":
        monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(RecordError) as raised:
        writer.append_step(case.step(1))
    assert str(raised.value) == f"cannot write {path}: No space left on device; the 1 steps before are kept"
    writer.discard()
    monkeypatch.undo()
    assert open_run(path).steps["loss"].tolist() == [2.0]
    with RunWriter.resume(path, 2) as again:
        again.append_step(case.step(1))
        again.finish({})
    with case.writer(tmp_path / "whole.h5", 2) as whole:
        for number in range(2):
            whole.append_step(case.step(number))
        whole.finish({})
    assert compare(path, tmp_path / "whole.h5") is None


def test_a_step_that_comes_out_differently_is_named(case: Case, tmp_path: Path) -> None:
    case.write(tmp_path / "run.h5", 2)
    with RunWriter.resume(tmp_path / "run.h5", 2) as writer:
        writer.check_step(1, case.step(1))
        with pytest.raises(CheckError, match=r"^step 1, run again, gives another /results/steps/time_ps: \d+ where .*"):
            writer.check_step(1, case.step(1, time_ps=case.time_ps + 2))
        links = case.step(0).links
        with pytest.raises(CheckError, match=r"/results/links/wait_ps: \d+ at 0 where"):
            writer.check_step(1, case.step(1, links=links))


def test_messages_are_recorded_on_request(case: Case, tmp_path: Path) -> None:
    n = case.program.n_messages
    times = MessageRecord(np.arange(n) * 10, np.arange(n) * 10 + 5, np.full(n, 2, np.int32))
    with case.writer(tmp_path / "run.h5") as writer:
        writer.write_messages(times)
        writer.append_step(case.step(0))
    run = open_run(tmp_path / "run.h5")
    assert run.column("/results/messages/arrival_ps").tolist() == [times.arrival_ps.tolist()]
    assert run.column("/results/messages/hops").tolist() == [[2] * n]


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file: io.BufferedWriter) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(RecordError, match=r"state: cannot be written: No space left on device"):
        write_atomically(path, fail)
    with pytest.raises(RecordError, match=r"nowhere/state: cannot be written: No such file or directory"):
        write_atomically(tmp_path / "nowhere" / "state", lambda file: file.write(b"new"))
    assert os.listdir(tmp_path) == ["state"] and path.read_bytes() == b"old"


def test_old_checkpoints_go_when_the_new_one_is_there(tmp_path: Path) -> None:
    folder = CheckpointFolder.of(tmp_path / "run.h5", keep=2)
    assert folder.path == tmp_path / "run.checkpoints" and folder.steps() == []

    def fail(_file: object) -> None:
        assert folder.steps() == [4, 6]
        raise OSError(errno.ENOSPC, "full")

    for step in (2, 4, 6):
        folder.write(step, lambda file: file.write(b"state"))
    with pytest.raises(RecordError, match=r"step-000008\.pt: cannot be written: No space left on device"):
        folder.write(8, fail)
    assert folder.steps() == [4, 6]
    folder.clear()
    assert os.listdir(folder.path) == []

