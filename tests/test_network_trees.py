"""How packets fork and merge: docs/timing-model.md, held to formulas; every engine that times trees."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_network_engine import check_same
from tree_engines import TREE_ENGINES, routed_mesh

from meshemu.errors import InputError, ScheduleError
from meshemu.hardware import System
from meshemu.mesh import Mesh, flatten, rate, trees_ps
from meshemu.network import Timing, contention_free, time_program
from meshemu.network.oracle import reference_program
from meshemu.program import OpKind, Program, ProgramBuilder, link_bytes, message_trees, routed_trees, verify
from meshemu.runtime.local import run_ranks

FEW = settings(max_examples=25, deadline=None, derandomize=True)
WORK = {"op_class": "c", "number_format": "fp32", "flops": 1, "read_bytes": 1, "write_bytes": 1}
EAST, WEST = 1, 3

each_engine = pytest.mark.parametrize("engine", TREE_ENGINES.values(), ids=list(TREE_ENGINES))


def line(n: int, combine: str = "0 ps") -> Mesh:
    """1000 ps a link, 10 ps a byte."""
    return routed_mesh(System.grid(rows=1, cols=n, bandwidth="100 GB/s", latency="1 ns"), combine)


def uneven(rows: int, cols: int, seed: int) -> Mesh:
    mesh = routed_mesh(System.grid(rows=rows, cols=cols, bandwidth="50 GB/s", latency="500 ns"), "13 ps")
    rng = np.random.default_rng(seed)
    mesh.bandwidth_bytes_per_s[:] = rng.choice([10**10, 3 * 10**11, 7 * 10**11, 10**12, 9 * 10**12], mesh.n_links)
    mesh.latency_ps[:] = rng.choice([1, 7, 300, 5000], mesh.n_links)
    return mesh


def no_time(program: Program) -> np.ndarray:
    return np.zeros(program.n_ops, np.int64)


@each_engine
@pytest.mark.parametrize("packet_bytes", [1, 64, 4096])
def test_a_multicast_arrives_everywhere_as_a_message_of_its_own(engine, packet_bytes):
    builder = ProgramBuilder(4)
    builder.messages(1, [0, 2, 3], 100, label="m", tree=[0, 0, 0])
    program, mesh = builder.build(), line(4)
    found = engine(program, mesh, no_time(program), packet_bytes=packet_bytes)
    assert found.arrival_ps.tolist() == [2000, 2000, 3000]
    assert found.depart_ps.tolist() == [0, 0, 0]
    assert found.ops.end_ps.tolist() == [1000, 2000, 2000, 3000], "SEND: its tail is on both first links"
    used = mesh.out_link[[1, 1, 2], [EAST, WEST, EAST]]
    assert found.links.bytes[used].tolist() == [100] * 3 and found.links.bytes.sum() == 300, "each link once"


@each_engine
def test_copies_wait_each_for_its_own_link(engine):
    builder = ProgramBuilder(4)
    builder.messages(2, 3, 1000, label="in the way")
    builder.messages(1, [0, 2, 3], 100, label="m", tree=[0, 0, 0])
    program = builder.build()
    found = engine(program, line(4), no_time(program))
    # The link 2 -> 3 is busy until 10,000; the copies to 0 and to 2 do not mind.
    assert found.arrival_ps.tolist() == [11_000, 2000, 2000, 12_000]
    assert found.links.wait_ps.sum() == 9000


@each_engine
@pytest.mark.parametrize("packet_bytes", [1, 64, 4096])
def test_a_sum_leaves_when_its_last_part_is_there(engine, packet_bytes):
    builder = ProgramBuilder(4)
    late = builder.compute(2, label="late", **WORK)
    message, send, recv = builder.messages([0, 1, 2], 3, 100, label="r", tree=[0, 0, 0])
    builder.depend(send[2], late)
    add = builder.reduce(3, label="r", message=message[:1], **WORK)
    builder.depend(add, recv[:1])
    program = builder.build()
    verify(program)
    mesh = line(4, "70 ps")
    duration = no_time(program)
    duration[add] = 5
    early = engine(program, mesh, duration, packet_bytes=packet_bytes)
    assert early.arrival_ps.tolist() == [3000 + 2 * 70 + 1000] * 3
    assert early.depart_ps.tolist() == [0, 1070, 2140], "with the sum, not before"
    assert early.ops.end_ps[send].tolist() == [1000, 2070, 3140]
    assert early.ops.end_ps[add].tolist() == [4145]
    duration[late] = 50_000
    waiting = engine(program, mesh, duration, packet_bytes=packet_bytes)
    assert waiting.arrival_ps.tolist() == [50_000 + 70 + 1000 + 1000] * 3
    assert waiting.depart_ps.tolist() == [0, 1070, 50_070]
    if packet_bytes > 100:
        assert waiting.links.wait_ps.sum() == 0, "waiting for a part is not waiting for a link"
    else:  # but packets whose parts come all at once wait for one another
        assert waiting.links.wait_ps.sum() == sum(range(0, 100, packet_bytes)) * 10


@each_engine
def test_branches_merge_at_the_root(engine):
    builder = ProgramBuilder(9)
    builder.messages([1, 3, 5, 7], 4, 100, label="r", tree=[0] * 4)
    builder.messages(0, [1, 3], 100, label="m", tree=[0] * 2)
    program = builder.build()
    mesh = routed_mesh(System.grid(rows=3, cols=3, bandwidth="100 GB/s", latency="1 ns"), "9 ps")
    found = engine(program, mesh, no_time(program))
    assert found.arrival_ps.tolist() == [2009] * 4 + [2000] * 2
    assert found.links.packets.sum() == 6


@each_engine
@pytest.mark.parametrize("first", ["multicast", "message"])
def test_ties_go_to_the_lower_id_and_a_tree_has_that_of_its_first_message(engine, first):
    builder = ProgramBuilder(4)
    ids = {}
    for what in (first, "message" if first == "multicast" else "multicast"):
        if what == "multicast":
            ids[what] = builder.messages(1, [2, 3], 100, label="m", tree=[0, 0])[0]
        else:
            ids[what] = builder.messages(1, 3, 100, label="u")[0]
    program = builder.build()
    found = engine(program, line(4), no_time(program))
    second = "message" if first == "multicast" else "multicast"
    assert found.depart_ps[ids[first]].max() == 0
    assert found.depart_ps[ids[second]].min() == 1000


@each_engine
@FEW
@given(
    seed=st.integers(0, 10**6), outward=st.booleans(), size=st.integers(1, 700),
    packet_bytes=st.sampled_from([1, 7, 64, 10**6]),
)
def test_a_lone_tree_takes_the_time_of_its_slowest_way(engine, seed, outward, size, packet_bytes):
    rng = np.random.default_rng(seed)
    rows, cols = (int(n) for n in rng.integers(2, 5, 2))
    mesh = uneven(rows, cols, seed)
    root, *others = rng.choice(rows * cols, int(rng.integers(3, rows * cols + 1)), replace=False).tolist()
    builder = ProgramBuilder(rows * cols)
    ends = (root, others) if outward else (others, root)
    builder.messages(*ends, size, label="t", tree=np.zeros(len(others), np.int64))
    program = builder.build()
    found = engine(program, mesh, no_time(program), packet_bytes=packet_bytes)
    ways = trees_ps(mesh, routed_trees(program, mesh, message_trees(program)), [size])
    expected = ways if outward else np.full(len(others), ways.max())
    np.testing.assert_array_equal(found.arrival_ps, expected)
    ideal = contention_free(program, mesh, no_time(program))
    np.testing.assert_array_equal(ideal.end_ps[program.recv_op], found.ops.end_ps[program.recv_op])


def random_program(n_devices: int, seed: int, members: np.ndarray | None = None) -> Program:
    """Rounds of messages, multicasts and reductions, each waiting for some earlier ops of its devices.

    members: the devices that take part, all unless given.
    """
    rng = np.random.default_rng(seed)
    builder = ProgramBuilder(n_devices)
    members = np.arange(n_devices) if members is None else members
    last = np.full(n_devices, -1)
    for _ in range(8):
        root, *others = rng.permutation(members)[: int(rng.integers(2, len(members) + 1))].tolist()
        size = int(rng.choice([1, 63, 64, 500]))
        match rng.integers(3):
            case 0:
                message, send, recv = builder.messages(root, others[0], size, label="u")
            case 1:
                message, send, recv = builder.messages(root, others, size, label="m", tree=np.zeros(len(others), int))
            case _:
                message, send, recv = builder.messages(others, root, size, label="r", tree=np.zeros(len(others), int))
        for op in np.unique(np.concatenate([send, recv])):
            device = int(builder.build().device[op])
            if rng.random() < 0.6:
                builder.depend(op, last[device])
            last[device] = op
        device = int(builder.build().device[recv[0]])
        add = builder.reduce(device, label="add", message=message[:1], **WORK)
        builder.depend(add, recv[:1])
        last[device] = add[0]
    return builder.build()


def check(program: Program, mesh: Mesh, duration: np.ndarray, found: Timing) -> None:
    """Conservation, causality and capacity."""
    np.testing.assert_array_equal(found.links.bytes, link_bytes(program, mesh))
    num, den = np.array([rate(int(b)) for b in mesh.bandwidth_bytes_per_s]).T
    assert (found.links.busy_ps * den >= found.links.bytes * num).all()
    assert (found.links.busy_ps <= found.end_ps).all()
    start, end = found.ops.start_ps, found.ops.end_ps
    waiting = np.repeat(np.arange(program.n_ops), np.diff(program.dep_ptr))
    assert (end[waiting] >= end[program.dep]).all()
    computing = (program.kind == OpKind.REDUCE) | (program.kind == OpKind.COMPUTE)
    assert (start[waiting] >= end[program.dep])[computing[waiting]].all()
    np.testing.assert_array_equal((end - start)[computing], duration[computing])
    assert (found.depart_ps >= start[program.send_op]).all()
    assert (found.arrival_ps > found.depart_ps).all()
    assert (end[program.recv_op] >= found.arrival_ps).all()
    ideal = contention_free(program, mesh, duration)
    assert (ideal.end_ps <= end).all()


@FEW
@given(seed=st.integers(0, 10**6), packet_bytes=st.sampled_from([16, 64, 1000]))
def test_random_programs(seed, packet_bytes):
    rng = np.random.default_rng(seed)
    rows, cols = (int(n) for n in rng.integers(2, 5, 2))
    mesh, program = uneven(rows, cols, seed), random_program(rows * cols, seed)
    verify(program)
    duration = rng.choice([0, 1, 10, 2000], program.n_ops)
    expected = TREE_ENGINES["reference"](program, mesh, duration, packet_bytes=packet_bytes, timeline_bins=5)
    check(program, mesh, duration, expected)
    for name, engine in TREE_ENGINES.items():
        check_same(engine(program, mesh, duration, packet_bytes=packet_bytes, timeline_bins=5), expected, name)


def die(seed: int) -> Mesh:
    """Nodes with injection and ejection links, six of them dead."""
    return routed_mesh(System.preset("dojo-die"), "500 ps")


def around_a_dead_device(seed: int) -> Mesh:
    system = System.grid(rows=4, cols=4, bandwidth="50 GB/s", latency="3 ns").override({"dead": [[1, 1 + seed % 2]]})
    return routed_mesh(system, "70 ps")


def without_latency(seed: int) -> Mesh:
    return routed_mesh(System.grid(rows=3, cols=4, bandwidth="9 TB/s", latency="0 ns"), f"{seed % 2} ps")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "make", [lambda seed: uneven(4, 3, seed), around_a_dead_device, die, without_latency],
    ids=["uneven", "dead", "die", "no latency"],
)
def test_trees_do_not_depend_on_ranks(make, seed):
    """Forks and merges at devices of other ranks; other messages come between, in trains."""
    mesh = make(seed)
    down, right = np.abs(mesh.row - mesh.rows // 2), np.abs(mesh.col - mesh.cols // 2)
    near = np.flatnonzero(mesh.alive & (np.maximum(down, right) < 3))
    program = random_program(mesh.n_devices, seed, near)
    duration = np.random.default_rng(seed).choice([0, 1, 10, 2000], program.n_ops)
    options = {"packet_bytes": [16, 64, 1000][seed], "order": ["xy", "yx"][seed % 2], "timeline_bins": 5}
    expected = reference_program(program, mesh, duration, **options)
    for n_ranks in range(1, 5):
        for found in run_ranks(
            n_ranks, lambda comm: time_program(program, mesh, duration, **options, comm=comm)
        ):
            check_same(found, expected, f"{n_ranks} ranks")


def test_a_tree_comes_between_the_packets_of_a_train():
    """Long messages go as trains; what forks and merges on their links cuts them."""
    builder = ProgramBuilder(8)
    late = builder.compute(4, label="late", **WORK)
    builder.messages([0, 7], [7, 0], [40_000, 39_999], label="long")
    _, send, _ = builder.messages(4, [1, 2, 6, 7], 300, label="m", tree=[0] * 4)
    _, merging, _ = builder.messages([1, 4, 6], 3, 300, label="r", tree=[0] * 3)
    builder.depend(send, late)
    builder.depend(merging[1], late)
    program = builder.build()
    duration = no_time(program)
    mesh = line(8, "70 ps")
    for duration[late] in (0, 3333, 150_000):
        found = time_program(program, mesh, duration, packet_bytes=64, timeline_bins=5)
        check_same(found, reference_program(program, mesh, duration, packet_bytes=64, timeline_bins=5))
        assert found.counters.events < found.counters.packet_hops / 2


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"size_bytes": [8, 8, 9]}, "messages 1 and 2, which share an op with a neighbour, differ in size"),
        ({"dst": [1, 2, 2]}, "message 2: op 3 is not its RECV on device 2"),
        ({"send_op": [0, 0, 1]}, "message 2: op 1 is not its SEND on device 0"),
    ],
)
def test_what_is_no_tree_is_refused(change, error):
    builder = ProgramBuilder(4)
    builder.messages(0, [1, 2, 3], 8, label="m", tree=[0, 0, 0])
    program = builder.build()
    changed = {name: np.array(values, getattr(program, name).dtype) for name, values in change.items()}
    with pytest.raises(ScheduleError, match=error):
        time_program(replace(program, **changed), line(4), no_time(program))


def test_routers_that_cannot_are_refused():
    builder = ProgramBuilder(4)
    builder.messages(0, [1, 2, 3], 8, label="m", tree=[0, 0, 0])
    program = builder.build()
    mesh = flatten(System.grid(rows=1, cols=4, bandwidth="100 GB/s", latency="1 ns"))
    with pytest.raises(InputError, match=r"message 0 \('m'\) is a multicast.*mesh.multicast = false"):
        time_program(program, mesh, no_time(program))
