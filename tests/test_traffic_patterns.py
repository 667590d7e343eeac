"""Traffic patterns by their definitions, on square and other meshes; the latency-load script end to end."""

import csv
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from meshemu.errors import InputError

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture
def script(monkeypatch):
    """`script(name)`: a module of scripts/, imported as when it runs."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    names = ("traffic", "latency_load")
    yield lambda name: importlib.import_module(name)
    for name in names:
        sys.modules.pop(name, None)


def everyone(traffic, pattern, rows, cols):
    """Destination of one message of each node."""
    return traffic.destinations(pattern, rows, cols, np.arange(rows * cols), np.random.default_rng(0))


@pytest.mark.parametrize("rows, cols", [(8, 8), (4, 16), (3, 5), (1, 7), (6, 6)])
def test_definitions(script, rows, cols):
    traffic = script("traffic")
    n = rows * cols
    place = [divmod(node, cols) for node in range(n)]
    expected = {
        "neighbour": [(row + 1) % rows * cols + (col + 1) % cols for row, col in place],
        "tornado": [
            (row + -(-rows // 2) - 1) % rows * cols + (col + -(-cols // 2) - 1) % cols for row, col in place
        ],
        "bit_complement": [n - 1 - node for node in range(n)],
    }
    for pattern, destinations in expected.items():
        assert everyone(traffic, pattern, rows, cols).tolist() == destinations, pattern
    for pattern in ("uniform", "hotspot", "all_to_all", *expected):
        found = everyone(traffic, pattern, rows, cols)
        assert found.shape == (n,) and 0 <= found.min() <= found.max() < n, pattern


def test_bit_complement_inverts_all_bits(script):
    assert everyone(script("traffic"), "bit_complement", 4, 8).tolist() == [node ^ 31 for node in range(32)]


def test_transpose(script):
    traffic = script("traffic")
    assert everyone(traffic, "transpose", 3, 3).tolist() == [0, 3, 6, 1, 4, 7, 2, 5, 8]
    with pytest.raises(InputError, match="transpose needs a square mesh, not 3 x 5"):
        everyone(traffic, "transpose", 3, 5)


def test_uniform_and_hotspot_shares(script):
    traffic, rng = script("traffic"), np.random.default_rng(1)
    src = np.zeros(60_000, np.int64)
    shares = np.bincount(traffic.destinations("uniform", 3, 4, src, rng), minlength=12) / len(src)
    np.testing.assert_allclose(shares, 1 / 12, atol=0.006)
    shares = np.bincount(traffic.destinations("hotspot", 3, 4, src, rng), minlength=12) / len(src)
    hot = 1 * 4 + 2
    assert shares[hot] == pytest.approx(0.1 + 0.9 / 12, abs=0.006)
    np.testing.assert_allclose(np.delete(shares, hot), 0.9 / 12, atol=0.006)


@pytest.mark.parametrize("rows, cols", [(2, 3), (1, 1), (1, 2)])
def test_all_to_all_takes_the_others_in_turn(script, rows, cols):
    n = rows * cols
    src = np.repeat(np.arange(n)[::-1], 2 * max(1, n - 1))
    found = script("traffic").destinations("all_to_all", rows, cols, src, np.random.default_rng(0))
    for node in range(n):
        others = [(node + 1 + turn) % n for turn in range(n - 1)] or [node]
        assert found[src == node].tolist() == 2 * others


def test_bernoulli(script):
    traffic = script("traffic")
    cycle, node = traffic.bernoulli(5, 20_000, 0.3, np.random.default_rng(2))
    assert (np.diff(cycle) >= 0).all()
    np.testing.assert_allclose(np.bincount(node) / 20_000, 0.3, atol=0.015)
    assert len(set(zip(cycle.tolist(), node.tolist(), strict=True))) == len(cycle)
    with pytest.raises(InputError, match="probability"):
        traffic.bernoulli(5, 10, 1.5, np.random.default_rng(0))


def test_unknown_pattern(script):
    with pytest.raises(InputError, match="unknown traffic pattern 'x'; there are uniform, transpose, neighbour"):
        everyone(script("traffic"), "x", 2, 2)


@pytest.mark.parametrize("text, loads", [("0.1:0.3:0.1", [0.1, 0.2, 0.3]), ("0.05,0.4", [0.05, 0.4]), ("0.2", [0.2])])
def test_loads(script, text, loads):
    assert script("latency_load").parse_loads(text) == pytest.approx(loads)


def test_curve_as_csv_and_picture(script, tmp_path, capsys):
    script("latency_load").main(
        ["--pattern", "tornado", "--rows", "3", "--cols", "5", "--loads", "0.02:0.6:0.29", "--message-flits", "2",
         "--cycles", "2000", "--warmup", "400", "--out", str(tmp_path)]
    )  # fmt: skip
    with (tmp_path / "latency_load_tornado_3x5.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["mode"], float(row["offered"])) for row in rows] == [
        (mode, pytest.approx(load)) for load in (0.02, 0.31, 0.6) for mode in ("router", "fifo")
    ]
    first, last = rows[0], rows[-2]
    # tornado on 3 x 5: one row and two columns further; with its wrap a hop is 1 or 2 rows and 2 or 3 columns
    mean_hops = (1 + 1 + 2) / 3 + (2 * 3 + 3 * 2) / 5
    assert float(first["mean_latency"]) == pytest.approx(5 * (mean_hops + 1) + 2 + 1, rel=0.02), "2 flits: one more"
    assert float(first["accepted"]) == pytest.approx(0.02, rel=0.2)
    assert float(last["mean_latency"]) > float(first["mean_latency"])
    assert float(last["p99_latency"]) > float(last["mean_latency"])
    assert (tmp_path / "latency_load_tornado_3x5.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("\n") == 7


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--pattern", "transpose", "--cols", "3"], "transpose needs a square mesh"),
        (["--loads", "a:b"], "--loads a:b: give first:last:step"),
        (["--virtual-channels", "0"], "virtual_channels = 0"),
    ],
)
def test_script_refuses(script, arguments, said, capsys):
    with pytest.raises(SystemExit) as left:
        script("latency_load").main(arguments)
    assert left.value.code == 2
    assert said in capsys.readouterr().err
