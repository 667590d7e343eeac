"""A thousand damaged files: each reads as the very figures that were written, or is refused by one clear line."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from synthetic_run import make_case

from meshemu.errors import RecordError
from meshemu.record import compare, open_run
from meshemu.record.columns import Columns
from meshemu.record.schema import CHECKSUMS, COLUMNS

HERE = Path(__file__).resolve().parent
MUTANTS = 1000
FIGURES = [column.path for column in COLUMNS if column.group != CHECKSUMS]
LONG_AGO = (1, 1)  # a file that was written a moment ago is read again, since it may still be written


def everything(path: Path) -> dict[str, Any]:
    """All that the reader tells of a file."""
    run = open_run(path)

    def figures(columns: Columns) -> dict[str, Any]:
        told: dict[str, Any] = {path: columns.read(path).tobytes() for path in FIGURES}
        return told | {"loss_names": columns.loss_names(), "recorded_steps": columns.numbers("recorded_step")}

    return run.reading(figures) | {name: value for name, value in vars(run).items() if name != "path"}


def damaged(good: NDArray[np.uint8], used: NDArray[np.int64], random: np.random.Generator) -> bytes:
    """A copy with a bit, a byte, a run of bytes or a block changed, two blocks exchanged, or its end cut off.

    used: where there is something; half of the damage goes there.
    """
    content = good.copy()
    at = int(used[random.integers(len(used))]) if random.random() < 0.5 else int(random.integers(len(content)))
    size = int(2 ** random.integers(1, 10))
    match random.integers(8):
        case 0 | 1 | 2:
            content[at] ^= np.uint8(1 << random.integers(8))
        case 3 | 4:
            content[at] = random.integers(256)
        case 5:
            content[at : at + size] = random.integers(0, 256, len(content[at : at + size]))
        case 6:
            other = int(random.integers(len(content) - size))
            low = min(at, len(content) - size)
            content[low : low + size], content[other : other + size] = (
                content[other : other + size].copy(), content[low : low + size].copy(),
            )  # fmt: skip
        case 7:
            return content[: int(random.integers(len(content)))].tobytes()
    return content.tobytes()


FUZZ = """
import sys
from pathlib import Path
import numpy as np
sys.path[:0] = [{tests!r}, {root!r}]
from test_record_fuzz import fuzz
print(*fuzz(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
"""


def fuzz(good: Path, path: Path, count: int) -> tuple[int, int]:
    """(files refused, files that read as the good one); fails on everything else, naming the mutant."""
    content, random = np.frombuffer(good.read_bytes(), np.uint8), np.random.default_rng(11)
    used = np.flatnonzero(content)
    expected = everything(good)
    refused = 0
    path.touch()
    for number in range(count):
        with path.open("r+b") as file:  # written over, since a file system may wait for the disk when one is cut first
            file.write(damaged(content, used, random))
            file.truncate()
        os.utime(path, LONG_AGO)
        try:
            told = everything(path)
        except RecordError as error:
            assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 600, (number, str(error))
            refused += 1
        else:
            wrong = [name for name in expected if told[name] != expected[name]]
            assert not wrong, f"mutant {number} reads as something else: {wrong}"
            if number % 16 == 0:
                read_by_others(path, good)
    return refused, count - refused


def read_by_others(path: Path, good: Path) -> None:
    """What looks at attributes and objects too, which have no checksums, ends."""
    with suppress(RecordError):
        compare(good, path)
    with suppress(RecordError):
        open_run(path).dataset("/results/links")


@pytest.mark.timeout(900)
def test_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    """In a process of its own, so that a crash inside HDF5 would show as a signal."""
    good = make_case(1, 2).write(tmp_path / "good.h5", 2)
    os.utime(good, LONG_AGO)
    code = FUZZ.format(tests=str(HERE), root=str(HERE.parent))
    command = [sys.executable, "-c", code, str(good), str(tmp_path / "bad.h5"), str(MUTANTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    refused, harmless = map(int, done.stdout.split())
    assert refused > MUTANTS // 5 and harmless > MUTANTS // 20


CHANGEABLE = [c for c in COLUMNS if c.dims and c.dtype != "str" and c.group != CHECKSUMS]


@pytest.mark.parametrize("column", CHANGEABLE, ids=lambda c: c.path[1:])
def test_every_column_is_checked(tmp_path_factory: pytest.TempPathFactory, column: Any) -> None:
    """A single changed number in any column, by a program that knows HDF5, is noticed."""
    path = tmp_path_factory.mktemp("changed") / "run.h5"
    path.write_bytes(_good(tmp_path_factory).read_bytes())
    with h5py.File(path, "r+") as file:
        dataset = file[column.path]
        if not dataset.size:
            return
        first = (0,) * dataset.ndim
        value = dataset[first]
        dataset[first] = b"x" if dataset.dtype.kind == "S" else value + 1 if value == value else 0.5
    os.utime(path, LONG_AGO)
    with pytest.raises(RecordError, match="differs from its checksum"):
        open_run(path).column(column.path)


def _good(factory: pytest.TempPathFactory) -> Path:
    path = factory.getbasetemp() / "good_for_fuzz.h5"
    return path if path.exists() else make_case(1, 2).write(path, 2)


def test_attributes_are_checked(tmp_path: Path) -> None:
    good = make_case(1, 2).write(tmp_path / "run.h5", 2).read_bytes()
    changes = {
        "n_steps_planned": 5, "config": "[model]", "created_utc": "1999", "complete": 2, "schema_version": 2,
        "meshemu_version": "9",
    }  # fmt: skip
    for name, value in changes.items():
        path = tmp_path / f"{name}.h5"
        path.write_bytes(good)
        with h5py.File(path, "r+") as file:
            file.attrs[name] = value
        os.utime(path, LONG_AGO)
        with pytest.raises(RecordError, match=r"differ from their checksum|complete is 2"):
            open_run(path)
    for group, name in (("/system", "system_json"), ("/run", "ranks")):
        path = tmp_path / f"{name}.h5"
        path.write_bytes(good)
        with h5py.File(path, "r+") as file:
            file[group].attrs[name] = "8"
        os.utime(path, LONG_AGO)
        with pytest.raises(RecordError, match="differ from their checksum"):
            open_run(path)


def test_a_complete_file_has_all_its_steps(tmp_path: Path) -> None:
    """One whose index says less is damaged; one that was cut off may have any number."""
    path = make_case(1, 2).write(tmp_path / "run.h5", 3)
    with h5py.File(path, "r+") as file:
        file["/results/steps/step"].resize(2, axis=0)
    os.utime(path, LONG_AGO)
    with pytest.raises(RecordError, match="the number of steps"):
        open_run(path)
    with h5py.File(path, "r+") as file:
        file.attrs["complete"] = np.int8(0)
    assert open_run(path).n_steps == 2


def test_a_file_of_an_earlier_layout_reads(tmp_path: Path) -> None:
    """As version 2 wrote it: no checksums, no later columns."""
    path = make_case(1, 2).write(tmp_path / "run.h5", 2)
    before = open_run(path)
    steps, links, n_ops = before.steps, before.links(), before.program().n_ops
    with h5py.File(path, "r+") as file:
        del file["/checksums"], file.attrs["head_crc32"], file["/run"].attrs["crc32"]
        for column in COLUMNS:
            if column.since > 2 and column.path in file:
                del file[column.path]
        file.attrs["schema_version"] = np.int32(2)
    run = open_run(path)
    assert run.schema_version == 2 and run.steps.equals(steps) and run.links().equals(links)
    assert run.program().n_ops == n_ops and len(run.devices()) == 4
    run.columns(FIGURES)
