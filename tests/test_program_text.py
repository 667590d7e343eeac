"""Text and arrays hold a Program exactly; what cannot be read is refused with its line."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tree_engines import routed_mesh

from meshemu.collectives import ALGORITHMS, KINDS, collective_program
from meshemu.errors import InputError, ScheduleError
from meshemu.hardware import System
from meshemu.program import ProgramBuilder, arrays, equal, from_arrays, from_text, tables, to_text

MESH = routed_mesh(System.grid(rows=2, cols=3, bandwidth="50 GB/s", latency="500 ns"))
HEAD = "meshemu program 1\ndevices 2\n"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_round_trips(kind: str, algorithm: str) -> None:
    program = collective_program(kind, algorithm, MESH, 100)
    assert equal(from_text(to_text(program)), program)
    stored = {name: column.copy() for name, column in arrays(program).items()}
    assert equal(from_arrays(stored, json.loads(json.dumps(tables(program)))), program)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.text(), st.text(min_size=1), st.text(), st.integers(0, 2**62)), max_size=6))
def test_any_name_survives(rows: list[tuple[str, str, str, int]]) -> None:
    builder = ProgramBuilder(3)
    last = np.array([-1])
    for label, op_class, number_format, flops in rows:
        op = builder.compute(
            1, label=label, op_class=op_class, number_format=number_format, flops=flops, read_bytes=0, write_bytes=flops
        )
        builder.depend(op, last)
        _, send, last = builder.messages(1, 2, 7, label=label)
        builder.depend(send, op)
        last = builder.reduce(
            1, label=label, op_class=op_class, number_format="", flops=0, read_bytes=1, write_bytes=2, message=-1
        )
        builder.depend(last, op)
    program = builder.build()
    assert equal(from_text(to_text(program)), program)


def test_a_line_reads_well() -> None:
    text = to_text(collective_program("all_reduce", "ring", MESH, 6 * 8, 4)).splitlines()
    assert text[1] == "devices 6"
    assert text[5] == (
        'collective 0 all_reduce ring grid 2 3 chunks 6 bytes 48 devices 0,1,2,3,4,5 label "all_reduce ring"'
    )
    assert any(
        line.endswith('class reduce_sum format fp32 flops 2 read 16 write 8 message 0 collective 0 chunks 3:4 '
                      'label "all_reduce ring" after 6') for line in text
    )  # fmt: skip


def test_a_hand_written_program_needs_no_tables() -> None:
    program = from_text(
        HEAD + '# a comment\n\n0 device 0 send message 0 to 1 bytes 32 label "a"\n'
        "1 device 1 recv message 0 from 0 bytes 32 label a\n2 device 1 compute class mm format fp32 flops 5 after 1\n"
    )
    assert program.labels == ("a", "") and program.op_classes == ("", "mm") and program.dep.tolist() == [1]
    assert program.size_bytes.tolist() == [32] and program.recv_op.tolist() == [1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "line 0 of the program text: the text has no line 'devices N'"),
        ("something else", "line 1 .*expected 'meshemu program 1'"),
        (HEAD + "1 device 0 compute", "line 3 .*op 1 where op 0 comes next"),
        (HEAD + "0 device 0 wait", "line 3 .*unknown kind 'wait'; known: compute, send, recv, reduce, interface"),
        (HEAD + "0 device", "line 3 .*ends too early"),
        (HEAD + "0 device x compute", "line 3 .*'x'"),
        (HEAD + "0 device 0 compute flop 3", "line 3 .*fields class, format, flops"),
        (HEAD + "0 device 0 compute flops", "line 3 .*pairs of a field and its value"),
        (HEAD + "0 device 0 send message 0 bytes 3", "line 3 .*field 'to'"),
        (HEAD + "0 device 0 send message 0 to 1 bytes 3", "line 3 .*message 0 has no send and recv op"),
        (HEAD + "0 device 0 send message 0 to 1 bytes 3\n1 device 1 recv message 0 from 0 bytes 4", "differ"),
        (HEAD + "0 device 0 send message 0 to 1 bytes 3\n1 device 0 send message 0 to 1 bytes 3", "line 4 .*second"),
        (HEAD + 'labels ["a", "a"]', "line 3 .*labels names one entry twice"),
        (HEAD + "labels 3", "line 3"),
        (HEAD + "ops 3", "line 3 .*'ops' starts no line"),
        (HEAD + "collective 1 all_reduce ring grid 1 2 chunks 2 bytes 4 devices 0,1 label x", "line 3 .*where 0"),
        (HEAD + "collective 0 all_reduce ring grid 1 2 chunks 2 bytes 4 label x", "line 3 .*field 'devices'"),
    ],
)
def test_a_parse_error_names_the_line(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        from_text(text)


def test_inconsistent_messages_have_no_text() -> None:
    program = collective_program("all_reduce", "ring", MESH, 100)
    with pytest.raises(ScheduleError, match="do not match"):
        to_text(dataclasses.replace(program, src=program.dst))


def test_arrays_that_lack_a_field() -> None:
    program = collective_program("all_reduce", "ring", MESH, 100)
    columns, named = arrays(program), tables(program)
    del columns["dep"], named["labels"]
    with pytest.raises(InputError, match="lacks dep, labels"):
        from_arrays(columns, named)
    with pytest.raises(InputError, match="a collective that cannot be read"):
        from_arrays(arrays(program), tables(program) | {"collectives": [{"kind": "x"}]})


def test_equal_sees_every_field() -> None:
    program = collective_program("all_reduce", "ring", MESH, 100)
    for name, column in arrays(program).items():
        other = column.copy()
        other[-1] += 1
        assert not equal(program, dataclasses.replace(program, **{name: other})), name
    assert not equal(program, dataclasses.replace(program, labels=("x",)))
