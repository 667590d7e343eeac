"""verify() accepts what is sound and names what is not."""

import dataclasses
import itertools
import re

import numpy as np
import pytest
from tree_engines import routed_mesh

from meshemu.collectives import ALGORITHMS, KINDS, collective_program
from meshemu.errors import ScheduleError
from meshemu.hardware import System
from meshemu.program import CollectiveUse, OpKind, Program, ProgramBuilder, from_text, verify
from meshemu.program.order import levels

WORK = {"op_class": "mm", "number_format": "fp32", "flops": 1, "read_bytes": 1, "write_bytes": 1}


def small() -> Program:
    """Device 0 computes and sends to device 1, which computes on it."""
    builder = ProgramBuilder(2)
    (first,) = builder.compute(0, label="first", **WORK)
    _, send, recv = builder.messages(0, 1, 8, label="halo")
    builder.depend(send, first)
    builder.depend(builder.compute(1, label="second", **WORK), recv)
    return builder.build()


def ring(rows: int = 2, cols: int = 2, kind: str = "all_reduce", algorithm: str = "ring") -> Program:
    mesh = routed_mesh(System.grid(rows=rows, cols=cols, bandwidth="50 GB/s", latency="500 ns"))
    return collective_program(kind, algorithm, mesh, 64 * rows * cols)


def changed(program: Program, **at: tuple[int, int]) -> Program:
    columns = {}
    for name, (index, value) in at.items():
        columns[name] = getattr(program, name).copy()
        columns[name][index] = value
    return dataclasses.replace(program, **columns)


def without_dep(program: Program, op: int, on: int) -> Program:
    index = next(i for i in range(program.dep_ptr[op], program.dep_ptr[op + 1]) if program.dep[i] == on)
    ptr = program.dep_ptr.copy()
    ptr[op + 1 :] -= 1
    return dataclasses.replace(program, dep=np.delete(program.dep, index), dep_ptr=ptr)


def test_sound_programs_pass() -> None:
    verify(small())
    verify(ProgramBuilder(3).build())
    for kind in KINDS:
        for algorithm in ALGORITHMS:
            verify(ring(3, 3, kind, algorithm))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"device": (0, 2)}, "op 0: device = 2 must be in [0, 2)"),
        ({"kind": (0, len(OpKind))}, f"op 0: kind = {len(OpKind)}"),
        ({"flops": (0, -1)}, "op 0: flops = -1 must be at least 0"),
        ({"size_bytes": (0, 0)}, "message 0: size_bytes = 0 must be at least 1"),
        ({"dep": (0, 9)}, "dep 0: dep = 9"),
        ({"dst": (0, 0)}, "message 0 is to be received on device 0, not by op 2 (recv 'halo' on device 1, message 0)"),
        ({"recv_op": (0, 1)}, "message 0 is to be received on device 1, not by op 1 (send 'halo' on device 0"),
        ({"kind": (0, 1)}, "op 0 (send 'first' on device 0) belongs to no message"),
        ({"message": (0, 0)}, "op 0 (compute 'first' on device 0, message 0) is no op of a message"),
        ({"dep": (1, 0)}, "op 3 (compute 'second' on device 1) waits for op 0 (compute 'first' on device 0) of"),
        ({"dep_ptr": (4, 1)}, "Program.dep_ptr does not index 2 dependencies of 4 ops"),
    ],
)
def test_each_fault_is_named(change: dict[str, tuple[int, int]], text: str) -> None:
    with pytest.raises(ScheduleError, match=re.escape(text)):
        verify(changed(small(), **change))


def test_columns_of_different_length() -> None:
    with pytest.raises(ScheduleError, match=r"Program.flops has 3 entries instead of 4"):
        verify(dataclasses.replace(small(), flops=np.zeros(3, np.int64)))


def test_a_message_to_oneself() -> None:
    builder = ProgramBuilder(2)
    builder.messages(1, 1, 8, label="x")
    with pytest.raises(ScheduleError, match="message 0 goes from device 1 to itself"):
        verify(builder.build())


def test_a_cycle_over_a_message_is_shown() -> None:
    builder = ProgramBuilder(2)
    builder.compute(0, label="free", **WORK)
    _, send, recv = builder.messages([0, 1], [1, 0], 8, label="x")
    builder.depend(send, recv[::-1])
    with pytest.raises(ScheduleError) as caught:
        verify(builder.build())
    ops = [int(op) for op in re.findall(r"op (\d+)", str(caught.value))]
    assert sorted(ops[:-1]) == [1, 2, 3, 4] and ops[0] == ops[-1]
    assert all((a, b) in {(1, 3), (3, 2), (2, 4), (4, 1)} for a, b in itertools.pairwise(ops))


def test_a_reduce_must_wait_for_its_receive_and_come_once() -> None:
    program = ring()
    op = int(np.flatnonzero(program.kind == OpKind.REDUCE)[0])
    recv = int(program.recv_op[program.message[op]])
    with pytest.raises(ScheduleError, match=rf"op {op} .* does not wait for op {recv}"):
        verify(without_dep(program, op, recv))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_dependency_that_orders_a_buffer_matters(algorithm: str) -> None:
    """Take one dependency of a send away: the result can then be wrong, and verify says so."""
    program = ring(1, 3, "all_reduce", algorithm)
    waiting = np.repeat(np.arange(program.n_ops), np.diff(program.dep_ptr))
    needed = program.kind[waiting] == OpKind.SEND
    assert needed.any()
    for op, on in zip(waiting[needed].tolist(), program.dep[needed].tolist(), strict=True):
        with pytest.raises(ScheduleError, match="collective 0"):
            verify(without_dep(program, op, on))


def test_a_wrong_result_names_collective_device_and_op() -> None:
    program = ring(1, 3, "broadcast", "tree")
    use = program.collectives[0]
    lied = dataclasses.replace(program, collectives=(dataclasses.replace(use, kind="all_reduce", root=-1),))
    with pytest.raises(ScheduleError, match=r"collective 0 'broadcast tree': all_reduce: device 0 ends with"):
        verify(lied)
    other = dataclasses.replace(program, collectives=(dataclasses.replace(use, root=1),))
    with pytest.raises(ScheduleError, match="device 0 ends with the contribution of device 1 0 times instead of 1"):
        verify(other)


def test_collectives_must_fit_their_ops() -> None:
    program = ring()
    use = program.collectives[0]

    def with_use(**fields: object) -> Program:
        return dataclasses.replace(program, collectives=(dataclasses.replace(use, **fields),))

    with pytest.raises(ScheduleError, match="unknown kind 'sum'"):
        verify(with_use(kind="sum"))
    with pytest.raises(ScheduleError, match="devices are not 4 different ones"):
        verify(with_use(devices=(0, 1, 2, 2)))
    with pytest.raises(ScheduleError, match="root 1 and 4 chunks do not fit a all_reduce of 4 devices"):
        verify(with_use(root=1))
    with pytest.raises(ScheduleError, match="does not fit collective 0"):
        verify(with_use(n_chunks=3))
    with pytest.raises(ScheduleError, match="message 0: chunk_lo of its ops differs"):
        verify(changed(program, chunk_lo=(int(program.recv_op[0]), 3)))


def test_a_reduction_in_a_collective_needs_a_message() -> None:
    builder = ProgramBuilder(2)
    index = builder.collective(CollectiveUse("reduce", "ring", (0, 1), (1, 2), 1, 8, "r", 0))
    builder.reduce(0, label="r", **WORK, collective=index, chunk_hi=1)
    with pytest.raises(ScheduleError, match="is in a collective but has no message"):
        verify(builder.build())


def overwritten(waits: str) -> Program:
    """Reduce to device 1, while device 2 overwrites the buffer that device 0 has sent; `waits` orders it."""
    return from_text(
        f"""meshemu program 1
        devices 3
        collective 0 reduce hand grid 1 3 chunks 1 bytes 8 root 1 devices 0,1,2 label "r"
        0 device 0 send message 0 to 1 bytes 8 collective 0 chunks 0:1 label "r"
        1 device 2 send message 1 to 1 bytes 8 collective 0 chunks 0:1 label "r"
        2 device 2 send message 2 to 0 bytes 8 collective 0 chunks 0:1 label "r" after 1
        3 device 1 recv message 0 from 0 bytes 8 collective 0 chunks 0:1 label "r"
        4 device 1 recv message 1 from 2 bytes 8 collective 0 chunks 0:1 label "r"
        5 device 0 compute label "pause" after 0
        6 device 0 recv message 2 from 2 bytes 8 collective 0 chunks 0:1 label "r" {waits}
        7 device 1 reduce message 0 collective 0 chunks 0:1 label "r" after 3
        8 device 1 reduce message 1 collective 0 chunks 0:1 label "r" after 4,7
        """
    )


def test_a_write_after_a_read_must_be_ordered() -> None:
    verify(overwritten("after 0"))
    verify(overwritten("after 5"))
    with pytest.raises(ScheduleError, match=r"op 0 \(send .* and op 6 \(recv .* but nothing orders them"):
        verify(overwritten(""))


def test_two_reductions_into_one_chunk_must_be_ordered() -> None:
    with pytest.raises(ScheduleError, match=r"op 7 \(reduce .* and op 8 \(reduce .* but nothing orders them"):
        verify(without_dep(overwritten("after 0"), 8, 7))


def test_levels_are_longest_chains() -> None:
    before, after = np.array([0, 1, 2, 0, 4, 3]), np.array([1, 2, 3, 3, 5, 6])
    assert levels(before, after, 8, str).tolist() == [0, 1, 2, 3, 0, 1, 4, 0]
    assert levels(np.array([5, 5]), np.array([2, 2]), 6, str).tolist() == [0, 0, 1, 0, 0, 0], "an edge may come twice"
