"""The chain of ops and messages that decides how long a step takes, and what its time went into.

Walked backwards from the op that ends last. What an op waited for last is: for one that occupies a unit the op before
it there if it had to queue, else its latest dependency; for RECV the message if that came after all dependencies, of a
reduction in the network the contribution that would come last on a free mesh. The parts add up to the duration of the
step exactly.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.cost.threads import MOST_THREADS, Threads, units_of
from meshemu.mesh import Mesh, Order
from meshemu.network import lone_messages
from meshemu.program.interfaces import ingest_ops, interface_unit_name
from meshemu.program.ir import OpKind, Program
from meshemu.program.units import NO_UNIT, Unit

__all__ = ["PARTS", "CriticalPath", "critical_path", "parts_of_ops"]

_I64 = NDArray[np.int64]

PARTS = ("compute", "combine", "latency", "serialisation", "waiting", "ingest", "spill")
"""What the time on a critical path goes into."""


@dataclass(frozen=True)
class CriticalPath:
    """Where the time of a step went, in ps; all parts together are the step.

    compute_ps: COMPUTE ops, also by op class. combine_ps: REDUCE ops. latency_ps and serialisation_ps: what the
    messages on the path would take on a free mesh (merges in routers are latency). waiting_ps: messages that waited for
    links in use, or in a router for the other parts of a sum. ingest_ps, spill_ps: PCIe and links of interface
    processors, for input data and for what devices have no room for; also by unit, in words, the longest first.
    n_messages on the path; ops: their ids, first to last.
    """

    compute_ps: int
    combine_ps: int
    latency_ps: int
    serialisation_ps: int
    waiting_ps: int
    ingest_ps: int
    spill_ps: int
    n_messages: int
    compute_ps_by_class: dict[str, int]
    interface_ps_by_unit: dict[str, int]
    ops: tuple[int, ...]

    @property
    def communication_ps(self) -> int:
        """All but compute."""
        return sum(getattr(self, f"{part}_ps") for part in PARTS if part != "compute")

    @property
    def total_ps(self) -> int:
        """The duration of the step."""
        return self.compute_ps + self.communication_ps


def parts_of_ops(program: Program) -> NDArray[np.int8]:
    """The part of the path that each op is when it is on it, int8[n_ops]: indices of PARTS, -1 for SEND and RECV."""
    of_kind = {OpKind.COMPUTE: "compute", OpKind.REDUCE: "combine", OpKind.INTERFACE: "spill"}
    number = np.array([PARTS.index(of_kind[kind]) if kind in of_kind else -1 for kind in OpKind], np.int8)
    found = number[program.kind]
    found[(program.kind == OpKind.INTERFACE) & ingest_ops(program)] = PARTS.index("ingest")
    return found


def critical_path(program: Program, mesh: Mesh, start_ps: _I64, end_ps: _I64, order: Order = "xy") -> CriticalPath:
    """The critical path of a timed Program; start_ps, end_ps: int64[n_ops]; order: how messages were routed."""
    before_on_unit = _UnitQueues(program, start_ps, end_ps)
    last_sender = _last_senders(program, mesh, order, start_ps)
    part_of = parts_of_ops(program)
    parts = dict.fromkeys(PARTS, 0)
    by_class: dict[str, int] = {}
    by_unit: dict[str, int] = {}
    path: list[int] = []
    in_flight: list[tuple[int, int]] = []  # (message, time from departure to arrival)
    handed_over: list[tuple[int, int]] = []  # (SEND, time until the tail is on its first links)
    op = int(end_ps.argmax()) if program.n_ops else -1
    while op >= 0:
        path.append(op)
        kind = program.kind[op]
        if kind == OpKind.RECV and (message := int(program.message[op])) >= 0:
            latest = _latest_dependency(program, end_ps, op)
            if latest < 0 or end_ps[latest] < end_ps[op]:
                message = last_sender.get(op, message)
                send = int(program.send_op[message])
                path.append(send)
                latest = _latest_dependency(program, end_ps, send)
                in_flight.append((message, int(end_ps[op] - _end_of(end_ps, latest))))
            op = latest
            continue
        if kind == OpKind.SEND:
            latest = _latest_dependency(program, end_ps, op)
            handed_over.append((op, int(end_ps[op] - _end_of(end_ps, latest))))
            op = latest
            continue
        duration = int(end_ps[op] - start_ps[op])
        parts[PARTS[part_of[op]]] += duration
        name = program.op_classes[program.op_class[op]]
        if kind == OpKind.COMPUTE:
            by_class[name] = by_class.get(name, 0) + duration
        elif kind == OpKind.INTERFACE:
            unit = interface_unit_name(name, int(program.interface[op]))
            by_unit[unit] = by_unit.get(unit, 0) + duration
        latest = _latest_dependency(program, end_ps, op)
        queued = before_on_unit.ending_when_starts(op) if start_ps[op] > _end_of(end_ps, latest) else -1
        op = latest if queued < 0 else queued
        # Zero unless the times leave a gap that neither a dependency nor the unit explains.
        parts["waiting"] += int(start_ps[path[-1]] - _end_of(end_ps, op))
    _split_messages(program, mesh, order, in_flight, handed_over, parts)
    return CriticalPath(
        **{f"{name}_ps": value for name, value in parts.items()},
        n_messages=len(in_flight) + len(handed_over),
        compute_ps_by_class=_longest_first(by_class),
        interface_ps_by_unit=_longest_first(by_unit),
        ops=tuple(reversed(path)),
    )


def _longest_first(times_ps: dict[str, int]) -> dict[str, int]:
    return dict(sorted(times_ps.items(), key=lambda item: -item[1]))


class _UnitQueues:
    """Finds the op that released the unit of another at the moment when that began.

    How many threads a device computes with need not be known: where all its compute is one after the other, one op at
    most ends when another begins, and where matrix and vector units work side by side, that of the same unit counts.
    """

    def __init__(self, program: Program, start_ps: _I64, end_ps: _I64) -> None:
        self._unit = units_of(program, Threads(compute=MOST_THREADS)).of_op.astype(np.int64)
        ops = np.flatnonzero((self._unit != NO_UNIT) & (end_ps > start_ps))
        together = np.where(self._unit == Unit.VECTOR, np.int64(Unit.COMPUTE), self._unit)
        per_device = int(together.max(initial=0)) + 1
        self._queue = per_device * program.device + together
        self._start_ps = start_ps
        self._ops = ops[np.lexsort((end_ps[ops], self._queue[ops]))]
        self._ends = end_ps[self._ops]
        self._bounds = np.searchsorted(self._queue[self._ops], np.arange(per_device * program.n_devices + 1))

    def ending_when_starts(self, op: int) -> int:
        """An op before `op` on its unit that ended when `op` started, else -1."""
        if self._unit[op] == NO_UNIT:
            return -1
        low, high = self._bounds[self._queue[op] : self._queue[op] + 2]
        first, last = low + np.searchsorted(self._ends[low:high], [self._start_ps[op], self._start_ps[op] + 1])
        found = self._ops[first:last]
        same = found[self._unit[found] == self._unit[op]]
        return int([*same, *found, -1][0])


def _latest_dependency(program: Program, end_ps: _I64, op: int) -> int:
    """The dependency that ends last (the first listed of several), -1 if there is none."""
    waited = program.dep[program.dep_ptr[op] : program.dep_ptr[op + 1]]
    return int(waited[end_ps[waited].argmax()]) if len(waited) else -1


def _end_of(end_ps: _I64, op: int) -> int:
    """When `op` ended; 0, the start of the step, for no op."""
    return int(end_ps[op]) if op >= 0 else 0


def _last_senders(program: Program, mesh: Mesh, order: Order, start_ps: _I64) -> dict[int, int]:
    """RECV of each reduction in the network -> the message whose contribution would come last on a free mesh."""
    merges = np.bincount(program.recv_op, minlength=program.n_ops) > 1
    message = np.flatnonzero(merges[program.recv_op])
    lone = lone_messages(program, mesh, message, order)
    there_ps = start_ps[program.send_op[message]] + lone.latency_ps + lone.serialisation_ps
    by_time = message[np.argsort(there_ps, kind="stable")]
    return dict(zip(program.recv_op[by_time].tolist(), by_time.tolist(), strict=True))


def _split_messages(
    program: Program,
    mesh: Mesh,
    order: Order,
    in_flight: list[tuple[int, int]],
    handed_over: list[tuple[int, int]],
    parts: dict[str, int],
) -> None:
    """Add the time of the messages to latency, serialisation and waiting."""
    if in_flight:
        message, taken_ps = np.array(in_flight, np.int64).T
        lone = lone_messages(program, mesh, message, order)
        parts["latency"] += int(lone.latency_ps.sum())
        parts["serialisation"] += int(lone.serialisation_ps.sum())
        parts["waiting"] += int((taken_ps - lone.latency_ps - lone.serialisation_ps).sum())
    if handed_over:
        send, taken_ps = np.array(handed_over, np.int64).T
        message = np.flatnonzero(np.isin(program.send_op, send))  # several where the SEND is of a multicast
        first_ps = np.zeros(program.n_ops, np.int64)
        np.maximum.at(first_ps, program.send_op[message], lone_messages(program, mesh, message, order).first_ps)
        parts["serialisation"] += int(first_ps[send].sum())
        parts["waiting"] += int((taken_ps - first_ps[send]).sum())
