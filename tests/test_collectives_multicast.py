"""Collectives whose messages fork and merge in the routers: formulas, reference case 8, choice, and refusal."""

import numpy as np
import pytest
from tree_engines import TREE_ENGINES, routed_mesh

from meshemu.collectives import KINDS, build, closed_form_ps, collective_program, select, verify_schedule
from meshemu.errors import InputError, ScheduleError
from meshemu.hardware import System
from meshemu.mesh import Mesh, flatten
from meshemu.program import OpKind, link_bytes

each_engine = pytest.mark.parametrize("engine", TREE_ENGINES.values(), ids=list(TREE_ENGINES))


def grid_of(mesh: Mesh) -> np.ndarray:
    return np.where(mesh.alive, np.arange(mesh.n_devices), -1).reshape(mesh.rows, mesh.cols)


def combine(size_bytes: np.ndarray) -> np.ndarray:
    return 1000 + 2 * np.asarray(size_bytes)


@each_engine
@pytest.mark.parametrize("packet_bytes", [4, 64])
@pytest.mark.parametrize(("n", "wavelets"), [(2, 1), (4, 1), (8, 300), (64, 16), (16, 256)])
def test_reference_case_8_chain_reduce(engine, packet_bytes, n, wavelets):
    """B + (2 T_R + 2)(P - 1) cycles: a link takes 1 cycle, and an addition the ramp down, 1 cycle and the ramp up."""
    cycle_ps, ramp = 1000, 2
    system = System.grid(rows=1, cols=n, bandwidth="4 GB/s", latency="1 ns")
    mesh = routed_mesh(system, f"{(2 * ramp + 1) * cycle_ps} ps")
    program = collective_program("reduce", "in_network", mesh, 4 * wavelets, 4, root=n - 1)
    once = (2 * ramp + 1) * cycle_ps
    duration = np.where(program.kind == OpKind.REDUCE, once, 0)
    expected = (wavelets + (2 * ramp + 2) * (n - 1)) * cycle_ps
    assert engine(program, mesh, duration, packet_bytes=packet_bytes).end_ps == expected
    formula = closed_form_ps(
        "reduce", "in_network", mesh, grid_of(mesh), 4 * wavelets, 4, lambda size: np.full_like(size, once), root=n - 1
    )
    assert formula == expected


@each_engine
@pytest.mark.parametrize("kind", ["broadcast", "reduce", "all_reduce"])
@pytest.mark.parametrize("n_chunks", [1, 3, 8])
@pytest.mark.parametrize("packet_bytes", [64, 10**6])
def test_formulas_with_chunks_equal_the_engine(engine, kind, n_chunks, packet_bytes):
    for system in (
        System.grid(rows=3, cols=4, bandwidth="50 GB/s", latency="500 ns"),
        System.preset("dojo-tray", devices="tile"),
        System.preset("dojo-tile").override({"dead": [[1, 1], [2, 3]]}),
    ):
        mesh = routed_mesh(system, "30 ns")
        size = 4 * 1501
        program = collective_program(kind, "in_network", mesh, size, 4, n_chunks=n_chunks)
        duration = np.where(program.kind == OpKind.REDUCE, combine(program.write_bytes), 0)
        found = engine(program, mesh, duration, packet_bytes=packet_bytes)
        formula = closed_form_ps(kind, "in_network", mesh, grid_of(mesh), size, 4, combine, n_chunks=n_chunks)
        assert found.end_ps == formula, system.name
        np.testing.assert_array_equal(found.links.bytes, link_bytes(program, mesh))


@each_engine
def test_with_and_without(engine):
    """Short: the way to the middle and back, without a combination at every hop. Long: chunks overlap."""
    mesh = routed_mesh(System.grid(rows=5, cols=5, bandwidth="50 GB/s", latency="500 ns"), "10 ns")

    def end(algorithm: str, size: int, n_chunks: int | None = None) -> int:
        program = collective_program("all_reduce", algorithm, mesh, size, 4, n_chunks=n_chunks)
        return engine(program, mesh, np.where(program.kind == OpKind.REDUCE, 700_000, 0)).end_ps

    assert end("in_network", 1024) < end("tree", 1024) < end("ring", 1024)
    assert end("in_network", 1024) == 2 * 4 * 500_000 + 2 * 1024 * 20 + 4 * 10_000 + 700_000
    long = 4 * 25 * 2500
    assert end("in_network", long, n_chunks=5) < end("in_network", long)
    assert end("in_network", long, n_chunks=5) < end("ring", long)


def test_bytes_on_links():
    mesh = routed_mesh(System.grid(rows=4, cols=5, bandwidth="50 GB/s", latency="500 ns"))
    for kind, times in (("broadcast", 1), ("reduce", 1), ("all_reduce", 2)):
        assert link_bytes(collective_program(kind, "in_network", mesh, 80), mesh).sum() == times * 19 * 80
    for kind in ("all_gather", "reduce_scatter"):
        assert link_bytes(collective_program(kind, "in_network", mesh, 80), mesh).sum() == 20 * 19 * 4


def test_dead_devices_take_no_part_and_are_passed():
    mesh = routed_mesh(System.preset("dojo-tile").override({"dead": [[1, 1], [2, 2]]}))
    for kind in KINDS:
        program = collective_program(kind, "in_network", mesh, 23 * 8, 4)
        assert len(program.collectives[0].devices) == 23
        assert (link_bytes(program, mesh) >= 0).all()


@pytest.mark.parametrize(
    ("kind", "flag", "key"),
    [
        ("broadcast", "mesh.reduction", "mesh.multicast"),
        ("all_gather", "mesh.reduction", "mesh.multicast"),
        ("reduce", "mesh.multicast", "mesh.reduction"),
        ("reduce_scatter", "mesh.multicast", "mesh.reduction"),
        ("all_reduce", "mesh.multicast", "mesh.reduction"),
        ("all_reduce", "mesh.reduction", "mesh.multicast"),
    ],
)
def test_routers_must_be_able(kind, flag, key):
    system = System.grid(rows=2, cols=2, bandwidth="50 GB/s", latency="500 ns")
    mesh = flatten(system.override({flag: True}))
    with pytest.raises(InputError, match=rf"{kind} by in_network needs routers that .*: {key} = false"):
        collective_program(kind, "in_network", mesh, 64)
    assert select(kind, mesh, grid_of(mesh), 64, 4, combine) != "in_network"
    able = flatten(system.override({flag: True, key: "yes"}))
    assert select(kind, able, grid_of(able), 4, 4, combine) == "in_network"
    assert collective_program(kind, "auto", able, 4, combine=combine).collectives[0].algorithm == "in_network"


def test_no_published_machine_is_taken_to_fork_or_merge():
    for name in ("dojo-die", "dojo-tile", "dojo-tray", "dojo-exapod"):
        mesh = flatten(System.preset(name))
        assert not mesh.multicast and not mesh.reduction and mesh.combine_ps > 0


def test_trees_of_a_schedule_must_be_sound():
    import dataclasses

    schedule = build("all_reduce", "in_network", 2, 2)
    assert schedule.tree is not None and schedule.tree.tolist() == [0, 0, 0, 1, 1, 1]

    def given(**columns: list[int]) -> None:
        verify_schedule(dataclasses.replace(schedule, **{name: np.array(at) for name, at in columns.items()}))

    with pytest.raises(ScheduleError, match="tree has 2 entries for 6 transfers"):
        given(tree=[0, 0])
    with pytest.raises(ScheduleError, match="do not stand side by side"):
        given(tree=[0, 1, 0, 2, 2, 2])
    with pytest.raises(ScheduleError, match="neither a multicast nor a reduction"):
        given(tree=[0, 0, 0, 0, 1, 1])
    with pytest.raises(ScheduleError, match="neither a multicast nor a reduction"):
        given(reduce=[True, False, True, False, False, False])
