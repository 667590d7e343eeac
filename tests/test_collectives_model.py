"""The closed forms equal the timing engine where they say so; selection and bounds agree with them."""

import numpy as np
import pytest
from tree_engines import TREE_ENGINES, routed_mesh

from meshemu.collectives import (
    ALGORITHMS,
    KINDS,
    closed_form_ps,
    collective_lower_bound_ps,
    collective_program,
    select,
)
from meshemu.collectives.group import group
from meshemu.collectives.select import n_transfers
from meshemu.errors import InputError
from meshemu.hardware import System
from meshemu.mesh import Mesh, flatten
from meshemu.network.timing import time_program
from meshemu.program import OpKind, link_bytes, lower_bound_ps

L_PS, PS_PER_BYTE = 500_000, 20


def plain(rows: int, cols: int) -> Mesh:
    return flatten(System.grid(rows=rows, cols=cols, bandwidth="50 GB/s", latency="500 ns"))


def forking(rows: int, cols: int) -> Mesh:
    """The same with routers that fork and merge."""
    return routed_mesh(System.grid(rows=rows, cols=cols, bandwidth="50 GB/s", latency="500 ns"), "30 ns")


def grid_of(mesh: Mesh) -> np.ndarray:
    return np.where(mesh.alive, np.arange(mesh.n_devices), -1).reshape(mesh.rows, mesh.cols)


def combine(size_bytes: np.ndarray) -> np.ndarray:
    return 1000 + 2 * np.asarray(size_bytes)


def engine_and_formula(mesh: Mesh, kind: str, algorithm: str, size: int, free: bool) -> tuple[int, int]:
    program = collective_program(kind, algorithm, mesh, size, 4)
    cost = np.zeros_like if free else combine
    duration = np.where(program.kind == OpKind.REDUCE, cost(program.write_bytes), 0)
    engines = list(TREE_ENGINES.values()) if algorithm == "in_network" else [time_program]
    (timed,) = {engine(program, mesh, duration, packet_bytes=2**30).end_ps for engine in engines}
    assert timed >= lower_bound_ps(program, mesh)
    assert timed >= collective_lower_bound_ps(kind, mesh, grid_of(mesh), size)
    return timed, closed_form_ps(kind, algorithm, mesh, grid_of(mesh), size, 4, cost)


def test_reference_case_3() -> None:
    mesh = plain(8, 8)
    assert engine_and_formula(mesh, "all_reduce", "ring", 2**20, True) == (104_287_680, 104_287_680)


@pytest.mark.parametrize(("rows", "cols"), [(2, 2), (4, 3), (3, 3), (5, 3), (2, 5)])
def test_ring_formula(rows: int, cols: int) -> None:
    n, chunk = rows * cols, 4000
    long_edge = 2 * L_PS * (n % 2)
    for kind, edges, combinations in (("all_reduce", 2, 1), ("reduce_scatter", 1, 1), ("all_gather", 1, 0)):
        expected = edges * (n - 1) * (L_PS + chunk * PS_PER_BYTE) + combinations * (n - 1) * int(combine(chunk))
        expected += long_edge * edges // 2
        assert engine_and_formula(plain(rows, cols), kind, "ring", n * chunk, False) == (expected, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (1, 2), (1, 5), (4, 1), (3, 4), (5, 5)])
def test_closed_forms_equal_the_engine(kind: str, algorithm: str, rows: int, cols: int) -> None:
    mesh = forking(rows, cols)
    for size in (4 * 3, 4 * (rows * cols * 100 + 7), 4 * rows * cols * 20_000):
        timed, formula = engine_and_formula(mesh, kind, algorithm, size, False)
        if algorithm == "tree" and kind in ("reduce_scatter", "all_gather"):
            assert 0.7 * timed <= formula <= 1.5 * timed
        elif algorithm == "in_network" and kind in ("reduce_scatter", "all_gather"):
            assert 0.85 * timed <= formula <= 1.05 * timed
        elif algorithm == "rows_columns" and kind == "reduce":
            assert 0.99 * formula <= timed <= 1.15 * formula, "a device may combine the pieces of two chunks in turn"
        else:
            assert formula == timed, size


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_closed_forms_over_unequal_links(algorithm: str) -> None:
    mesh = routed_mesh(System.preset("dojo-tray"))
    assert len(set(mesh.bandwidth_bytes_per_s.tolist())) > 1
    for kind in ("all_reduce", "broadcast", "reduce"):
        timed, formula = engine_and_formula(mesh, kind, algorithm, 4 * mesh.n_devices * 10_000, True)
        assert formula == timed, kind


def test_the_ring_loads_every_link_once_per_phase() -> None:
    for rows, cols in ((4, 4), (3, 5), (1, 6)):
        mesh, n = plain(rows, cols), rows * cols
        carried = link_bytes(collective_program("all_reduce", "ring", mesh, n * 8), mesh)
        assert set(carried.tolist()) <= {0, 2 * (n - 1) * 8}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("forks", [False, True])
def test_auto_is_the_fastest_on_the_engine(kind: str, forks: bool) -> None:
    mesh = forking(4, 4) if forks else plain(4, 4)
    for size in (64, 4 * 16 * 1000, 4 * 16 * 200_000):
        able = [name for name in ALGORITHMS if forks or name != "in_network"]
        times = {name: engine_and_formula(mesh, kind, name, size, True)[0] for name in able}
        chosen = select(kind, mesh, grid_of(mesh), size, 4, np.zeros_like)
        assert times[chosen] <= 1.1 * min(times.values()), times
        assert collective_program(kind, "auto", mesh, size, 4).collectives[0].algorithm == chosen


def test_selection_depends_on_size_and_leaves_out_what_cannot_be_built() -> None:
    mesh = plain(6, 6)
    pick = [select("all_reduce", mesh, grid_of(mesh), size, 4, np.zeros_like) for size in (4, 4 * 36 * 10**5)]
    assert pick == ["tree", "rows_columns"]
    holes = grid_of(mesh)
    holes[2, 2] = -1
    assert select("all_reduce", mesh, holes, 4 * 36 * 10**5, 4, np.zeros_like) == "ring"
    apart = np.array([[0, -1, 2]])
    assert select("all_reduce", plain(1, 3), apart, 4, 4, np.zeros_like) == "ring"
    big = plain(60, 50)
    assert n_transfers("all_reduce", "ring", group(60, 50)) == 17_994_000
    assert select("all_reduce", big, grid_of(big), 4 * 3000 * 10**4, 4, np.zeros_like) == "rows_columns"


def test_transfer_counts_are_those_of_the_schedules() -> None:
    from meshemu.collectives import build

    for kind in KINDS:
        for algorithm in ALGORITHMS:
            for rows, cols in ((1, 1), (1, 4), (3, 4)):
                built = build(kind, algorithm, rows, cols)
                assert n_transfers(kind, algorithm, group(rows, cols)) == len(built.src), (kind, algorithm)


def test_bad_sizes() -> None:
    mesh = plain(2, 2)
    with pytest.raises(InputError, match="size_bytes = 6 is not a multiple of itemsize = 4"):
        closed_form_ps("all_reduce", "ring", mesh, grid_of(mesh), 6, 4, np.zeros_like)
    with pytest.raises(InputError, match="size_bytes = 6 must be a positive multiple of itemsize = 4"):
        collective_program("all_reduce", "ring", mesh, 6, 4)
    with pytest.raises(InputError, match="itemsize = 3 bytes needs a number_format"):
        collective_program("all_reduce", "ring", mesh, 6, 3)
    with pytest.raises(InputError, match="rows x cols, not an array of shape"):
        select("all_reduce", mesh, [0, 1], 4, 4, np.zeros_like)
