"""Scaling: every row is what a run says, parts add up, and the law finds what it was made of."""

import csv
import io
import json
from math import sqrt
from types import SimpleNamespace

import numpy as np
import pytest
from small_gpt import SMALL_GPT

from meshemu import cli
from meshemu.config import load
from meshemu.emulator.running import run, system_of
from meshemu.errors import CheckError, InputError
from meshemu.record.reader import open_run
from meshemu.study import emulator_scaling as emulator
from meshemu.study.captures import timed_step
from meshemu.study.resizing import resized
from meshemu.study.scale import scale
from meshemu.study.scale_report import render, to_csv
from meshemu.study.scaling_law import fit_law
from meshemu.study.where import where_of, where_of_step

CONFIG = (
    """
plan = { data = 5 }
[system]
preset = "dojo-tile"
dies = [1, 5]"""
    + SMALL_GPT
    + """batch_size = 20
[training]
steps = 3
optimizer = { name = "sgd", lr = 0.1 }
[timing]
collective = "ring"
"""
)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("scale") / "small.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def study(config):
    """Strong and weak scaling on 5, 10 and 20 devices."""
    return scale(config, [20, 5, 10])


def test_rows_are_what_runs_say_and_parts_add_up(study, config, tmp_path):
    strong, weak = ([row for row in study.rows if row.mode == mode] for mode in ("strong", "weak"))
    assert [row.devices for row in strong] == [row.devices for row in weak] == [5, 10, 20]
    assert [row.batch_size for row in strong] == [20] * 3 and [row.batch_size for row in weak] == [20, 40, 80]
    words = ["system.tiles=[2, 2]", "plan={data=20}", "training.steps=1"]
    one = run(load(config, words), tmp_path / "20.h5", execute=False)
    assert strong[2].step_ps == one.prepared.timed.timing.end_ps
    assert strong[2].where == where_of(open_run(one.path))
    assert strong[2].speedup == pytest.approx(strong[0].step_ps / strong[2].step_ps, rel=1e-12)
    assert weak[2].efficiency == pytest.approx(weak[0].step_ps / weak[2].step_ps)
    assert all(row.where.total_ps == row.step_ps for row in study.rows)
    assert "20" in strong[2].plan and study.laws == {"strong": None, "weak": study.laws["weak"]}
    assert "too few points" in render(study)


def test_what_cannot_be_timed_is_told_in_its_row(config):
    study = scale(config, [5, 25, 50], modes=["strong"])
    small, large, huge = study.rows
    assert small.fault == "" and large.step_ps is None and "20" in large.fault and huge.fault
    rows = list(csv.DictReader(io.StringIO(to_csv(study))))
    assert rows[1]["step_ps"] == "" and rows[1]["fault"] == large.fault and rows[0]["collectives_ps"]
    with pytest.raises(InputError, match=r"none can be timed; with 25:"):
        scale(config, [25], modes=["strong"])
    with pytest.raises(InputError, match=r"--devices 5: numbers of devices"):
        scale(config, [5, 5])


def test_where_time_goes_in_a_pipeline_and_in_collectives(config):
    flow = timed_step(load(config, ["plan={pipeline=2}", "training.micro_batches=4"])).timed
    told = where_of_step(flow, "xy")
    assert told.stages_ps > 0 and told.bubble_ps > 0 and told.total_ps == flow.timing.end_ps
    cut = timed_step(load(config, ["plan={tensor=2}"])).timed
    told = where_of_step(cut, "xy")
    assert told.collectives_ps > 0 and told.stages_ps == 0 and told.total_ps == cut.timing.end_ps


def test_systems_and_plans_grow(config, tmp_path):
    def grown(devices, *words, weak=False):
        settings = load(config, words)
        larger = resized(settings, system_of(settings), devices, weak=weak)
        return system_of(larger), larger

    system, larger = grown(100, "system.preset=dojo-tray", "system.dies=[5, 5]", "plan=data")
    assert (system.rows, system.cols, larger.plan) == (10, 10, "data")
    system, larger = grown(300, "system.preset=dojo-tray", "system.dies=[5, 5]", "plan={data=[2, 3], spatial=[5, 5]}")
    assert (system.rows, system.cols) == (15, 20) and larger.plan.data == 12
    system, larger = grown(12, "system={grid={rows=1, cols=3, bandwidth='1 GB/s', latency='1 ns'}}", "plan={tensor=3}")
    assert (system.rows, system.cols) == (3, 4) and (larger.plan.data, larger.plan.tensor) == (4, 3)
    system, _ = grown(32, "system={preset='a100-8'}", "plan=data", weak=False)
    assert system.n_alive == 32
    with pytest.raises(InputError, match=r"--devices 12: 12 is no multiple of the 5 dies"):
        grown(12)
    with pytest.raises(InputError, match=r"--devices 4: the plan = 1 x 4 / 3 devices is no whole number"):
        grown(4, "system={grid={rows=1, cols=3, bandwidth='1 GB/s', latency='1 ns'}}", "plan={tensor=3}")
    with pytest.raises(InputError, match="40 is no multiple of the 25 dies"):
        grown(40, "system.preset=dojo-tray", "system.dies=[5, 5]", "plan=data")


def test_a_law_finds_what_it_was_made_of():
    devices = [4, 16, 36, 64, 100]
    times = [round(1e6 + 4e8 / n + 2e5 * sqrt(n)) for n in devices]
    law = fit_law(devices, times, weak=False)
    found = [value for value, _, _ in law.terms.values()]
    assert found == pytest.approx([1e6, 4e8, 2e5], rel=1e-3)
    assert law.error < 1e-6 and abs(law.held_out_error) < 1e-4
    assert law.time_ps(25) == pytest.approx(1e6 + 1.6e7 + 1e6, rel=1e-3)
    assert all(low == pytest.approx(value, rel=1e-3) == high for value, low, high in law.terms.values())
    noisy = [round(t * (1 + 0.05 * (-1) ** i)) for i, t in enumerate(times)]
    law = fit_law(devices, noisy, weak=False)
    assert all(low <= high for _, low, high in law.terms.values())
    value, low, high = law.terms["parallel"]
    assert 0.02 < law.error < 0.1 and high - low > 0.01 * value
    assert fit_law([1, 2, 3], [3, 2, 1], weak=False) is None
    weak = fit_law([1, 4, 9], [3_000_000, 4_000_000, 5_000_000], weak=True)
    assert [v for v, _, _ in weak.terms.values()] == pytest.approx([2e6, 1e6])


def test_a_law_is_the_least_squares_of_relative_errors():
    """Terms are at least 0, errors relative, and the largest number of devices is what is left out, wherever it is."""
    devices, signs = [64, 4, 100, 16], set()
    for times in ([9_000_000, 4_000_000, 9_500_000, 6_500_000], [9_000_000, 4_000_000, 9_500_000, 4_500_000]):
        law = fit_law(devices, times, weak=True)
        rows = np.array([[1 / t, sqrt(n) / t] for n, t in zip(devices, times, strict=True)])
        expected = np.linalg.lstsq(rows, np.ones(4), rcond=None)[0]
        assert [v for v, _, _ in law.terms.values()] == pytest.approx(list(expected))
        residual = 1 / (rows @ expected) - 1
        signs.add(bool(residual[np.abs(residual).argmax()] > 0))
        assert law.error == pytest.approx(np.abs(residual).max())
        rest = np.linalg.lstsq(rows[[0, 1, 3]], np.ones(3), rcond=None)[0]
        assert law.held_out_error == pytest.approx((rows[2] @ rest) - 1)
    assert signs == {True, False}
    falling = fit_law([1, 4, 16], [4_000_000, 2_000_000, 1_000_000], weak=True)
    assert falling.terms["communication"][:2] == (0, 0) and falling.terms["serial"][0] > 0
    assert fit_law([1, 4], [1, 2], weak=True) is None and fit_law([1, 4, 9, 16], [1, 1, 1, 1], weak=False) is not None
    assert fit_law([1, 4, 9], [1, 2, 3], weak=True).held_out_error is not None


def test_the_interval_of_a_law_is_that_of_its_residuals():
    """In 40 sets of points with noise of 2 %, the true term lies within the 90 % of samples in most and not in all."""
    devices = np.array([1, 2, 4, 8, 16, 32, 64, 128])
    draw = np.random.default_rng(1)
    within, widths = 0, []
    for _ in range(40):
        noisy = np.round((5e6 + 1e6 * np.sqrt(devices)) * (1 + 0.02 * draw.normal(size=8))).astype(int).tolist()
        serial, (value, low, high) = fit_law(devices.tolist(), noisy, weak=True).terms.values()
        assert serial[2] / serial[0] != pytest.approx(high / value)
        within += low <= 1e6 <= high
        widths.append((high - low) / value)
    assert fit_law(devices.tolist(), noisy, weak=True) == fit_law(devices.tolist(), noisy, weak=True)
    assert 26 <= within <= 38
    assert 0.02 < np.mean(widths) < 0.08


def test_the_command_writes_what_it_prints(study, config, tmp_path, capfd, monkeypatch):
    asked = {}
    monkeypatch.setattr(
        "meshemu.study.scale.scale", lambda path, devices, **named: asked.update(named, devices=devices) or study
    )
    words = ["scale", str(config), "--devices", "5", "10", "20", "--weak", "-o", str(tmp_path / "out"), "--json"]
    assert cli.main(words) == 0
    assert asked == {"devices": [5, 10, 20], "modes": ["weak"], "overrides": []}
    printed = json.loads(capfd.readouterr().out)
    assert [row["devices"] for row in printed["rows"]] == [5, 10, 20] * 2
    assert printed["laws"]["weak"]["terms"]["serial"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {f"scale.{s}" for s in ("txt", "json", "csv", "png")}
    assert (tmp_path / "out" / "scale.png").read_bytes()[:4] == b"\x89PNG"
    assert cli.main(["scale", str(config)]) == 2
    assert cli.main(["scale", str(config), "--emulator", "--devices", "5"]) == 2
    assert "--emulator takes --ranks" in capfd.readouterr().err


def test_the_emulator_over_ranks_is_measured_and_compared(config, tmp_path, monkeypatch):
    """Launched with one rank and with two; then more are stood in for, with times and results of their own."""
    study = emulator.emulator_scaling(config, [2, 1], overrides=["training.steps=1"], execute=False)
    one, two = study.rows
    assert (one.ranks, two.ranks, one.speedup, one.efficiency) == (1, 2, 1, 1)
    assert two.prepare_s > 0 and two.efficiency == pytest.approx(two.speedup / 2)
    assert two.speedup == pytest.approx((one.prepare_s + one.steps_s) / (two.prepare_s + two.steps_s))
    assert "the emulator itself" in emulator.render(study)
    assert len(emulator.save(study, tmp_path / "emulator")) == 4

    def launched(_config, ranks, file, _overrides, _execute):
        file.write_text(str(ranks))

    def opened(file):
        wall = 8.0 / int(file.read_text())
        return SimpleNamespace(run_attributes={f"{n}_wall_s": wall for n in ("prepare", "timing", "steps")})

    monkeypatch.setattr(emulator, "_launch", launched)
    monkeypatch.setattr(emulator, "open_run", opened)
    monkeypatch.setattr(emulator, "compare", lambda a, b: None)
    first, second = emulator.emulator_scaling(config, [4, 1]).rows
    assert (first.ranks, second.ranks, second.speedup, second.efficiency) == (1, 4, 4.0, 1.0)
    monkeypatch.setattr(emulator, "compare", lambda a, b: None if a == b else "loss differs")
    with pytest.raises(CheckError, match="results on 4 ranks are not those on 1: loss differs"):
        emulator.emulator_scaling(config, [1, 4])


def test_a_run_that_fails_under_mpirun_is_one_line(config, tmp_path, monkeypatch):
    """The launcher is stood in for, with what a run says that cannot be."""
    launcher = tmp_path / "mpirun"
    said = 'echo "meshemu: error: plan.data = 99" >&2\necho "and more" >&2'
    launcher.write_text(f'#!/bin/sh\nprintf "%s " "$@" > "$0.words"\n{said}\nexit 2\n')
    launcher.chmod(0o755)
    monkeypatch.setenv("MPIRUN", str(launcher))
    with pytest.raises(InputError, match=r"^--emulator: with 3 ranks: plan.data = 99$"):
        emulator.emulator_scaling(config, [3], overrides=["plan={data=99}"], execute=False)
    words = (tmp_path / "mpirun.words").read_text().split()
    assert words[:2] == ["-n", "3"] and {"--set=plan={data=99}", "--no-execute", str(config)} <= set(words)
    monkeypatch.setenv("MPIRUN", str(tmp_path / "none"))
    with pytest.raises(InputError, match="none cannot be run: No such file"):
        emulator.emulator_scaling(config, [1])
