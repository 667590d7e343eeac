"""Sweeps: what a study file may say, runs that are done once, tables that do not show how they came about."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from small_gpt import SMALL_GPT

from meshemu import cli
from meshemu.errors import InputError
from meshemu.record.compare import compare
from meshemu.study import slurm, sweep_table
from meshemu.study.study_file import as_toml, load_study
from meshemu.study.sweep import sweep, units

BASE = (
    """
plan = "data"
[system.grid]
rows = 1
cols = 3
bandwidth = "100 GB/s"
latency = "100 ns"
"""
    + SMALL_GPT
    + """batch_size = 6
[training]
steps = 2
optimizer = { name = "sgd", lr = 0.1 }
[timing]
collective = "ring"
"""
)
GRID = """
config = "base.toml"
[grid]
"training.optimizer.lr" = [0.1, 0.2]
"timing.packet_bytes" = ["4 KiB", "128 B"]
"""


@pytest.fixture
def study_of(tmp_path, monkeypatch):
    """A function from the text of a study file to its path, beside a configuration."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.toml").write_text(BASE)

    def write(text, name="study.toml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_a_sweep_that_was_stopped_goes_on_and_ends_in_the_same_table(study_of, tmp_path, monkeypatch, capsys):
    """Stopped in its second run, which leaves a torn file; finished runs are not touched again."""
    path = study_of(GRID)
    assert cli.main(["sweep", str(path), "--jobs", "1", "-o", "whole"]) == 0
    whole = pd.read_parquet(tmp_path / "whole" / "results.parquet")
    assert list(whole["run"]) == list(range(4)) and (whole["status"] == "done").all()
    assert list(whole["training.optimizer.lr"]) == [0.1] * 2 + [0.2] * 2
    assert list(whole["retimed"]) == [False, True] * 2
    parts = ["path_compute_ps", "path_combine_ps", "path_latency_ps", "path_serialisation_ps", "path_waiting_ps"]
    assert (whole[parts].sum(axis=1) == whole["step_time_ps"]).all()
    assert whole["loss"].notna().all() and len(set(whole["loss"])) == 2

    import meshemu.emulator.running as running

    done, original = [], running.run

    def torn(config, output, **named):
        done.append(output)
        if len(done) == 2:
            output.write_bytes(b"torn")
            raise KeyboardInterrupt
        return original(config, output, **named)

    monkeypatch.setattr(running, "run", torn)
    with pytest.raises(KeyboardInterrupt):
        sweep(load_study(path), tmp_path / "torn", jobs=1)
    monkeypatch.setattr(running, "run", original)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "torn" / "runs").iterdir() if p != done[1]}
    assert len(before) == 2
    assert cli.main(["sweep", str(path), "--jobs", "1", "-o", "torn"]) == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert (tmp_path / "torn" / "results.csv").read_text() == (tmp_path / "whole" / "results.csv").read_text()
    assert "4 of 4 runs done" in capsys.readouterr().out


def test_a_program_timed_again_is_what_a_run_of_its_own_gives(study_of, tmp_path):
    """Also where only the first run of a Program changes a figure: later ones have it as it was."""
    text = """
    config = "base.toml"
    execute = false
    [[list]]
    "system.link.latency" = "700 ns"
    [[list]]
    "timing.routing" = "yx"
    [[list]]
    "network.router.buffer_flits" = 8
    """
    study = load_study(study_of(text))
    assert [[task.retimes for task in unit.tasks] for unit in sorted(units(study), key=lambda u: -len(u.tasks))] == [
        [False, True], [False],
    ]  # fmt: skip
    sweep(study, tmp_path / "out", jobs=1)
    found = sweep_table.sweep_table(study, tmp_path / "out")
    from meshemu.emulator.running import run

    for row, one in zip(found.to_dict("records"), study.runs, strict=True):
        alone = run(one.config, tmp_path / f"{row['run']}.h5", execute=False)
        assert compare(alone.path, tmp_path / "out" / row["file"]) is None
        assert row["step_time_ps"] == alone.prepared.timed.timing.end_ps
    assert found["step_time_ps"].nunique() == 3 and found["loss"].isna().all()


def test_runs_of_a_model_share_its_capture_whatever_their_plans(study_of, tmp_path, monkeypatch):
    import meshemu.workload.capture as capture

    captured, original = [], capture.capture_maths
    monkeypatch.setattr(capture, "capture_maths", lambda *args: captured.append(args) or original(*args))
    text = """
    config = "base.toml"
    execute = false
    set = { "training.seed" = 5 }
    [grid]
    plan = ["data", { tensor = 2 }]
    "timing.bucket_bytes" = [1000, 2000]
    "data.args.context" = [8]
    """
    sweep(load_study(study_of(text)), tmp_path / "out", jobs=1)
    assert len(captured) == 1


def test_programs_that_follow_from_the_hardware_are_built_anew_unless_kept(study_of):
    text = 'config = "base.toml"\nset = {{ "timing.collective" = "auto" }}\nkeep_program = {}\n[grid]\n' \
        '"system.link.latency" = ["1 ns", "1 us"]'  # fmt: skip
    assert [len(unit.tasks) for unit in units(load_study(study_of(text.format("false"))))] == [1, 1]
    kept = units(load_study(study_of(text.format("true"))))
    assert [len(unit.tasks) for unit in kept] == [2]
    assert kept[0].tasks[1].name.endswith(kept[0].tasks[0].name[:8])


def test_a_run_that_fails_is_told_and_the_others_go_on(study_of, tmp_path, capfd):
    path = study_of("""
    config = "base.toml"
    execute = false
    [grid]
    plan = [{ data = 4 }, "data"]
    "timing.packet_bytes" = [64, 128]
    """)
    assert cli.main(["sweep", str(path), "--jobs", "1"]) == 1
    captured = capfd.readouterr()
    assert "2 of 4 runs done, 2 failed" in captured.out and "failed: " in captured.err
    table = pd.read_csv(tmp_path / "study" / "results.csv")
    assert list(table["status"]) == ["failed", "failed", "done", "done"]
    assert "4" in table["message"][0] and "its Program is that of run 0, which failed" in table["message"][1]
    assert np.isnan(table["step_time_ps"][0])


def test_processes_share_a_sweep(study_of, tmp_path):
    text = 'config = "base.toml"\nexecute = false\n[grid]\nplan = ["data", { tensor = 2 }]'
    study = load_study(study_of(text))
    sweep(study, tmp_path / "two", jobs=2)
    sweep(study, tmp_path / "one", jobs=1)
    two, one = (sweep_table.sweep_table(study, tmp_path / name) for name in ("two", "one"))
    assert (two["status"] == "done").all() and two.equals(one)
    assert list(two["plan"]) == ["data", "{ tensor = 2 }"]


def test_random_samples_are_those_of_their_seed(study_of):
    text = """
    config = "base.toml"
    [random]
    samples = 50
    seed = 3
    keys = {{ "training.optimizer.lr" = {{ low = 1e-4, high = 1e-2, log = true }}, "training.steps" = {} }}
    """
    whole = "{ low = 1, high = 9, whole = true }"
    one, two = (load_study(study_of(text.format(steps))) for steps in (whole, "[1, 2]"))
    rates = [run.values["training.optimizer.lr"] for run in one.runs]
    assert len(rates) == 50 and min(rates) >= 1e-4 and max(rates) <= 1e-2
    assert 10 < sum(rate < 1e-3 for rate in rates) < 40
    assert {run.config.training.steps for run in one.runs} <= set(range(1, 10))
    assert {run.values["training.steps"] for run in two.runs} == {1, 2}
    assert load_study(study_of(text.format(whole))).runs[7].values == one.runs[7].values


BASED = "config = 'base.toml'\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BASED + "gird = {}", "unknown key 'gird'; a study has config, execute"),
        (BASED, "give one of grid, list and random, not none of them"),
        (BASED + "[grid]\n[[list]]\na=1", "not grid and list"),
        (BASED + "[grid]", "grid is not a table with at least one key"),
        (BASED + "[grid]\nplan = []", r"grid.plan = \[\] is not a list of at least one value"),
        (BASED + "[grid]\nplan = ['data', 'data']", 'grid has { plan = "data" } 2 times'),
        (BASED + "[grid]\n'training.setps' = [1]", "with training.setps = 1: .*training.setps"),
        ("config = 'none.toml'\n[grid]\nplan = ['data']", "none.toml: cannot be read"),
        ("[grid]\nplan = ['data']", "config = None is not the path"),
        (BASED + "list = []", "list is no list of tables"),
        (BASED + "[random]\nsamples = 0\nkeys = { plan = ['data'] }", "random.samples = 0 is not a whole"),
        (BASED + "[random]\nsamples = 1\nkeys = { 'training.steps' = { low = 3, high = 1 } }", "low < high"),
        (BASED + "execute = 1\n[grid]\nplan = ['data']", "execute = 1 is neither true nor false"),
        (BASED + "[grid]\nplan = ['data']\n[slurm]\narray = '1'", "slurm.array is set by the sweep itself"),
        (BASED + "[grid]\nplan = ['data']\n[slurm]\nntasks = 0", "slurm.ntasks = 0 is not a whole number"),
        ("config = ", "is not valid TOML"),
    ],
)
def test_faults_of_a_study_file_are_one_line_before_anything_runs(text, words, study_of):
    with pytest.raises(InputError, match=words) as caught:
        load_study(study_of(text))
    assert "\n" not in str(caught.value)


def test_values_are_toml():
    import tomllib

    value = {"a": [1, 2.5, True, "x\"y\\z"], "b c": {"d": "é"}}
    assert tomllib.loads(f"v = {as_toml(value)}")["v"] == value


def test_the_scripts_of_a_slurm_array_are_bash(study_of, tmp_path, capsys, monkeypatch):
    text = GRID + '[slurm]\ntime = "1:00:00"\nntasks = 2\nsetup = ["module load mpich", "echo \'a b\'"]\n'
    path = study_of(text)
    study = load_study(path)
    found = slurm.scripts(study, tmp_path / "my out", len(units(study)), jobs=3)
    for script in (found.array, found.collect):
        assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=True).stderr == ""
        assert script.splitlines()[0] == "#!/bin/bash" and "#SBATCH --time=1:00:00" in script
    lines = found.array.splitlines()
    assert "#SBATCH --array=0-1%3" in lines and "#SBATCH --ntasks=2" in lines and "module load mpich" in lines
    assert lines[-1].startswith(f"srun {sys.executable} -m meshemu sweep")
    assert lines[-1].endswith(f"-o '{tmp_path}/my out' --part \"$SLURM_ARRAY_TASK_ID\"")
    assert "#SBATCH --ntasks=1" in found.collect and found.collect.rstrip().endswith("--collect")
    assert cli.main(["sweep", str(path), "--slurm", "--dry-run"]) == 0
    assert "--array=0-1" in capsys.readouterr().out and not (tmp_path / "study").exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="there is no sbatch here"):
        slurm.submit(found, tmp_path / "study")


def test_sbatch_gets_both_scripts_and_the_table_waits_for_the_array(study_of, tmp_path, monkeypatch):
    fake = tmp_path / "bin" / "sbatch"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\necho "42;cluster"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    study = load_study(study_of(GRID))
    assert slurm.submit(slurm.scripts(study, tmp_path / "out", 2), tmp_path / "out") == "42"
    first, second = (tmp_path / "calls").read_text().splitlines()
    assert first == f"--parsable {tmp_path}/out/sweep.sbatch"
    assert second == f"--parsable --dependency=afterany:42 {tmp_path}/out/collect.sbatch"


def test_parts_and_the_table_as_array_tasks_do_them(study_of, tmp_path, capfd):
    path = study_of('config = "base.toml"\nexecute = false\n[grid]\n"timing.packet_bytes" = [64, 128]')
    assert cli.main(["sweep", str(path), "--collect"]) == 1
    assert "0 of 2 runs done, 2 failed" in capfd.readouterr().out
    assert cli.main(["sweep", str(path), "--part", "0"]) == 0
    assert cli.main(["sweep", str(path), "--collect"]) == 0
    assert cli.main(["sweep", str(path), "--part", "1"]) == 2
    assert "--part 1: the sweep has parts 0 to 0" in capfd.readouterr().err
