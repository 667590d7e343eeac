"""A fabric that does not notice the borders of larger units: the same wafer at every granularity."""

import numpy as np
import pytest

from meshemu.emulator.timing import simulate_messages
from meshemu.errors import InputError
from meshemu.hardware import System
from meshemu.mesh import bisection_bytes_per_s, flatten
from meshemu.study.experiments import chain_reduce_cycles

CYCLE_PS, LINK = 909, 4 * 1_100_000_000


@pytest.mark.parametrize(
    ("devices", "rows", "cols", "down", "along"),
    [("core", 154, 66, 1, 1), ("block", 7, 3, 22, 22), ("die", 1, 1, None, None)],
)
def test_links_of_a_die(devices, rows, cols, down, along):
    mesh = flatten(System.preset("wse2-die", devices))
    assert (mesh.rows, mesh.cols) == (rows, cols)
    between = mesh.link_src != mesh.link_dst
    assert mesh.class_names[:1] == (("fabric",) if down else ())
    if down:
        vertical = mesh.col[mesh.link_src] == mesh.col[mesh.link_dst]
        assert set(mesh.bandwidth_bytes_per_s[between & vertical]) == {LINK * along}
        assert set(mesh.latency_ps[between & vertical]) == {CYCLE_PS * down}


def test_sides_of_a_die_differ():
    mesh = flatten(System.preset("wse2-wafer"))
    vertical = mesh.col[mesh.link_src] == mesh.col[mesh.link_dst]
    assert set(mesh.bandwidth_bytes_per_s[vertical]) == {66 * LINK}
    assert set(mesh.bandwidth_bytes_per_s[~vertical]) == {154 * LINK}
    assert set(mesh.latency_ps[vertical]) == {154 * CYCLE_PS} and set(mesh.latency_ps[~vertical]) == {66 * CYCLE_PS}


def test_every_granularity_has_the_same_bisection_and_device_totals():
    wafers = [System.preset("wse2-wafer", devices).override({"dies": [4, 2]}) for devices in ("core", "block", "die")]
    assert {bisection_bytes_per_s(flatten(wafer)) for wafer in wafers} == {2 * 66 * LINK}
    assert {wafer.n_alive * wafer.device.sram_bytes for wafer in wafers} == {8 * 154 * 66 * 48_000}


def test_cores_inject_over_ramps():
    system = System.preset("wse2-die", "core")
    arrival = simulate_messages(system, [0], [3], [4]).arrival_ps[0]
    wavelet_ps = -(-4 * 10**12 // LINK)
    assert arrival == 3 * CYCLE_PS + 2 * 2 * CYCLE_PS + wavelet_ps
    mesh = flatten(System.preset("wse2-die", "core", {"clock": "measured"}))
    assert set(mesh.latency_ps[mesh.link_src == mesh.link_dst]) == {2 * 1176}


@pytest.mark.parametrize(("n_cores", "n_wavelets"), [(2, 1), (9, 40), (24, 8)])
def test_a_chain_reduces_as_the_published_model_says(n_cores, n_wavelets):
    system = System.preset("wse2-die", "core")
    published = n_wavelets + 6 * (n_cores - 1)
    free = chain_reduce_cycles(n_cores, n_wavelets, additions=False, system=system)
    assert abs(free - published) <= 1
    assert free <= chain_reduce_cycles(n_cores, n_wavelets, additions=True, system=system) <= 1.1 * published
    with pytest.raises(InputError, match="wse2-die with blocks as devices has no ramps"):
        chain_reduce_cycles(2, 1, additions=True, system=System.preset("wse2-die"))


def test_plain_machines_are_as_before():
    tray = flatten(System.preset("dojo-tray"))
    assert tray.switches is None and tray.n_vertices == tray.n_devices
    assert np.array_equal(np.unique(tray.bandwidth_bytes_per_s), [9 * 10**11, 2 * 10**12])
