"""ProgramBuilder: ids, broadcasting, tables, dependencies; and the loads of a Program."""

import numpy as np
import pytest

from meshemu.errors import ScheduleError
from meshemu.hardware import System
from meshemu.mesh import flatten
from meshemu.program import OpKind, ProgramBuilder, link_bytes, lower_bound_ps

WORK = {"op_class": "mm", "number_format": "fp32", "read_bytes": 1, "write_bytes": 2}


def test_ids_follow_the_calls_and_work_broadcasts() -> None:
    builder = ProgramBuilder(4)
    assert builder.compute([2, 3], label="a", flops=[5, 6], **WORK).tolist() == [0, 1]
    message, send, recv = builder.messages([0, 1], [1, 0], [10, 20], label="b", chunk_lo=1, chunk_hi=[2, 3])
    assert (message.tolist(), send.tolist(), recv.tolist()) == ([0, 1], [2, 3], [4, 5])
    assert builder.reduce(1, label="a", flops=7, message=0, **WORK).tolist() == [6] and builder.n_ops == 7
    program = builder.build()
    assert program.kind.tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert program.device.tolist() == [2, 3, 0, 1, 1, 0, 1]
    assert program.flops.tolist() == [5, 6, 0, 0, 0, 0, 7]
    assert program.write_bytes.tolist() == [2, 2, 0, 0, 0, 0, 2]
    assert program.message.tolist() == [-1, -1, 0, 1, 0, 1, 0]
    assert program.chunk_hi.tolist() == [0, 0, 2, 3, 2, 3, 0]
    assert [program.labels[i] for i in program.label] == ["a", "a", "b", "b", "b", "b", "a"]
    assert program.op_classes == ("mm", "") and program.number_formats == ("fp32", "")
    assert program.size_bytes.tolist() == [10, 20] and program.recv_op.tolist() == [4, 5]
    assert program.kind.dtype == np.int8 and program.send_op.dtype == np.int64


def test_dependencies_are_sorted_merged_and_broadcast() -> None:
    builder = ProgramBuilder(1)
    ops = builder.compute([0] * 5, label="a", flops=1, **WORK)
    builder.depend(ops[4], ops[[2, 0, 2]])
    builder.depend(ops[[1, 2]], ops[0])
    builder.depend(ops[4], ops[2])
    builder.depend(ops[3], -1)
    program = builder.build()
    assert program.dep_ptr.tolist() == [0, 0, 1, 2, 2, 4] and program.dep.tolist() == [0, 0, 0, 2]
    builder.depend(ops[3], 17)
    with pytest.raises(ScheduleError, match="op 3 waits for op 17, but there are 5 ops"):
        builder.build()


def test_empty_calls_leave_no_trace_and_build_can_be_repeated() -> None:
    builder = ProgramBuilder(1)
    assert builder.compute([], label="never", flops=1, **WORK).size == 0
    assert builder.messages([], [], 8, label="never")[0].size == 0
    program = builder.build()
    assert (program.n_ops, program.n_messages, program.labels) == (0, 0, ())
    builder.compute(0, label="a", flops=1, **WORK)
    assert builder.build().n_ops == 1 and program.n_ops == 0


def test_many_small_calls_grow() -> None:
    builder = ProgramBuilder(10)
    for step in range(300):
        builder.depend(builder.compute(range(10), label=f"step {step % 7}", flops=step, **WORK), step * 10 - 1)
    program = builder.build()
    assert program.n_ops == 3000 and len(program.labels) == 7 and len(program.dep) == 2990
    assert (program.flops == np.repeat(np.arange(300), 10)).all()
    assert (program.kind == OpKind.COMPUTE).all()


def test_link_bytes_and_lower_bound() -> None:
    mesh = flatten(System.grid(rows=1, cols=4, bandwidth="50 GB/s", latency="500 ns"))
    builder = ProgramBuilder(4)
    assert lower_bound_ps(builder.build(), mesh) == 0 and link_bytes(builder.build(), mesh).sum() == 0
    builder.messages([0, 1, 3], [3, 3, 2], [1000, 500, 70], label="x")
    program = builder.build()
    ends = {(int(s), int(d)): int(b) for s, d, b in zip(mesh.link_src, mesh.link_dst, link_bytes(program, mesh),
                                                          strict=True)}  # fmt: skip
    assert ends == {(0, 1): 1000, (1, 2): 1500, (2, 3): 1500, (3, 2): 70, (2, 1): 0, (1, 0): 0}
    assert lower_bound_ps(program, mesh) == 3 * 500_000 + 1000 * 20, "three hops beat 1500 bytes on one link"
    builder.messages(1, 2, 10**6, label="y")
    assert lower_bound_ps(builder.build(), mesh) == 500_000 + (10**6 + 1500) * 20
