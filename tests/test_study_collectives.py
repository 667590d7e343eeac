"""Collectives over sizes: rows are what the engine and the formulas say, never under the bound."""

import csv
import io
import json

import pytest

import meshemu
from meshemu import System, cli
from meshemu.errors import InputError
from meshemu.study.collectives_report import render, study_collectives, to_csv

SIZES = [2**20, 2**12]


@pytest.fixture(scope="module")
def study():
    return study_collectives("dojo-tile", SIZES)


def test_rows_are_what_the_engine_says(study):
    assert [row.size_bytes for row in study.rows[:3]] == [2**12] * 3
    assert {row.algorithm for row in study.rows} == {"ring", "rows_columns", "tree"}
    system = System.preset("dojo-tile")
    row = next(r for r in study.rows if (r.kind, r.algorithm, r.size_bytes) == ("all_reduce", "tree", 2**20))
    program = meshemu.collective("all_reduce", "tree", system=system, size_bytes=2**20, itemsize=4)
    assert row.simulated_ps == meshemu.time(program, system).end_ps
    assert (row.n_messages, row.traffic_bytes) == (program.n_messages, program.size_bytes.sum())


def test_nothing_is_faster_than_the_bound_or_slower_than_it_should_be(study):
    assert len(study.rows) == 5 * 2 * 3
    for row in study.rows:
        assert 0 < row.bound_ps <= min(row.model_ps, row.simulated_ps)
        assert row.model_ps / 1.5 < row.simulated_ps < 1.2 * row.model_ps


def test_the_fastest_is_marked_and_routers_add_an_algorithm(study):
    lines = render(study).splitlines()
    marked = [line for line in lines if line.endswith("  *")]
    assert len(marked) >= 5 * 2
    reduce_all = [r for r in study.rows if (r.kind, r.size_bytes) == ("all_reduce", 2**20)]
    fastest = min(reduce_all, key=lambda r: r.simulated_ps).algorithm
    section = render(study).split("all_reduce\n")[1].split("\n\n")[0]
    starred = [line.split()[2] for line in section.splitlines() if line.endswith("*")]
    assert starred[1] == fastest
    words = ["system.mesh.multicast=true", "system.mesh.reduction=true"]
    able = study_collectives("dojo-tile", [4096], kinds=["all_reduce"], overrides=words)
    assert [row.algorithm for row in able.rows] == ["ring", "rows_columns", "tree", "in_network"]


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    words = ["collectives", "--sizes", "4 KiB", "8 KiB", "--kinds", "reduce", "-o", str(tmp_path)]
    assert cli.main([*words, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["kind"], row["size_bytes"]) for row in rows] == [("reduce", "4096")] * 3 + [("reduce", "8192")] * 3
    assert json.loads((tmp_path / "collectives.json").read_text())["rows"][0]["algorithm"] == "ring"
    assert (tmp_path / "collectives.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "collectives.csv").read_text().rstrip() == to_csv(
        study_collectives("dojo-tile", [4096, 8192], kinds=["reduce"])
    )


def test_what_is_refused(capfd):
    with pytest.raises(InputError, match=r"--size 3 B is no whole number"):
        study_collectives("dojo-tile", [4, 3])
    with pytest.raises(InputError, match=r"unknown collective 'sum'; known: all_reduce"):
        study_collectives("dojo-tile", [4], kinds=["sum"])
    with pytest.raises(InputError, match=r"--sizes 4 B: given 2 times"):
        study_collectives("dojo-tile", [4, 4])
    assert cli.main(["collectives", "--json"]) == 2
    assert "--json goes with --sizes" in capfd.readouterr().err
