"""The model of `engine` in plain Python, one explicit event per packet and hop: its specification, slow and simple.

Shares nothing with the kernels: no trains, nothing passed on before its time, a heapq. Tests hold the
engine to it and `scripts/bench_network.py` measures against it. At one time, first ops end and messages arrive, then
units take ops by op id, then links take packets by (message id, packet index).
"""

import heapq
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from meshemu.program.ir import OpKind

__all__ = ["Event", "Reference", "ReferenceLink", "ReferenceOp"]

Event = tuple[int, int, int, int, int, int]
END, ARRIVE, OP, PACKET = range(4)


@dataclass
class ReferenceLink:
    """A link of num / den ps per byte. `queue`: start times of those waiting (a train counts once); times in ps."""

    num: int
    den: int
    latency_ps: int
    free_ps: int = 0
    bytes: int = 0
    wait_ps: int = 0
    packets: int = 0
    max_queue: int = 0
    busy: list[tuple[int, int]] = field(default_factory=list)
    queue: deque[int] = field(default_factory=deque)

    def time_of(self, size_bytes: int) -> int:
        """ceil(size x num / den) ps."""
        return -(-size_bytes * self.num // self.den)


@dataclass
class ReferenceOp:
    """An op: kind, device, duration in ps, the ids of the ops it waits for, its message or -1."""

    kind: int
    device: int
    duration_ps: int
    dependencies: Sequence[int]
    message: int


class Reference:
    """Simulates messages (size, route as link ids, ready time or None if a SEND hands it over) and ops."""

    def __init__(
        self,
        links: Sequence[ReferenceLink],
        sizes: Sequence[int],
        routes: Sequence[Sequence[int]],
        ready_ps: Sequence[int | None],
        ops: Sequence[ReferenceOp],
        packet_bytes: int,
    ) -> None:
        self.links = links
        self.sizes = sizes
        self.routes = routes
        self.ops = ops
        self.packet_bytes = packet_bytes
        self.depart: dict[int, int] = {}
        self.arrival: dict[int, int] = {}
        self.op_start: dict[int, int] = {}
        self.op_end: dict[int, int] = {}
        self.unit_free: defaultdict[tuple[int, bool], int] = defaultdict(int)
        self.events: list[Event] = []
        self.n_packet_hops = 0
        self.send_op = {op.message: i for i, op in enumerate(ops) if op.kind == OpKind.SEND}
        self.recv_op = {op.message: i for i, op in enumerate(ops) if op.kind == OpKind.RECV}
        self.missing = [len(op.dependencies) + (op.kind == OpKind.RECV) for op in ops]
        self.successors: list[list[int]] = [[] for _ in ops]
        for i, op in enumerate(ops):
            for dependency in op.dependencies:
                self.successors[dependency].append(i)
        for i in range(len(ops)):
            if self.missing[i] == 0:
                self._ready(0, i)
        for message, time in enumerate(ready_ps):
            if time is not None:
                self._hand_over(time, message)

    def run(self) -> None:
        """Run all events."""
        while self.events:
            time, what, first, second, hop, tail = heapq.heappop(self.events)
            if what == END:
                self.op_end[first] = time
                for successor in self.successors[first]:
                    self._count_down(time, successor)
            elif what == ARRIVE:
                self.arrival[first] = time
                if first in self.recv_op:
                    self._count_down(time, self.recv_op[first])
            elif what == OP:
                op = self.ops[first]
                unit = (op.device, op.kind == OpKind.REDUCE)
                self.op_start[first] = max(time, self.unit_free[unit])
                self.unit_free[unit] = self.op_start[first] + op.duration_ps
                self._push(self.unit_free[unit], END, first)
            else:
                self._enter(time, first, second, hop, tail)

    def _push(self, time: int, what: int, first: int, second: int = 0, hop: int = 0, tail: int = 0) -> None:
        heapq.heappush(self.events, (time, what, first, second, hop, tail))

    def _count_down(self, time: int, op: int) -> None:
        self.missing[op] -= 1
        if self.missing[op] == 0:
            self._ready(time, op)

    def _ready(self, time: int, i: int) -> None:
        op = self.ops[i]
        if op.kind in (OpKind.COMPUTE, OpKind.REDUCE) and op.duration_ps > 0:
            self._push(time, OP, i)
            return
        self.op_start[i] = time
        if op.kind == OpKind.SEND:
            self._hand_over(time, op.message)
            return
        if op.kind == OpKind.RECV:
            self.op_start[i] = max((self.op_end[dependency] for dependency in op.dependencies), default=0)
        self._push(time, END, i)

    def _hand_over(self, time: int, message: int) -> None:
        for packet in range(-(-self.sizes[message] // self.packet_bytes)):
            self._push(time, PACKET, message, packet, 0, time)

    def _enter(self, time: int, message: int, packet: int, hop: int, tail: int) -> None:
        """The head of a packet has come to the link at index `hop` of its route."""
        link = self.links[self.routes[message][hop]]
        begin = packet * self.packet_bytes
        end = min(begin + self.packet_bytes, self.sizes[message])
        is_last = end == self.sizes[message]
        start = max(time, link.free_ps)
        link.free_ps = max(start + link.time_of(end) - link.time_of(begin), tail)
        link.bytes += end - begin
        link.packets += 1
        link.busy.append((start, link.free_ps))
        self.n_packet_hops += 1
        if hop > 0 or packet == 0:
            link.wait_ps += start - time
            while link.queue and link.queue[0] <= time:
                link.queue.popleft()
            if start > time:
                link.queue.append(start)
            link.max_queue = max(link.max_queue, len(link.queue))
        if hop == 0 and packet == 0:
            self.depart[message] = start
        if hop == 0 and is_last and message in self.send_op:
            self._push(link.free_ps, END, self.send_op[message])
        if hop + 1 < len(self.routes[message]):
            self._push(start + link.latency_ps, PACKET, message, packet, hop + 1, link.free_ps + link.latency_ps)
        elif is_last:
            self._push(link.free_ps + link.latency_ps, ARRIVE, message)
