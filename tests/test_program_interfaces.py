"""Ops at interface processors: what helpers make, what they occupy, what follows from a host, and what is refused."""

import re

import numpy as np
import pytest
from test_program_verify import WORK, changed

from meshemu.errors import ScheduleError
from meshemu.program import Program, ProgramBuilder, equal, from_text, ingest_ops, to_text, verify
from meshemu.program.arrays import ARRAY_FIELDS
from meshemu.program.interfaces import HOST_TO_MEMORY, LINK_LATENCY, from_host, to_device, to_memory
from meshemu.program.units import NO_UNIT, Unit, one_thread_each


def both_ways() -> Program:
    """Beside device 0: batches for 0 and 1 by interface processor 2; device 1 spills by way of it and of another, 5."""
    builder = ProgramBuilder(2)
    there = from_host(builder, 0, 2, 100, "batch")  # op 0
    arrived = to_device(builder, [0, 0], 2, 100, "batch", [there])  # ops 1, 2 over the link, 3, 4 in flight
    _, send, _ = builder.messages(0, 1, 100, label="batch")  # ops 5, 6
    builder.depend(send, arrived[1])
    work = builder.compute(1, label="forward", **WORK)  # op 7
    _, out, home = builder.messages(1, 0, 30, label="spill")  # ops 8, 9
    builder.depend(out, work)
    away = to_memory(builder, [0, 0], [2, 5], 30, "spill", [home, [-1, -1]])  # ops 10, 11; 12, 13
    to_device(builder, 0, 2, 30, "fetch", [away[:1], there])  # ops 14; 15: waits for a host here, as no spill does
    return builder.build()


def test_what_helpers_make() -> None:
    program = both_ways()
    verify(program)
    assert program.interface.tolist() == [2, 2, 2, 2, 2, -1, -1, -1, -1, -1, 2, 5, 2, 5, 2, 2]
    assert program.write_bytes[[0, 10, 11]].tolist() == [100, 30, 30]  # of memory
    assert program.read_bytes[[1, 2, 14]].tolist() == [100, 100, 30]
    after = [program.dep[low:high].tolist() for low, high in zip(program.dep_ptr, program.dep_ptr[1:], strict=False)]
    assert after[:6] == [[], [0], [0], [1], [2], [4]]
    assert after[10:] == [[9], [9], [10], [11], [0, 12], [14]]


def test_units() -> None:
    """One for each class at each interface processor, of the device beside it; none in flight, and for messages."""
    units = one_thread_each(both_ways()).of_op
    first = len(Unit)
    assert units[[3, 4, 5, 6, 8, 9, 12, 13, 15]].tolist() == [NO_UNIT] * 9
    assert units[7] == Unit.COMPUTE
    occupied = {name: set(units[ops].tolist()) for name, ops in
                {"pcie": [0], "to": [1, 2, 14], "from": [10], "other": [11]}.items()}  # fmt: skip
    assert all(len(unit) == 1 for unit in occupied.values())
    assert sorted(unit for (unit,) in occupied.values()) == list(range(first, first + 4))


def test_units_are_counted_device_by_device() -> None:
    builder = ProgramBuilder(3)
    from_host(builder, [2, 0, 1, 0], [7, 1, 0, 3], 5, "batch")
    units = one_thread_each(builder.build()).of_op - len(Unit)
    assert units.tolist() == [0, 0, 0, 1]


def test_ingest_is_all_that_follows_from_a_host() -> None:
    program = both_ways()
    assert np.flatnonzero(ingest_ops(program)).tolist() == [0, 1, 2, 3, 4, 5, 6, 14, 15]
    builder = ProgramBuilder(2)
    to_device(builder, 0, 0, 10, "fetch")
    assert not ingest_ops(builder.build()).any()
    assert not ingest_ops(ProgramBuilder(1).build()).any()


def test_text_and_arrays_hold_them() -> None:
    program = both_ways()
    text = to_text(program)
    assert f'0 device 0 interface class {HOST_TO_MEMORY} write 100 at 2 label "batch"\n' in text
    assert f'3 device 0 interface class {LINK_LATENCY} at 2 label "batch" after 1\n' in text
    assert equal(from_text(text), program)
    assert ARRAY_FIELDS["interface"] is np.int32


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"interface": (0, -1)}, "op 0 (interface 'batch' on device 0) must name an interface processor if, and"),
        ({"interface": (7, 0)}, "op 7 (compute 'forward' on device 1) must name an interface processor if, and"),
        ({"interface": (0, -2)}, "op 0: interface = -2 must be at least -1"),
        ({"op_class": (0, 3)}, "op 0 (interface 'batch' on device 0) must be of a class host_to_memory, memory_to_"),
        ({"flops": (1, 1)}, "op 1 (interface 'batch' on device 0) moves bytes and does nothing else"),
        ({"message": (1, 0)}, "op 1 (interface 'batch' on device 0, message 0) moves bytes and does nothing else"),
        ({"collective": (1, 0)}, "op 1: collective = 0"),
        ({"device": (0, 1)}, "op 1 (interface 'batch' on device 0): interface processor 2 is beside device 1"),
    ],
)
def test_what_is_refused(change: dict[str, tuple[int, int]], text: str) -> None:
    with pytest.raises(ScheduleError, match=re.escape(text)):
        verify(changed(both_ways(), **change))
