"""`meshemu validate`: rows recomputed by hand, a falsified machine, exit codes."""

import importlib.util
import json
from pathlib import Path

import pytest

from meshemu import cli
from meshemu.errors import InputError
from meshemu.hardware.figure import GRADES
from meshemu.study.checks import KINDS
from meshemu.study.validate import render, to_json, validate

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location(
    "generate_machine_model_docs", ROOT / "scripts" / "generate_machine_model_docs.py"
)
generate = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(generate)


@pytest.fixture(scope="module")
def rows():
    return validate()


def row_of(rows, quantity):
    return next(row for row in rows if row.quantity == quantity)


def test_rows_recomputed_from_published_inputs(rows):
    expected = {
        "dojo-die matrix_bf16": 354 * 512 * 2 * 10**9,
        "dojo-die bisection": 20 * 512 * 10**9,
        "dojo-tile bisection": 5 * 2 * 10**12,
        "dojo-tray bisection": 3 * 4_500 * 10**9,
        "dojo-tray link tile_edge": 900 * 10**9,
        "dojo-tray off tile": 4 * 2 * 4_500 * 10**9,
        "dojo-tile hop die_edge": 100_000,
        "dojo-die hop noc": 500,
        "dojo-exapod power": 120 * 15_000,
        "dojo-exapod sram": 3000 * 354 * 1_250_000,
        "wse2-wafer cores": 84 * 66 * 154,
        "wse2-wafer fabric": 2 * 2 * (2 * 1078 * 792 - 1078 - 792) * 4_400_000_000,
        "wse2-wafer edge to edge": 48 * 22 * 909 + 42,
        "a100-8 one way": 600_000 + 4,
    }
    assert {quantity: row_of(rows, quantity).model for quantity in expected} == expected


def test_every_row_says_where_it_stands(rows):
    for row in rows:
        assert row.kind in KINDS and row.grade in GRADES and row.source
        assert (row.model is None) == (row.kind == "not modelled")
        assert (row.agrees is not None) == (row.kind == "exact by construction")
        assert row.model is None or row.ratio == pytest.approx(row.model / row.published)
    assert all(row.agrees for row in rows if row.agrees is not None)
    assert row_of(rows, "dojo-tile batch-norm all-reduce, 25 dies").kind == "calibrated"
    assert row_of(rows, "a100-24 batch-norm all-reduce, 24 GPUs, ll").kind == "predicted"
    for quantity in ("dojo-tile traffic across the middle", "dojo-tray traffic across the middle"):
        assert row_of(rows, quantity).ratio == pytest.approx(1, abs=0.01)
    names = [row.quantity for row in rows]
    assert len(set(names)) == len(names), "each row has a name of its own"
    chains = [row for row in rows if "reduce along" in row.quantity]
    assert len(chains) == 6 and all(0.99 < row.ratio < 1.05 for row in chains)


def test_text_and_json_hold_every_row(rows):
    text = render(rows)
    assert all(row.quantity in text and row.source in text for row in rows)
    n_exact = sum(row.agrees is True for row in rows)
    assert text.endswith(f"{n_exact} of {n_exact} figures that are exact by construction agree.") and n_exact > 30
    assert [entry["quantity"] for entry in json.loads(to_json(rows))] == [row.quantity for row in rows]


def test_page_is_current(rows, monkeypatch):
    monkeypatch.setattr(generate, "validate", lambda: rows)
    page = generate.PAGE.read_text(encoding="utf-8")
    assert generate.with_tables(page) == page


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ("system.die_edge.bandwidth=1.9 TB/s", ["dojo-tile bisection", "dojo-tile link die_edge"]),
        ("system.die_edge.latency=101 ns", ["dojo-tile hop die_edge"]),
    ],
)
def test_a_falsified_machine_is_found(change, wrong, monkeypatch, capsys):
    only_exact(monkeypatch)
    assert cli.main(["validate", "--set", change]) == 1
    said = capsys.readouterr().out.rpartition("agree:")[2]
    assert [line.split(":")[0].strip() for line in said.strip().splitlines()] == wrong


def test_the_command_and_its_refusals(monkeypatch, capsys):
    only_exact(monkeypatch)
    assert cli.main(["validate", "--json"]) == 0
    assert all(entry["agrees"] for entry in json.loads(capsys.readouterr().out))
    for change, said in (("system.moon=3", "no system has a figure 'moon'"), ("plan=data", "give it as system.KEY")):
        assert cli.main(["validate", "--set", change]) == 2
        [line] = capsys.readouterr().err.strip().splitlines()
        assert said in line
    with pytest.raises(InputError, match=r"tile_edge\.bandwidth = 'fast' is not a bandwidth"):
        validate(["system.tile_edge.bandwidth=fast"])


def only_exact(monkeypatch):
    """Leave out what has nothing to agree with: it takes seconds."""
    from meshemu.study import validate as module

    found = module.checks
    monkeypatch.setattr(module, "checks", lambda machine: [c for c in found(machine) if c.kind in list(KINDS)[:1]])
