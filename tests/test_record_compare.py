"""Two files are equal when all but /run is, bit for bit; the first difference is named."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from resealing import changed
from synthetic_run import Case, make_case

from meshemu.record import compare
from meshemu.record.schema import COLUMNS


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case()


@pytest.fixture
def pair(case: Case, tmp_path: Path) -> tuple[Path, Path]:
    elsewhere = {"ranks": 4, "hosts": "there", "extra": 1.5}
    return case.write(tmp_path / "a.h5"), case.write(tmp_path / "b.h5", run=elsewhere)


def flip_bit(path: Path, dataset: str, index: tuple[int, ...], bit: int) -> None:
    """Flip one bit of one entry of a dataset."""
    with changed(path) as file:
        values = file[dataset][...]
        raw = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
        entry = int(np.ravel_multi_index(index, values.shape))
        raw[entry * values.dtype.itemsize + bit // 8] ^= 1 << bit % 8
        file[dataset][...] = raw.view(values.dtype).reshape(values.shape)


def test_equal_but_for_run(pair: tuple[Path, Path]) -> None:
    with changed(pair[1]) as file:
        file["/run/wall_s"][...] = 99.0
        file.attrs["created_utc"] = "some other day"
    assert compare(*pair) is None


def test_difference_in_words(case: Case, pair: tuple[Path, Path]) -> None:
    flip_bit(pair[1], "/results/links/busy_ps", (2, 17), 0)
    difference = compare(*pair)
    assert difference is not None
    busy_ps = int(case.links.busy_ps[17])
    place = f"step 2, link 17 ({case.mesh.link_name(17)})"
    assert str(difference) == f"/results/links/busy_ps differs first at {place}: {busy_ps} and {busy_ps ^ 1}"
    assert (difference.path, difference.index) == ("/results/links/busy_ps", (2, 17))
    assert (difference.value_a, difference.value_b) == (busy_ps, busy_ps ^ 1)


NUMERIC = [c for c in COLUMNS if c.compare and c.path.startswith("/results") and c.dtype[0] in "if"]


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_is_found(case: Case, tmp_path: Path, data: st.DataObject) -> None:
    a, b = tmp_path / "a.h5", tmp_path / "b.h5"
    shutil.copy(a if a.exists() else case.write(a), b)
    with h5py.File(b) as file:
        column = data.draw(st.sampled_from([column for column in NUMERIC if file[column.path].size]))
        shape, width = file[column.path].shape, file[column.path].dtype.itemsize
    index = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    flip_bit(b, column.path, index, data.draw(st.integers(0, 8 * width - 1)))
    difference = compare(a, b)
    assert difference is not None and (difference.path, difference.index) == (column.path, index)


def test_first_of_several(pair: tuple[Path, Path]) -> None:
    for index in ((2, 1), (0, 4), (1, 0)):
        flip_bit(pair[1], "/results/links/packets", index, 3)
    difference = compare(*pair)
    assert difference is not None and difference.index == (0, 4)


def test_nan_and_zero_are_compared_by_their_bits(pair: tuple[Path, Path]) -> None:
    flip_bit(pair[1], "/results/steps/accuracy", (1,), 0)
    difference = compare(*pair)
    assert difference is not None
    assert "step 1: nan and nan (bits 7ff8000000000000 and 7ff8000000000001)" in str(difference)
    for path, value in zip(pair, (0.0, -0.0), strict=True):
        with changed(path) as file:
            file["/results/steps/accuracy"][...] = float("nan")
            file["/results/steps/loss"][0] = value
    difference = compare(*pair)
    assert difference is not None and str(difference) == "/results/steps/loss differs first at step 0: 0.0 and -0.0"


def test_other_shapes_texts_and_missing_steps(case: Case, pair: tuple[Path, Path], tmp_path: Path) -> None:
    fewer = case.write(tmp_path / "fewer.h5", 2)
    assert str(compare(pair[0], fewer)) == "/results/steps/step: 3 and 2 completed steps"
    other = make_case(2, 3).write(tmp_path / "other.h5")
    assert "/system@system_json differs: at character" in str(compare(pair[0], other))
    noted = case.write(tmp_path / "noted.h5", assumptions=("only one",))
    assert "/results/notes/assumptions has shape (2,) and (1,)" in str(compare(pair[0], noted))
    with changed(pair[1]) as file:
        file["/results/extra"] = 1
    assert str(compare(*pair)) == f"/results/extra is only in {pair[1]}"
    slower = make_case(compute_ps=2_000_000).write(tmp_path / "slower.h5")
    assert "/results/steps/time_ps differs first at step 0" in str(compare(pair[0], slower))
    more = make_case(message_bytes=65).write(tmp_path / "more.h5")
    assert str(compare(pair[0], more)).startswith("/program/messages/size_bytes differs first at message 0: 64 and 65")


def test_missing_op_times_are_named(case: Case, pair: tuple[Path, Path], tmp_path: Path) -> None:
    with case.writer(tmp_path / "bare.h5") as writer:
        for number in range(3):
            writer.append_step(case.step(number))
        writer.write_peak_memory(np.arange(case.mesh.n_devices, dtype=np.int64) + 1000)
        writer.finish({})
    assert str(compare(pair[0], tmp_path / "bare.h5")).startswith("/results/ops/start_ps has shape (1, ")
