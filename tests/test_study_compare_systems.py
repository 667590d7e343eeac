"""One model on several machines: what the command times, prints and refuses; energy as an estimate."""

import csv
import io
import json

import pytest

from meshemu import cli
from meshemu.analysis.energy import step_energy
from meshemu.analysis.report import as_dict, render
from meshemu.emulator.running import run
from meshemu.record.reader import open_run

CONFIG = """
plan = "data"
[system]
preset = "dojo-tile"
op_launch = "1 us"
[model]
name = "gpt"
args = { layers = 1, width = 32, heads = 2, context = 16 }
[data]
name = "python_source"
args = { context = 16 }
batch_size = 50
[training]
steps = 3
optimizer = { name = "sgd", lr = 0.1 }
[timing]
collective = "ring"
"""
ENERGY = 'system.die_edge.energy="2 pJ/bit"'


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("compare") / "small.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def rows(config):
    from meshemu.study.compare_systems import compare_systems

    return compare_systems(config, ["dojo-tile", "a100-8"], overrides=["data.batch_size=200"], plan="data")


def test_a_row_is_what_a_run_of_its_own_says(config, rows, tmp_path):
    from meshemu.config import load

    settings = load(config, ["data.batch_size=200", "training.steps=1"])
    report = as_dict(open_run(run(settings, tmp_path / "run.h5", execute=False).path))
    tile, node = rows
    assert (tile.system, tile.devices, tile.unit, node.devices, node.unit) == ("dojo-tile", 25, "die", 8, "gpu")
    assert tile.step_ps == report["last_step"]["time_ps"] and tile.exposed_ps == report["last_step"]["exposed_comm_ps"]
    assert tile.fraction_of_peak == report["compute_rate"]["fraction_of_peak"]
    assert tile.energy_j == pytest.approx(15_000 * tile.step_ps / 1e12)
    assert node.energy_j == pytest.approx(8 * 400 * node.step_ps / 1e12)
    assert tile.achieved_flops_per_s == pytest.approx(tile.flops / tile.step_ps * 1e12)
    assert 0 < node.fraction_of_peak < 1 and tile.bound_by and "data 8" in node.plan


def test_the_configured_system_keeps_its_changes_and_others_do_not(config, rows, tmp_path):
    from meshemu.config import load
    from meshemu.study.compare_systems import _on_system

    settings = load(config)
    assert _on_system(settings, "dojo-tile", None).system.overrides == {"op_launch": "1 us"}
    other = _on_system(settings, "a100-8", "data")
    assert (other.system.overrides, other.system.preset, other.plan, other.training.steps) == ({}, "a100-8", "data", 1)


def test_energy_of_links_is_assumed_and_a_part(config, tmp_path):
    from meshemu.config import load

    stored = open_run(run(load(config, [ENERGY]), tmp_path / "run.h5", execute=False).path)
    energy = step_energy(stored)
    carried = int(stored.links(-1)["bytes"].sum())
    assert energy.links_j == {"die_edge": pytest.approx(carried * 8 * 2e-12)} and carried > 0
    assert energy.power_w == 15_000 and "tile.power = 15 kW x 1 (published)" in energy.basis
    text = render(stored)
    assert "Energy of the last step, estimated: " in text and "die_edge links, by the energy per bit that was" in text


def test_forms_of_the_table(config, rows, monkeypatch, capsys):
    from meshemu.study import compare_systems as module

    asked = []
    monkeypatch.setattr(module, "compare_systems", lambda *args, **named: asked.append((args, named)) or rows)
    words = ["compare-systems", str(config), "--systems", "dojo-tile", "a100-8"]
    assert cli.main([*words, "--plan", "config", "--set", "training.seed=1"]) == 0
    assert asked[0] == ((config, ["dojo-tile", "a100-8"]), {"overrides": ["training.seed=1"], "plan": None})
    table = capsys.readouterr().out
    assert "25 dies" in table and "8 gpus" in table and rows[1].bound_by in table
    assert cli.main([*words, "--json"]) == 0
    assert [entry["step_ps"] for entry in json.loads(capsys.readouterr().out)] == [row.step_ps for row in rows]
    assert cli.main([*words, "--csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [int(entry["step_ps"]) for entry in table] == [row.step_ps for row in rows]
    assert asked[-1][1]["plan"] == "auto"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--systems", "dojo-tile", "moon"], "--systems moon: unknown system; the presets are dojo-die"),
        (["--systems", "a100-8", "a100-8"], "--systems a100-8: named 2 times"),
        (["--systems", "a100-8", "--set", "data.batch_size=0"], "data.batch_size"),
        (["--systems", "dojo-tile", "--set", "system.moon=1"], "dojo-tile: unknown figure 'moon' of dojo-tile"),
        (["--systems", "a100-8", "--plan", "sideways"], "a100-8: plan 'sideways' is unknown"),
        ([], "the following arguments are required: --systems"),
    ],
)
def test_refusals_are_one_line(config, words, said, capsys):
    assert cli.main(["compare-systems", str(config), *words]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert said in line
