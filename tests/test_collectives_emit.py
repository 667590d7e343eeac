"""Schedules as ops: numbers come out right in any order that the dependencies allow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshemu.collectives import ALGORITHMS, KINDS, Schedule, build, emit, verify_schedule
from meshemu.errors import ScheduleError
from meshemu.mesh import split_bounds
from meshemu.program import OpKind, Program, ProgramBuilder, verify

ITEMSIZE = 4


def program_of(
    kind: str, algorithm: str, rows: int, cols: int, n_elements: int,
    n_chunks: int | None = None, root: int | None = None,
) -> Program:
    """A collective between a producer and a consumer on every device; device ids are participants in reverse."""
    schedule = build(kind, algorithm, rows, cols, n_chunks=n_chunks, root=root)
    devices = np.arange(rows * cols)[::-1].copy()
    builder = ProgramBuilder(rows * cols)
    work = {"op_class": "mm", "number_format": "fp32", "flops": 1, "read_bytes": 1, "write_bytes": 1}
    produced = builder.compute(devices, label="produce", **work)
    who, op = emit(
        builder, schedule, devices, n_elements=n_elements, itemsize=ITEMSIZE, label="g", number_format="fp32",
        after=produced,
    )
    builder.depend(builder.compute(devices, label="consume", **work)[who], op)
    return builder.build()


def any_order(program: Program, rng: np.random.Generator) -> list[int]:
    """A random topological order."""
    needs = [set(program.dep[a:b].tolist()) for a, b in zip(program.dep_ptr, program.dep_ptr[1:], strict=False)]
    for send, recv in zip(program.send_op.tolist(), program.recv_op.tolist(), strict=True):
        needs[recv].add(send)  # a reduction's RECV needs all its SENDs
    bias, order, done = rng.random(program.n_ops), [], set()
    while len(order) < program.n_ops:
        ready = [op for op in range(program.n_ops) if op not in done and needs[op] <= done]
        op = min(ready, key=lambda op: bias[op])
        order.append(op)
        done.add(op)
    return order


def executed(program: Program, order: list[int], n_elements: int) -> np.ndarray:
    """Buffers at each CONSUME op, after running the ops on integers: participant i starts with 10**i everywhere."""
    (use,) = program.collectives
    bounds = split_bounds(n_elements, use.n_chunks)
    n = len(use.devices)
    participant = {device: i for i, device in enumerate(use.devices)}
    buffer = np.array([[10**i] * n_elements for i in range(n)], object)
    if use.kind in ("all_gather", "broadcast"):
        for i in range(n):
            mine = slice(bounds[i], bounds[i + 1]) if i < use.n_chunks else slice(0, 0)
            kept = buffer[i, mine].copy() if use.kind == "all_gather" else None
            if use.kind == "all_gather" or i != use.root:
                buffer[i] = -1
            if kept is not None:
                buffer[i, mine] = kept
    in_flight: dict[int, np.ndarray] = {}
    seen = np.empty_like(buffer)
    reduced = set(program.message[program.kind == OpKind.REDUCE].tolist())
    for op in order:
        i, message = participant[int(program.device[op])], int(program.message[op])
        part = slice(bounds[program.chunk_lo[op]], bounds[program.chunk_hi[op]])
        match OpKind(program.kind[op]):
            case OpKind.SEND:
                for sent in np.flatnonzero(program.send_op == op).tolist():
                    in_flight[sent] = buffer[i, part].copy()
                    assert buffer[i, part].size * ITEMSIZE == program.size_bytes[sent]
            case OpKind.REDUCE:
                for merged in np.flatnonzero(program.recv_op == program.recv_op[message]).tolist():
                    buffer[i, part] += in_flight[merged]
            case OpKind.RECV if message not in reduced:
                buffer[i, part] = in_flight[message]
            case OpKind.COMPUTE if program.labels[program.label[op]] == "consume":
                seen[i] = buffer[i]
    return seen


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_numbers_in_any_order(data: st.DataObject) -> None:
    kind, algorithm = data.draw(st.sampled_from(KINDS)), data.draw(st.sampled_from(list(ALGORITHMS)))
    rows, cols = data.draw(st.sampled_from([(1, 2), (1, 4), (2, 2), (3, 1), (2, 3), (3, 3)]))
    n, n_elements = rows * cols, data.draw(st.integers(1, 20))
    free = kind in ("broadcast", "reduce") or (kind == "all_reduce" and algorithm in ("tree", "in_network"))
    n_chunks = data.draw(st.integers(1, 4)) if free else None
    root = data.draw(st.integers(0, n - 1)) if kind in ("broadcast", "reduce") else None
    program = program_of(kind, algorithm, rows, cols, n_elements, n_chunks, root)
    verify(program)
    seen = executed(program, any_order(program, np.random.default_rng(data.draw(st.integers(0, 99)))), n_elements)
    total = (10**n - 1) // 9
    bounds = split_bounds(n_elements, n)
    for i in range(n):
        owner = np.repeat(np.arange(n), np.diff(bounds))
        match kind:
            case "all_reduce":
                assert (seen[i] == total).all()
            case "reduce_scatter":
                assert (seen[i][owner == i] == total).all()
            case "all_gather":
                assert seen[i].tolist() == [10 ** int(o) for o in owner]
            case "broadcast":
                assert (seen[i] == 10**root).all()
            case "reduce":
                assert i != root or (seen[i] == total).all()


def test_a_write_waits_for_all_sends_that_read_the_chunk() -> None:
    """Device 0 sends to 1, 2 and 3 at once, and in the same phase 4 overwrites what it sends."""
    i32 = lambda *values: np.array(values, np.int32)  # noqa: E731
    schedule = Schedule(
        "broadcast", "hand", (1, 5), i32(0, 1, 2, 3, 4), 0, 1, phase=i32(0, 0, 0, 0, 1, 1), src=i32(0, 0, 0, 4, 1, 2),
        dst=i32(1, 2, 3, 0, 4, 0), chunk_lo=i32(0, 0, 0, 0, 0, 0), chunk_hi=i32(1, 1, 1, 1, 1, 1),
        reduce=np.zeros(6, bool),
    )
    verify_schedule(schedule)
    builder = ProgramBuilder(5)
    emit(builder, schedule, range(5), n_elements=1, itemsize=8, label="g", number_format="fp64")
    program = builder.build()
    verify(program)
    overwrite = program.recv_op[3]
    waits = program.dep[program.dep_ptr[overwrite] : program.dep_ptr[overwrite + 1]]
    assert waits.tolist() == program.send_op[:3].tolist()
    assert program.dep[program.dep_ptr[program.recv_op[5]]] == overwrite


def test_ids_are_in_topological_order() -> None:
    program = program_of("all_reduce", "rows_columns", 3, 4, 50)
    assert (program.dep < np.repeat(np.arange(program.n_ops), np.diff(program.dep_ptr))).all()
    assert (program.send_op < program.recv_op).all()


def test_fewer_elements_than_chunks_leave_no_empty_message() -> None:
    program = program_of("all_reduce", "ring", 3, 3, 4)
    assert (program.size_bytes == ITEMSIZE).all()
    assert program.n_messages == 2 * 8 * 4, "8 edges twice for each of 4 chunks of one element"
    assert program.collectives[0].n_chunks == 4
    verify(program)


def test_work_of_the_reductions() -> None:
    program = program_of("reduce", "ring", 1, 3, 5, 2, 0)
    reduce = program.kind == OpKind.REDUCE
    assert program.flops[reduce].sum() == 2 * 5
    assert (program.read_bytes[reduce] == 2 * ITEMSIZE * program.flops[reduce]).all()
    assert (program.write_bytes[reduce] == ITEMSIZE * program.flops[reduce]).all()
    assert {program.op_classes[c] for c in program.op_class[reduce]} == {"reduce_sum"}


def test_several_after_arrays_and_untouched_participants() -> None:
    builder = ProgramBuilder(4)
    first, second = (
        builder.compute(range(4), label=name, op_class="mm", number_format="fp32", flops=1, read_bytes=1, write_bytes=1)
        for name in "ab"
    )
    second[2] = -1
    who, op = emit(
        builder, build("broadcast", "tree", 2, 2, root=2), np.arange(4), n_elements=8, itemsize=2, label="g",
        number_format="bf16", after=[first, second],
    )
    program = builder.build()
    assert op[who == 2].tolist() == [first[2]], "the root's data is its own: it waits for `after` only"
    for device in (0, 1, 3):
        assert program.kind[op[who == device]].tolist() == [OpKind.RECV]
    recv = op[who == 0][0]
    assert {first[0], second[0]} <= set(program.dep[program.dep_ptr[recv] : program.dep_ptr[recv + 1]].tolist())


@pytest.mark.parametrize(("rows", "cols", "n_elements"), [(1, 1, 10), (2, 2, 0)])
def test_nothing_to_do(rows: int, cols: int, n_elements: int) -> None:
    builder = ProgramBuilder(rows * cols)
    who, op = emit(
        builder, build("all_reduce", "ring", rows, cols), np.arange(rows * cols), n_elements=n_elements, itemsize=4,
        label="g", number_format="fp32", after=np.arange(rows * cols) + 5,
    )
    assert who.tolist() == list(range(rows * cols)) and (op == who + 5).all()
    assert builder.build().n_ops == 0 and builder.build().collectives == ()


def test_devices_must_match_participants() -> None:
    with pytest.raises(ScheduleError, match="g: 3 devices for 4 participants"):
        emit(
            ProgramBuilder(4), build("all_reduce", "ring", 2, 2), [0, 1, 2], n_elements=8, itemsize=4, label="g",
            number_format="fp32",
        )
