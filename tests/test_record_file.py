"""What is written reads back, by our reader and by other tools."""

import importlib.util
from dataclasses import fields
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_run import ASSUMPTIONS, CONFIG, Case, make_case

from meshemu.errors import RecordError
from meshemu.network.results import OpTimes
from meshemu.program.ir import Program
from meshemu.record import open_run
from meshemu.record.schema import COLUMNS, DIMS, GROUPS

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case(dead=(5,))


@pytest.fixture
def path(case: Case, tmp_path: Path) -> Path:
    return case.write(tmp_path / "run.h5")


def equal_programs(a: Program, b: Program) -> bool:
    for field in fields(Program):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            if x.dtype != y.dtype or not np.array_equal(x, y):
                return False
        elif x != y:
            return False
    return True


def test_everything_reads_back(case: Case, path: Path) -> None:
    run = open_run(path)
    assert (run.complete, run.n_steps, run.n_steps_planned) == (True, 3, 3)
    assert (run.config, run.system_json, run.assumptions) == (CONFIG, case.system.to_json(), ASSUMPTIONS)
    assert run.run_attributes == {"ranks": 1, "hosts": "here", "events": 12, "wall_s": 0.5}
    assert equal_programs(run.program(), case.program)
    assert run.mesh().n_links == case.mesh.n_links and not run.mesh().alive[5]

    steps = run.steps
    assert steps["loss"].tolist() == [2.0, 1.0, 2.0 / 3]
    assert steps["time_ps"].tolist() == [case.time_ps, case.time_ps + 1, case.time_ps + 2]
    assert steps["parameters_sha256"].tolist() == ["0" * 64, f"{1:064x}", f"{2:064x}"]
    assert steps["accuracy"].isna().all() and (steps["wall_s"] == 0.25).all()

    links = run.links(-1)
    assert links["wait_ps"].tolist() == (case.links.wait_ps + 2).tolist()
    assert links["name"].tolist() == [case.mesh.link_name(link) for link in range(case.mesh.n_links)]
    assert np.array_equal(links["utilisation"], case.links.busy_ps / (case.time_ps + 2))
    every = run.links(column=["busy_ps", "utilisation"])
    assert every.index.names == ["step", "link"] and len(every) == 3 * case.mesh.n_links
    assert every.loc[(1, 3), "busy_ps"] == case.links.busy_ps[3] and "bytes" not in every

    devices = run.devices(0)
    assert devices["compute_ps"].tolist() == case.device_compute_ps.tolist()
    assert devices.loc[7, "place"] == "device (1,3)" and devices.loc[7, "peak_memory_bytes"] == 1007

    ops = run.ops()
    assert ops["start_ps"].tolist() == case.ops.start_ps.tolist() and ops["end_ps"].tolist() == case.ops.end_ps.tolist()
    assert ops["label"].iloc[0] == "conv1 – forward" and ops["kind"].iloc[-1] == "COMPUTE"
    timeline = run.timeline()
    assert timeline.index.tolist() == [1024 * b for b in range(8)] and timeline.shape[1] == case.mesh.n_links
    assert timeline.to_numpy().tolist() == case.timeline().link_busy_ps.tolist()


@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 4), cols=st.integers(1, 5), n_steps=st.integers(0, 3), bins=st.integers(0, 3))
def test_any_shape_reads_back(tmp_path: Path, rows: int, cols: int, n_steps: int, bins: int) -> None:
    """Meshes without links, Programs without messages, runs without steps."""
    case = make_case(rows, cols)
    with case.writer(tmp_path / "run.h5", n_steps, overwrite=True, assumptions=()) as writer:
        for number in range(n_steps):
            writer.append_step(case.step(number))
        writer.write_timeline(case.timeline(bins)) if bins else None
        writer.finish({})
    run = open_run(tmp_path / "run.h5")
    assert (run.n_steps, len(run.links()), len(run.timeline())) == (n_steps, n_steps * case.mesh.n_links, bins)
    assert equal_programs(run.program(), case.program) and run.assumptions == ()
    assert run.recorded_steps == () and "start_ps" not in run.ops()
    for group in ("/results/links", "/results/notes", "/program/messages"):
        run.dataset(group)


def test_xarray_opens_every_group_with_units_and_indices(case: Case, path: Path) -> None:
    with xr.open_dataset(path, group="/results/links", engine="h5netcdf") as links:
        assert links["busy_ps"].dims == ("step", "link") and links["busy_ps"].attrs["units"] == "ps"
        assert links["bytes"].attrs["units"] == "byte" and links["bytes"].attrs["long_name"] == "bytes carried"
        assert links["step"].values.tolist() == [0, 1, 2]
        assert links["busy_ps"].sel(step=1, link=3).item() == case.links.busy_ps[3]
    columns = {column.path: column for column in COLUMNS}
    for group in {column.group for column in COLUMNS}:
        with xr.open_dataset(path, group=group, engine="h5netcdf") as dataset:
            for name, variable in dataset.data_vars.items():
                assert variable.dims == columns[f"{group}/{name}"].dims
                assert variable.attrs["long_name"]
    tree = xr.open_datatree(path, engine="h5netcdf")
    assert {"/results/steps", "/system/links"} <= set(tree.groups)
    tree.close()


def test_categories_name_their_values(case: Case, path: Path) -> None:
    with h5py.File(path) as file:
        for column in COLUMNS:
            assert ("units" in file[column.path].attrs) == bool(column.units)
            for axis, dim in enumerate(column.dims):
                assert file[column.path].dims[axis][0].name == f"{column.group}/{dim}"
            if column.flags:
                attributes = file[column.path].attrs
                assert len(attributes["flag_meanings"].split()) == len(attributes["flag_values"])
        assert file["/program/ops/op_class"].attrs["flag_meanings"] == "conv none reduce_sum update"
        assert file["/system/links/class"].attrs["flag_meanings"] == "link"


def test_what_values_mean_is_what_the_file_says(case: Case, path: Path) -> None:
    """`Run.attributes` does not read the attributes that are written for other readers."""
    run = open_run(path)
    with h5py.File(path, locking=False) as file:
        for column in COLUMNS:
            told, written = run.attributes(column.path), file[column.path].attrs
            assert told.keys() == written.keys() & {"long_name", "units", "flag_values", "flag_meanings"}
            assert all(np.array_equal(value, written[name]) for name, value in told.items())
    assert run.dataset("/results/links")["busy_ps"].attrs["units"] == "ps"
    with pytest.raises(RecordError, match="no dataset /results/none"):
        run.attributes("/results/none")


def test_a_run_is_what_was_committed_when_it_was_opened(case: Case, tmp_path: Path) -> None:
    """However the file grows; each recorded step has times of its own."""
    later = OpTimes(case.ops.start_ps + 5, case.ops.end_ps + 5)
    with case.writer(tmp_path / "run.h5") as writer:
        writer.append_step(case.step(0))
        writer.write_ops(case.ops)
        run = open_run(tmp_path / "run.h5")
        writer.append_step(case.step(1))
        writer.write_ops(later, step=1)
    assert run.n_steps == len(run.steps) == len(run.column("/results/links/bytes")) == 1
    grown = run.refresh()
    assert grown.n_steps == len(grown.column("/results/links/bytes")) == 2
    for step, times in ((None, case.ops), (0, case.ops), (1, later)):
        start_ps, end_ps = grown.op_times(step)
        assert np.array_equal(start_ps, times.start_ps) and np.array_equal(end_ps, times.end_ps)
    with pytest.raises(ValueError, match="read-only"):
        grown.op_times()[0][0] = 1
    found = []
    assert [run.once(lambda one: found.append(one)) for _ in range(2)] == [None, None] and len(found) == 2
    assert run.once(id) == run.once(id) == id(run) != grown.once(id)


def test_schema_covers_the_program_and_names_its_axes_and_groups() -> None:
    arrays = {column.name for column in COLUMNS if column.path.startswith("/program/") and column.dims}
    tables = {"n_devices", "labels", "op_classes", "number_formats", "shapes", "collectives"}
    assert arrays | tables == {field.name for field in fields(Program)}
    assert {column.group for column in COLUMNS} <= set(GROUPS)
    assert {dim for column in COLUMNS for dim in column.dims} == set(DIMS)
    assert len({column.path for column in COLUMNS}) == len(COLUMNS)


def test_long_texts_fit(case: Case, tmp_path: Path) -> None:
    """Attributes of HDF5 end at 64 KiB unless their text lies outside the header."""
    config = "# " + "ü" * 200_000 + "\n"
    run = open_run(case.write(tmp_path / "run.h5", 1, config_text=config))
    assert run.config == config


def test_pandas_joins_ops_with_times(path: Path) -> None:
    ops = open_run(path).ops(0)
    assert isinstance(ops, pd.DataFrame)
    assert (ops["end_ps"] >= ops["start_ps"])[ops["kind"] != "RECV"].all()


def test_bad_questions_name_the_answers(path: Path) -> None:
    run = open_run(path)
    with pytest.raises(RecordError, match=r"no step 3; it holds steps 0 to 2"):
        run.links(3)
    with pytest.raises(RecordError, match="no column 'speed' of links; there are bytes, busy_ps"):
        run.links(column="speed")
    with pytest.raises(RecordError, match=r"op times of step 2 are not recorded \(recorded: 0\)"):
        run.ops(2)
    with pytest.raises(RecordError, match="no dataset /results/nothing"):
        run.column("/results/nothing")
    with pytest.raises(RecordError, match="no group /results/nothing"):
        run.dataset("/results/nothing")


def test_schema_docs_are_current() -> None:
    script = ROOT / "scripts" / "generate_schema_docs.py"
    spec = importlib.util.spec_from_file_location("generate_schema_docs", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / "docs" / "schema.md").read_text(encoding="utf-8")
    assert written == module.markdown(), "run python scripts/generate_schema_docs.py"
