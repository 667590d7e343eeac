"""Advice by hand: how much each kind says is saved, and what is too little to be worth a word."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from test_analysis_findings import figures, grid, part_of, path

from meshemu.analysis import advice as advising
from meshemu.analysis.exposure import Exposure
from meshemu.analysis.hot_spots import Cut
from meshemu.analysis.roofline import ClassRoof
from meshemu.analysis.stragglers import DeviceLoad
from meshemu.collectives import closed_form_ps
from meshemu.hardware import System
from meshemu.mesh import Mesh, flatten
from meshemu.program.ir import CollectiveUse

MESH = flatten(grid())
SLOW = flatten(grid(slow_links=[[[0, 4], [1, 4], 4]]))
SLOW_LINK = int(SLOW.bandwidth_bytes_per_s.argmin())
TRAY = flatten(System.preset("dojo-tray"))
CROWD = Cut("east of column 2", 4, 101.0, 3.0)


def links_of(mesh: Mesh, name: str) -> list[int]:
    return np.flatnonzero(mesh.link_class == mesh.class_names.index(name)).tolist()


def test_a_link_is_slow_beside_others_of_its_class() -> None:
    (one,) = advising.slow_link(figures(mesh=SLOW, charged=[(SLOW_LINK, 400_000)]))
    assert one.saving_ps == 300_000, "at four times its bandwidth"
    assert advising.slow_link(figures(mesh=SLOW, charged=[(SLOW_LINK, 13_000)])) == [], "saves 0.975 % of the step"
    (edge, *_) = links_of(TRAY, "tile_edge")
    assert advising.slow_link(figures(mesh=TRAY, charged=[(edge, 400_000)])) == [], "as all that join tiles"


def use(size_bytes: int = 4096, *, algorithm: str = "ring", kind: str = "all_reduce", root: int = -1, **at: Any) -> Any:
    devices, shape = at.get("devices", range(20)), at.get("shape", (4, 5))
    return CollectiveUse(kind, algorithm, tuple(devices), shape, 20, size_bytes, "gradients", root)


def told(uses: Sequence[CollectiveUse], exposed_ps: Sequence[int], **changes: Any) -> list[advising.Advice]:
    """What is said of collectives that are exposed for so long, in a step of 1 us."""
    parts = [
        Exposure(one.kind, one.algorithm, one.label, number, 0, ps, ps, {"latency": ps}, 1, 1)
        for number, (one, ps) in enumerate(zip(uses, exposed_ps, strict=True))
    ]
    return advising.other_algorithm(figures(collectives=tuple(uses), parts=parts, **changes))


def free_ps(name: str, size_bytes: int, devices: Any = None, mesh: Mesh = MESH, **options: Any) -> int:
    """On a free mesh, with combinations that take no time."""
    at = np.arange(20).reshape(4, 5) if devices is None else np.asarray(devices)
    kind, itemsize = options.pop("kind", "all_reduce"), options.pop("itemsize", 4)
    return closed_form_ps(kind, name, mesh, at, size_bytes, itemsize, np.zeros_like, **options)


def test_collectives_save_what_formulas_say_but_no_more_than_is_exposed() -> None:
    sizes = (4096, 8192)
    best = min(("rows_columns", "tree"), key=lambda name: free_ps(name, 4096))
    gains = [free_ps("ring", size) - free_ps(best, size) for size in sizes]
    assert min(gains) > 10_000 and gains[0] != gains[1]
    (one,) = told([use(size) for size in sizes], [10**9, 10**9])
    assert one.saving_ps == sum(gains)
    assert one.text.startswith("2 collectives all_reduce (ring), first of all gradients (4.096 kB), are exposed")
    (one,) = told([use(4096)], [gains[0] - 7])
    assert one.saving_ps == gains[0] - 7
    assert len(told([use(4096)] * 2, [6000, 6000])) == 1, "a hundredth of the step together"
    assert told([use(4096)], [6000]) == []


def test_collectives_are_judged_where_they_are() -> None:
    """Bytes that are no whole numbers of fp32; a root in the middle; a group with a gap; one that is no rectangle."""
    (one,) = told([use(4095)], [10**9])
    assert one.saving_ps == free_ps("ring", 4095, itemsize=1) - min(
        free_ps(name, 4095, itemsize=1) for name in ("rows_columns", "tree")
    )
    (one,) = told([use(4096, kind="broadcast", root=7)], [10**9])
    options: dict[str, Any] = {"kind": "broadcast", "root": 7}
    assert one.saving_ps == free_ps("ring", 4096, **options) - min(
        free_ps(name, 4096, **options) for name in ("rows_columns", "tree")
    )
    gap = [[0, 1, 2, 3, 4], [5, 6, -1, 8, 9]]
    some = [device for row in gap for device in row if device >= 0]
    (one,) = told([use(64, devices=some, shape=(2, 5))], [10**9])
    assert one.saving_ps == free_ps("ring", 64, gap) - free_ps("tree", 64, gap) > 0
    assert told([use(64, devices=some, shape=(3, 4))], [10**9]) == []


def test_routers_reduce_nothing_in_the_network() -> None:
    mesh = flatten(grid(**{"mesh.multicast": True, "mesh.reduction": True}))
    (one,) = told([use()], [10**9], mesh=mesh)
    assert "; in_network would save" in one.text
    (one,) = told([use()], [10**9], mesh=mesh, router=True)
    assert "in_network" not in one.text


@pytest.mark.parametrize("adviser, part", [("combinations", "combine"), ("latency", "latency")])
def test_a_part_of_the_path_counts_from_a_quarter_of_the_step_on(adviser: str, part: str) -> None:
    for ps, n in ((240_000, 0), (250_000, 1)):
        assert len(getattr(advising, adviser)(figures(path_ps=path(**{part: ps}), parts=part_of(part)))) == n


def test_bandwidth_is_that_of_the_class_of_links_that_takes_most() -> None:
    """Dies take 300 ns over two links, tiles 250 ns over one; twice the bandwidth saves half."""
    (first, second, *_), (edge, *_) = links_of(TRAY, "die_edge"), links_of(TRAY, "tile_edge")
    charged = [(edge, 250_000), (second, 200_000), (first, 100_000)]
    for on_path, saving_ps in ((550_000, 150_000), (260_000, 130_000)):
        (one,) = advising.bandwidth(figures(mesh=TRAY, charged=charged, path_ps=path(serialisation=on_path)))
        assert "most of it on die_edge links" in one.text and one.saving_ps == saving_ps
    assert advising.bandwidth(figures(mesh=TRAY, charged=charged, path_ps=path(serialisation=240_000))) == []


def test_a_crowd_is_one_where_messages_wait_for_it() -> None:
    waiting = path(waiting=200_000)
    assert len(advising.crowded_line(figures(cuts=[CROWD], path_ps=waiting))) == 1
    assert advising.crowded_line(figures(cuts=[CROWD], path_ps=path(waiting=90_000))) == []
    assert advising.crowded_line(figures(cuts=[Cut("east of column 2", 4, 101.0, 1.4)], path_ps=waiting)) == []
    charged = [(SLOW_LINK, 400_000)]
    assert advising.crowded_line(figures(mesh=SLOW, charged=charged, cuts=[CROWD], path_ps=waiting)) == []


def test_spread_evenly_the_busiest_takes_the_mean() -> None:
    (one,) = advising.uneven_compute(figures(load=DeviceLoad(1.25, 400, 500, (3,), (), ())))
    assert one.saving_ps == 100
    assert advising.uneven_compute(figures(load=DeviceLoad(1.05, 400, 420, (), (), ()))) == []
    assert advising.uneven_compute(figures(load=DeviceLoad(0, 0, 0, (), (), (7, 8)))) == [], "none computes"


def test_one_class_is_below_its_roof_if_it_is_on_the_path() -> None:
    roofs = [ClassRoof(name, "fp32", 1, 1, 1, 1, 1.0, 1.0, 1.0, "load", 0.9) for name in ("add", "mul")]

    def said(kind: str, **exposed_ps: int) -> list[advising.Advice]:
        parts = [Exposure(kind, "", name, -1, 0, 9, ps, {"compute": ps}, 0, 0) for name, ps in exposed_ps.items()]
        return advising.below_the_roof(figures(roofs=roofs, parts=parts))

    assert [one.text.split()[0] for one in said("compute", add=300_000, mul=400_000)] == ["add"]
    assert [one.text.split()[0] for one in said("compute", add=90_000, mul=400_000)] == ["mul"]
    assert said("combine", add=300_000) == []


def test_a_slow_link_comes_first_then_what_saves_most() -> None:
    given = figures(
        mesh=SLOW, charged=[(SLOW_LINK, 400_000)], load=DeviceLoad(3.0, 300_000, 900_000, (3,), (), (7,)),
        path_ps=path(serialisation=400_000),
    )  # fmt: skip
    found = advising.advise(given)
    assert [one.key for one in found] == ["slow link", "imbalance", "bandwidth", "unused"]
    assert [one.saving_ps for one in found] == [300_000, 600_000, 200_000, None]
