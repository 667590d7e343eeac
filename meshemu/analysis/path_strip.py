"""The critical path in order of time: which part of the step each of its ops and messages took.

The same chain as `critical_path` walks and the same parts, laid out one after the other without gaps. What is known
of a message is its time on a free mesh, so it is laid out as latency, serialisation and then waiting.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.analysis.critical_path import PARTS, CriticalPath, parts_of_ops
from meshemu.analysis.metrics import path_of, router_table, routing
from meshemu.network import lone_messages
from meshemu.program.ir import OpKind
from meshemu.record import Run

__all__ = ["PARTS", "PathStrip", "part_names", "path_strip"]

_I64 = NDArray[np.int64]

_LATENCY, _SERIALISATION, _WAITING = (PARTS.index(name) for name in ("latency", "serialisation", "waiting"))


@dataclass(frozen=True, eq=False)
class PathStrip:
    """Pieces of the critical path, first to last, int64[n] each: from when to when, an index into PARTS, and the op
    that took it (of a message its SEND). path: their sums.
    """

    start_ps: _I64
    end_ps: _I64
    part: _I64
    op: _I64
    path: CriticalPath

    def total_ps(self, part: str) -> int:
        """Time of all pieces of a part."""
        of_part = self.part == PARTS.index(part)
        return int((self.end_ps - self.start_ps)[of_part].sum())


def part_names(run: Run) -> dict[str, str]:
    """Every part in words; what waiting means depends on whether the run was timed with routers. Ingest and spill
    are left out of a Program that has none.
    """
    names = {
        "compute": "compute",
        "combine": "combining in reductions",
        "latency": "link latency",
        "serialisation": "serialisation on links",
        "waiting": "waiting for links" if router_table(run.config) is None else "in routers, waiting included",
        "ingest": "ingest over PCIe and interface processors",
        "spill": "spill to and from interface processors",
    }
    there = set(parts_of_ops(run.program()).tolist())
    return {part: name for part, name in names.items() if part not in ("ingest", "spill") or PARTS.index(part) in there}


def path_strip(run: Run) -> PathStrip:
    """The critical path of the first recorded step; RecordError without recorded op times."""
    return run.once(_path_strip)


def _path_strip(run: Run) -> PathStrip:
    path = path_of(run)
    rows = list(_pieces(run, path))
    length_ps, part, op = np.array(rows, np.int64).reshape(-1, 3).T
    end_ps = np.cumsum(length_ps)
    shown = length_ps > 0
    return PathStrip((end_ps - length_ps)[shown], end_ps[shown], part[shown], op[shown], path)


def _pieces(run: Run, path: CriticalPath) -> Iterator[tuple[int, int, int]]:
    """(length in ps, part, op) of all pieces in order."""
    program = run.program()
    start_ps, end_ps = run.op_times()
    messages = _messages_on(program.send_op, program.recv_op, path.ops)
    ids = np.array(sorted(set(messages.values())), np.int64)
    lone = lone_messages(program, run.mesh(), ids, routing(run.config))
    alone = {
        int(message): (int(lone.latency_ps[i]), int(lone.serialisation_ps[i]), int(lone.first_ps[i]))
        for i, message in enumerate(ids)
    }
    part_of, reached = parts_of_ops(program), 0
    for at, op in enumerate(path.ops):
        if part_of[op] >= 0:
            yield int(start_ps[op]) - reached, _WAITING, op
            yield int(end_ps[op] - start_ps[op]), int(part_of[op]), op
            reached = int(end_ps[op])
        elif at in messages:
            flies = program.kind[op] == OpKind.RECV
            latency, serialisation, first = alone[messages[at]]
            if not flies:
                latency, serialisation = 0, first
            send = int(program.send_op[messages[at]])
            yield latency, _LATENCY, send
            yield serialisation, _SERIALISATION, send
            yield int(end_ps[op]) - reached - latency - serialisation, _WAITING, send
            reached = int(end_ps[op])


def _messages_on(send_op: _I64, recv_op: _I64, ops: tuple[int, ...]) -> dict[int, int]:
    """Place on the path -> message: of a RECV that follows its SEND, and of a SEND that waits for its own hand-over."""
    by_ends: dict[tuple[int, int], int] = {}
    by_send: dict[int, int] = {}
    wanted = np.isin(send_op, np.array(ops, np.int64))
    for message in np.flatnonzero(wanted).tolist():
        by_ends[int(send_op[message]), int(recv_op[message])] = message
        by_send.setdefault(int(send_op[message]), message)
    found: dict[int, int] = {}
    for at, op in enumerate(ops):
        after = ops[at + 1] if at + 1 < len(ops) else -1
        before = ops[at - 1] if at else -1
        if (before, op) in by_ends:
            found[at] = by_ends[before, op]
        elif op in by_send and (op, after) not in by_ends:
            found[at] = by_send[op]
    return found
