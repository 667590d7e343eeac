"""Presets against published totals, plain grids, overrides, refusals and storage."""

import pytest

from meshemu.errors import InputError
from meshemu.hardware import DeviceSpec, System, describe_system, list_systems, preset_names
from meshemu.hardware.describe import total
from meshemu.hardware.figure import GRADES
from meshemu.hardware.published import TOTALS
from meshemu.mesh import flatten
from meshemu.study.quantities import model_value

SPEC = DeviceSpec("chip", 3, {"bf16": 10**12}, {"fp32": 10**11}, 10**6, 10**9, 5 * 10**8, 0, 7)


@pytest.mark.parametrize(
    ("name", "devices", "rows", "cols", "alive"),
    [
        ("dojo-die", None, 18, 20, 354),
        ("dojo-tile", None, 5, 5, 25),
        ("dojo-tile", "node", 90, 100, 8850),
        ("dojo-tile", "tile", 1, 1, 1),
        ("dojo-tray", None, 10, 15, 150),
        ("dojo-cabinet", "tile", 3, 4, 12),
        ("dojo-exapod", "die", 15, 200, 3000),
        ("wse2-die", None, 7, 3, 21),
        ("wse2-wafer", None, 7, 12, 84),
        ("wse2-wafer", "block", 49, 36, 1764),
        ("a100-8", None, 8, 1, 8),
        ("a100-24", None, 8, 3, 24),
        ("a100-24", "node", 1, 3, 3),
    ],
)
def test_grid_of_devices(name, devices, rows, cols, alive):
    system = System.preset(name, devices)
    assert (system.rows, system.cols, system.n_alive, system.n_devices) == (rows, cols, alive, rows * cols)


def test_device_adds_up_what_is_inside():
    die, tile, node = (System.preset("dojo-tile", devices).device for devices in ("die", "tile", "node"))
    assert die.matrix_flops_per_s["bf16"] == 354 * 512 * 2 * 10**9
    assert die.matrix_flops_per_s["fp32"] == 354 * 64 * 10**9
    assert die.sram_bytes == 442_500_000 and die.n_nodes == 354
    assert tile.sram_bytes == 25 * die.sram_bytes and tile.n_nodes == 8850
    assert tile.load_bytes_per_s == 8850 * node.load_bytes_per_s and node.n_nodes == 1
    assert die.combine_ps > node.combine_ps > 0


CHEAP = [known for known in TOTALS if known.quantity != "fabric"]  # that of a whole wafer is among the rows of validate


@pytest.mark.parametrize("known", CHEAP, ids=lambda known: f"{known.preset}-{known.quantity}")
def test_totals_are_the_published_ones(known):
    value = model_value(System.preset(known.preset), known.quantity)
    assert value == pytest.approx(known.figure.value, rel=known.tolerance)
    assert figure_of(known) in (None, value)


def figure_of(known):
    """What the description of a system says, without a mesh; None where it needs one."""
    return total(System.preset(known.preset), known.quantity)


@pytest.mark.parametrize("name", preset_names())
def test_every_figure_has_source_and_grade(name):
    system = System.preset(name)
    for key, figure in system.figures():
        assert figure.source and figure.grade in GRADES, key
        assert figure.grade != "assumed" or figure.note, f"{key} is assumed without a reason"


def test_conflicting_figures_are_chosen_by_name():
    figures = {"noc_width": "narrow", "sram_bandwidth": "ports"}
    chosen = System.preset("dojo-die", figures=figures)
    assert chosen.figure("noc.bandwidth").value == 128 * 10**9
    assert (chosen.device.load_bytes_per_s, chosen.device.store_bytes_per_s) == (256 * 10**9, 128 * 10**9)
    default = System.preset("dojo-die")
    assert default.figure("noc.bandwidth").value == 512 * 10**9 and default.device.load_bytes_per_s == 400 * 10**9
    with pytest.raises(InputError, match="'noc_size'; dojo-die has noc_width, sram_bandwidth"):
        System.preset("dojo-die", figures={"noc_size": "wide"})
    with pytest.raises(InputError, match=r"figures\.noc_width = 'huge' is not one of wide, narrow"):
        System.preset("dojo-die", figures={"noc_width": "huge"})


def test_comparison_systems_have_their_published_figures():
    gpu, core = System.preset("a100-24").device, System.preset("wse2-die", "core").device
    assert (gpu.matrix_flops_per_s["bf16"], gpu.sram_bytes) == (312 * 10**12, 80 * 10**9)
    assert gpu.load_bytes_per_s == gpu.store_bytes_per_s == 2 * 10**12
    assert (core.sram_bytes, core.load_bytes_per_s + core.store_bytes_per_s) == (48_000, 24 * 1_100_000_000)
    simple = System.preset("a100-8", figures={"protocol": "simple"})
    assert simple.figure("nvlink.latency").value == 3_400_000
    assert simple.figure("nvlink.latency").value + simple.figure("network.latency").value == 14_000_000
    slow = System.preset("wse2-die", "core", {"clock": "measured"})
    assert slow.device.matrix_flops_per_s["bf16"] == 8 * 850_000_000
    assert slow.injection_latency_ps == 2 * 1176


def test_rated_power_is_that_of_the_largest_units():
    assert System.preset("dojo-die").power_w == ("die.power", 400, 1)
    assert System.preset("dojo-tray", "node").power_w == ("tile.power", 15_000, 6)
    assert System.preset("a100-24").power_w == ("gpu.power", 400, 24)
    assert System.grid(rows=1, cols=2, bandwidth=1, latency=0).power_w is None
    changed = System.preset("dojo-tile").override({"tile.power": "14 kW", "die_edge.energy": "0.5 pJ/bit"})
    assert changed.power_w == ("tile.power", 14_000, 1) and changed.figure("die_edge.energy").value == 500
    for wrong in ({"tile.power": "14 kV"}, {"die_edge.energy": "1 pJ"}):
        with pytest.raises(InputError, match=r"is not (a power|an energy per bit)"):
            System.preset("dojo-tile").override(wrong)


def test_unknown_names_list_the_valid_ones():
    with pytest.raises(InputError, match="'dojo'; the presets are dojo-die, dojo-tile, dojo-tray, dojo-cabinet, "):
        System.preset("dojo")
    with pytest.raises(InputError, match="devices = 'core' is not a unit of dojo-tile; its units are node, die, tile"):
        System.preset("dojo-tile", "core")


def test_override_replaces_by_key():
    values = {"tile_edge.bandwidth": "9 TB/s", "die_edge.latency": "50 ns", "node.sram": "2 MB", "op_launch": "1 us"}
    values |= {"tiles": [2, 4], "node.matrix.bf16": "1024 FLOP/clk", "die.nodes": 360}
    before = System.preset("dojo-exapod")
    after = before.override(values)
    assert after.figure("tile_edge.bandwidth").value == 9 * 10**12
    assert after.figure("die_edge.latency").value == 50_000
    assert (after.rows, after.cols) == (10, 20)
    assert after.device.sram_bytes == 360 * 2_000_000 and after.device.op_launch_ps == 10**6
    assert after.device.matrix_flops_per_s["bf16"] == 360 * 1024 * 2 * 10**9
    figure = after.figure("tile_edge.bandwidth")
    assert figure.grade == "overridden" and "4.5 TB/s" in figure.note
    assert before.figure("tile_edge.bandwidth").value == 4_500_000_000_000
    assert after.override({"tiles": "3x40"}).cols == 200


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tile_edge.bandwith": "9 TB/s"}, r"'tile_edge.bandwith' of dojo-tile; it has node.clock, .*dead_links"),
        ({"tile_edge.bandwidth": "9 TB"}, "tile_edge.bandwidth = '9 TB' is not a bandwidth"),
        ({"die_edge.latency": "-1 ns"}, "die_edge.latency = '-1 ns' is not a time"),
        ({"tiles": [3]}, r"tiles = \[3\] is not a grid"),
        ({"tiles": [0, 4]}, "tiles = 0 is not a whole number"),
        ({"node.matrix.bf16": "fast"}, "node.matrix.bf16 = 'fast' is not a number per clock"),
        ({"die.nodes": 361}, "die.nodes = 361 > nodes = 18 x 20"),
        ({"dead": [[5, 0]]}, r"dead: there is no device \(5,0\) in a grid of 5 x 5 devices"),
        ({"dead": [3, 4]}, r"dead = \[3, 4\] is not a list of"),
        ({"dead": [[r, c] for r in range(5) for c in range(5)]}, "dead: all 5 x 5 devices are dead"),
        ({"dead_links": [[[0, 0], [1, 1]]]}, r"dead_links: devices \(0,0\) and \(1,1\) are not neighbours"),
        ({"dead_links": [[[0, 0], [0, 0]]]}, "are not neighbours"),
        ({"dead_links": [[0, 1]]}, "dead_links = .* is not a list of"),
        ({"slow_links": [[[0, 0], [1, 1], 2]]}, r"slow_links: devices \(0,0\) and \(1,1\) are not neighbours"),
        ({"slow_links": [[[0, 0], [0, 1]]]}, r"slow_links = .* is not a list of .*factor"),
        ({"slow_links": [[[0, 0], [0, 1], 0]]}, r"slow_links: the factor of \(0, 0\) to \(0, 1\) is 0"),
        ({"slow_links": [[[0, 0], [0, 1], 2], [[0, 0], [0, 1], 3]]}, "is given twice"),
        ({"slow_links": [[[0, 0], [0, 1], 2]], "dead": [[0, 1]]}, "one of its ends is"),
        ({"slow_links": [[[0, 1], [0, 0], 2]], "dead_links": [[[0, 0], [0, 1]]]}, r"from \(0, 1\) to \(0, 0\) is dead"),
    ],
)  # fmt: skip
def test_override_refuses_by_key(values, message):
    with pytest.raises(InputError, match=message):
        System.preset("dojo-tile").override(values)


def test_dead_nodes_decide_the_count_where_nodes_are_devices():
    system = System.preset("dojo-die")
    with pytest.raises(InputError, match=r"die\.nodes follows from the dead nodes"):
        system.override({"die.nodes": 360})
    with pytest.raises(InputError, match="nodes = 10 x 10: which nodes are dead"):
        system.override({"nodes": [10, 10]})
    assert system.override({"dead": []}).n_alive == 360
    assert system.override({"nodes": [10, 10], "dead": [[0, 0]]}).n_alive == 99


def test_dead_pattern_keeps_edges_and_bisections_whole():
    system = System.preset("dojo-die")
    rows, cols = zip(*system.dead_devices(), strict=True)
    assert len(set(rows)) == len(set(cols)) == 6
    assert not set(rows) & {0, 8, 9, 17} and not set(cols) & {0, 9, 10, 19}
    pattern = set(system.dead_devices())
    wafer = System.preset("dojo-tile", "node").dead_devices()
    assert len(wafer) == 150 and {(row % 18, col % 20) for row, col in wafer} == pattern


def test_grid_is_a_plain_mesh():
    system = System.grid(rows=3, cols=4, bandwidth="50 GB/s", latency="500 ns")
    assert (system.rows, system.cols, system.device, system.injection_bandwidth_bytes_per_s) == (3, 4, None, None)
    assert system.override({"link.latency": 0, "grid": [2, 2]}).n_devices == 4
    assert System.grid(rows=1, cols=1, bandwidth=1, latency=0, device=SPEC).device == SPEC
    for wrong in ({"rows": 0}, {"cols": 2.5}, {"bandwidth": 0}, {"latency": "1 B"}):
        with pytest.raises(InputError):
            System.grid(**({"rows": 2, "cols": 2, "bandwidth": 1, "latency": 1} | wrong))


FAULTS = {"dead": [[3, 3]], "dead_links": [[[0, 1], [0, 0]]], "slow_links": [[[2, 0], [1, 0], 7]]}
SYSTEMS = [
    *(System.preset(name) for name in preset_names()),
    System.preset("dojo-tile", "node", {"noc_width": "narrow"}).override(FAULTS),
    System.grid(rows=3, cols=4, bandwidth="50 GB/s", latency="500 ns", device=SPEC),
]  # fmt: skip


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: f"{system.name}-{system.devices}")
def test_json_round_trip(system):
    back = System.from_json(system.to_json())
    assert back == system and back.to_json() == system.to_json() and hash(back) == hash(system)
    assert back.device == system.device and back.dead_devices() == system.dead_devices()
    assert (flatten(back).bandwidth_bytes_per_s == flatten(system).bandwidth_bytes_per_s).all()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": 1}'])
def test_other_json_is_refused(text):
    with pytest.raises(InputError, match="not a stored system"):
        System.from_json(text)


def test_descriptions_name_every_preset_and_figure():
    table = list_systems()
    assert [line.split()[0] for line in table.splitlines()[1:]] == list(preset_names())
    assert "362.5 TFLOP/s" in table and "1.087 EFLOP/s" in table and "1062000" in table
    for name in preset_names():
        text = describe_system(name)
        for key, figure in System.preset(name).figures():
            assert key in text and figure.text() in text and figure.source in text
        assert ("noc_width = narrow" in text) == name.startswith("dojo")
        assert ("protocol = simple" in text) == name.startswith("a100")
    with pytest.raises(InputError, match="unknown system"):
        describe_system("dojo-moon")
