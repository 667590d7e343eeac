"""Multicasts and reductions in the network in the Program: built, written, read back, verified, loaded on links."""

import dataclasses

import numpy as np
import pytest
from tree_engines import routed_mesh

from meshemu.errors import InputError, ScheduleError
from meshemu.hardware import System
from meshemu.mesh import flatten
from meshemu.program import (
    CollectiveUse,
    OpKind,
    Program,
    ProgramBuilder,
    arrays,
    equal,
    from_arrays,
    from_text,
    link_bytes,
    lower_bound_ps,
    message_trees,
    tables,
    to_text,
    verify,
)

WORK = {"op_class": "reduce_sum", "number_format": "fp32", "flops": 1, "read_bytes": 1, "write_bytes": 1}
MESH = routed_mesh(System.grid(rows=1, cols=4, bandwidth="50 GB/s", latency="500 ns"))


def broadcast() -> Program:
    """One SEND of device 0, a RECV on 1, 2 and 3."""
    builder = ProgramBuilder(4)
    use = builder.collective(CollectiveUse("broadcast", "hand", (0, 1, 2, 3), (1, 4), 1, 64, "b", 0))
    builder.messages(0, [1, 2, 3], 64, label="b", collective=use, chunk_hi=1, tree=[0, 0, 0])
    return builder.build()


def reduction() -> Program:
    """SENDs of 0, 1 and 2, one RECV and one REDUCE on 3."""
    builder = ProgramBuilder(4)
    use = builder.collective(CollectiveUse("reduce", "hand", (0, 1, 2, 3), (1, 4), 1, 64, "r", 3))
    message, _, recv = builder.messages([0, 1, 2], 3, 64, label="r", collective=use, chunk_hi=1, tree=[5, 5, 5])
    combine = builder.reduce(3, label="r", message=message[:1], collective=use, chunk_hi=1, **WORK)
    builder.depend(combine, recv[:1])
    return builder.build()


def replaced(program: Program, **columns: dict[int, int]) -> Program:
    new = {name: getattr(program, name).copy() for name in columns}
    for name, values in columns.items():
        for index, value in values.items():
            new[name][index] = value
    return dataclasses.replace(program, **new)


def test_one_op_at_the_root():
    fan, sum_ = broadcast(), reduction()
    assert fan.kind.tolist() == [OpKind.SEND, *[OpKind.RECV] * 3]
    assert (fan.send_op.tolist(), fan.recv_op.tolist(), fan.message.tolist()) == ([0, 0, 0], [1, 2, 3], [0, 0, 1, 2])
    assert sum_.kind.tolist() == [*[OpKind.SEND] * 3, OpKind.RECV, OpKind.REDUCE]
    assert (sum_.send_op.tolist(), sum_.recv_op.tolist()) == ([0, 1, 2], [3, 3, 3])
    assert sum_.message.tolist() == [0, 1, 2, 0, 0]
    for program in (fan, sum_):
        verify(program)


def test_trees_among_plain_messages():
    builder = ProgramBuilder(6)
    tree = [-1, 4, 4, -1, -1, 2, 2, 2, 9]
    src, dst = [0, 1, 1, 2, 2, 3, 4, 5, 0], [1, 2, 3, 0, 1, 0, 0, 0, 5]
    size = [1, 2, 2, 3, 4, 5, 5, 5, 6]
    message, send, recv = builder.messages(src, dst, size, label="x", tree=tree)
    program = builder.build()
    assert message.tolist() == list(range(9))
    assert send.tolist() == [0, 1, 1, 2, 3, 4, 5, 6, 7] and recv.tolist() == [8, 9, 10, 11, 12, 13, 13, 13, 14]
    assert program.device[send].tolist() == src and program.device[recv].tolist() == dst
    verify(program)
    found = message_trees(program)
    assert found.alone.tolist() == [True, False, False, True, True, False, False, False, True], "one message is no tree"
    assert (found.first.tolist(), found.outward.tolist(), found.root.tolist()) == ([1, 5], [True, False], [1, 0])
    assert (found.member.tolist(), found.tree.tolist()) == ([1, 2, 5, 6, 7], [0, 0, 1, 1, 1])
    assert equal(from_text(to_text(program)), program)
    assert equal(from_arrays(arrays(program), tables(program)), program)


def test_text_names_all_messages():
    assert "0 device 0 send message 0,1,2 to 1,2,3 bytes 64 collective 0 chunks 0:1" in to_text(broadcast())
    assert "3 device 3 recv message 0,1,2 from 0,1,2 bytes 64 collective 0 chunks 0:1" in to_text(reduction())


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("0 device 0 send message 0,1 to 1 bytes 8 label x", "zip"),
        ("0 device 0 compute message 0,1 label x", "a compute op names one message, not 0,1"),
        ("0 device 0 send message 0,0 to 1,2 bytes 8 label x", "message 0 has a second send op"),
    ],
)
def test_text_refused(line, text):
    with pytest.raises(InputError, match=rf"line 3 of the program text: .*{text}"):
        from_text(f"meshemu program 1\ndevices 3\n{line}\n")


@pytest.mark.parametrize(
    ("program", "text"),
    [
        (replaced(broadcast(), size_bytes={1: 65}), "messages 0 and 1, which share an op .*, differ in size"),
        (replaced(broadcast(), dst={2: 2}, device={3: 2}), r"op 0 \(send .* has two messages with device 2"),
        (replaced(broadcast(), message={0: 1}), "message 0 is to be sent on device 0, not by op 0"),
        (replaced(reduction(), src={1: 0}, device={1: 0}), r"op 3 \(recv .* has two messages with device 0"),
        (replaced(reduction(), message={4: 1}), r"op 4 \(reduce .* combines a sum of the network.* its first message"),
        (replaced(reduction(), chunk_hi={1: 0}), "message 1: chunk_hi of its ops differs"),
    ],
)
def test_unsound_trees_are_refused(program, text):
    with pytest.raises(ScheduleError, match=text):
        verify(program)


@pytest.mark.parametrize(
    ("ops", "text"),
    [
        (
            ("0 send message 0,1 to 2,3", "1 send message 2 to 3", "2 recv message 0 from 0",
             "3 recv message 1,2 from 0,1"),
            "messages 0 and 1, .* make a tree with two roots",
        ),
        (("0 send message 0,1 to 1,1", "1 recv message 0,1 from 0,0"), "messages 0 and 1, .* share both SEND and RECV"),
        (
            ("0 send message 0,2 to 1,2", "1 recv message 0 from 0", "0 send message 1 to 1", "1 recv message 1 from 0",
             "2 recv message 2 from 0"),
            "message 2 is to be sent on device 0, not by op 0",
        ),
    ],
)  # fmt: skip
def test_a_tree_has_one_root_and_consecutive_messages(ops, text):
    lines = [f"{number} device {op} bytes 8 label x" for number, op in enumerate(ops)]
    with pytest.raises(ScheduleError, match=text):
        verify(from_text("\n".join(["meshemu program 1", "devices 4", *lines])))


def test_a_sum_of_the_network_must_be_combined():
    builder = ProgramBuilder(3)
    use = builder.collective(CollectiveUse("reduce", "hand", (0, 1, 2), (1, 3), 1, 8, "r", 2))
    builder.messages([0, 1], 2, 8, label="r", collective=use, chunk_hi=1, tree=[0, 0])
    with pytest.raises(ScheduleError, match="gets a sum of the network that no REDUCE combines"):
        verify(builder.build())


def test_contributions_count_once():
    builder = ProgramBuilder(3)
    use = builder.collective(CollectiveUse("reduce", "hand", (0, 1, 2), (1, 3), 1, 8, "r", 2))
    for sources in ([0, 1], [0]):
        message, _, recv = builder.messages(
            sources, 2, 8, label="r", collective=use, chunk_hi=1, tree=np.zeros(len(sources), np.int64)
        )
        combine = builder.reduce(2, label="r", message=message[:1], collective=use, chunk_hi=1, **WORK)
        builder.depend(combine, recv[:1])
    with pytest.raises(ScheduleError, match="device 2 ends with the contribution of device 0 2 times instead of 1"):
        verify(builder.build())


@pytest.mark.parametrize("ordered", [False, True])
def test_what_multicasts_write_must_be_ordered(ordered):
    builder = ProgramBuilder(3)
    use = builder.collective(CollectiveUse("broadcast", "hand", (0, 1, 2), (1, 3), 1, 8, "b", 0))
    _, _, first = builder.messages(0, [1, 2], 8, label="b", collective=use, chunk_hi=1, tree=[0, 0])
    _, send, second = builder.messages(1, [0, 2], 8, label="again", collective=use, chunk_hi=1, tree=[0, 0])
    builder.depend(send[0], first[0])
    if ordered:
        builder.depend(second[1], first[1])
        verify(builder.build())
        return
    with pytest.raises(ScheduleError, match=r"op 2 .* and op 5 .* touch one chunk of collective 0, but nothing orders"):
        verify(builder.build())


def test_every_link_of_a_tree_carries_the_message_once():
    for program, direction, links in ((broadcast(), 1, (0, 1, 2)), (reduction(), 1, (0, 1, 2))):
        carried = link_bytes(program, MESH)
        assert carried[MESH.out_link[list(links), direction]].tolist() == [64, 64, 64] and carried.sum() == 3 * 64
        assert lower_bound_ps(program, MESH) == 3 * 500_000 + 64 * 20


def test_routers_that_cannot_are_named():
    plain = flatten(System.grid(rows=1, cols=4, bandwidth="50 GB/s", latency="500 ns"))
    with pytest.raises(InputError, match=r"message 0 \('b'\) is a multicast, .*: mesh.multicast = false"):
        link_bytes(broadcast(), plain)
    with pytest.raises(InputError, match=r"message 0 \('r'\) is a reduction in the network, .*mesh.reduction = false"):
        link_bytes(reduction(), plain)
