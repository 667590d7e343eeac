"""The timing model in plain Python, one explicit event per packet and hop: its specification, slow and simple.

Shares nothing with the kernels: no trains, nothing passed on before its time, a heapq. Tests hold the engine to it
(`oracle` gives it the face of `timing`) and `scripts/bench_network.py` measures against it. At one time, first ops end
and messages arrive, then units take ops by op id, then links take packets by (message id, packet index).

What travels as one is a flow: a message, or the messages of a tree, under the id of the first. A flow uses a link at
most once. docs/timing-model.md says what happens where it forks and merges; here it is `_pass_on` and `_offer`.
"""

import heapq
import itertools
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from meshemu.program.ir import OpKind
from meshemu.program.units import NO_UNIT, Unit

__all__ = ["Event", "Reference", "ReferenceLink", "ReferenceOp", "ReferenceTree"]

Event = tuple[int, int, int, int, int, int]
END, ARRIVE, OP, PACKET = range(4)
AT_ROOT = -1  # stands for a link where the branches of a reduction meet at its root


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
    """An op: kind, device, duration in ps, the ids of the ops it waits for, its message or -1, its unit."""

    kind: int
    device: int
    duration_ps: int
    dependencies: Sequence[int]
    message: int
    unit: int


@dataclass(frozen=True)
class ReferenceTree:
    """Messages that travel as one: a multicast (outward), or a reduction in the network."""

    messages: Sequence[int]
    outward: bool


@dataclass
class _Hop:
    """A link in a flow. inputs: packets that become one to enter it. following: links that the flow goes on over.

    feeds: messages that are handed over to it. departs: messages whose first link it is; ends: whose last link it is.
    """

    inputs: int = 0
    following: list[int] = field(default_factory=list)
    feeds: list[int] = field(default_factory=list)
    departs: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)


@dataclass
class _Merge:
    """Inputs that are missing at a merge, and the latest head and tail among the others."""

    missing: int
    head: int = 0
    tail: int = 0


class Reference:
    """Simulates messages (size, route as link ids, ready time or None if a SEND hands it over) and ops.

    trees: messages that travel as one; their routes form a tree. A multicast is ready, or sent, under its first message
    (None for the others), and a reduction is received under its first. combine_ps: what a merge takes. combining: how
    many ops at a time the unit COMBINE of a device runs.
    """

    def __init__(
        self,
        links: Sequence[ReferenceLink],
        sizes: Sequence[int],
        routes: Sequence[Sequence[int]],
        ready_ps: Sequence[int | None],
        ops: Sequence[ReferenceOp],
        packet_bytes: int,
        trees: Sequence[ReferenceTree] = (),
        combine_ps: int = 0,
        combining: int = 1,
    ) -> None:
        self.links = links
        self.sizes = sizes
        self.routes = routes
        self.ops = ops
        self.packet_bytes = packet_bytes
        self.combine_ps = combine_ps
        self.combining = combining
        self.depart: dict[int, int] = {}
        self.arrival: dict[int, int] = {}
        self.op_start: dict[int, int] = {}
        self.op_end: dict[int, int] = {}
        self.unit_free: dict[tuple[int, int], list[int]] = {}
        self.events: list[Event] = []
        self.n_packet_hops = 0
        self.merging: dict[tuple[int, int, int], _Merge] = {}
        self._plan_flows(trees)
        self.send_op = {op.message: i for i, op in enumerate(ops) if op.kind == OpKind.SEND}
        self.recv_op = {op.message: i for i, op in enumerate(ops) if op.kind == OpKind.RECV}
        self.leaving = {message: [len(links), 0] for message, links in self.first_links.items()}
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

    def _plan_flows(self, trees: Sequence[ReferenceTree]) -> None:
        """Find the hops of every flow and what each hands on to which."""
        self.flow = list(range(len(self.routes)))
        self.members = {message: [message] for message in self.flow}
        self.first_links = {message: [route[0]] for message, route in enumerate(self.routes)}
        self.root_inputs: dict[int, int] = {}
        for tree in trees:
            first = tree.messages[0]
            self.members[first] = list(tree.messages)
            for message in tree.messages:
                self.flow[message] = first
            if tree.outward:
                starts = [self.first_links.pop(message)[0] for message in tree.messages]
                self.first_links[first] = list(dict.fromkeys(starts))
            else:
                self.root_inputs[first] = len({self.routes[message][-1] for message in tree.messages})
        self.hops: defaultdict[tuple[int, int], _Hop] = defaultdict(_Hop)
        for message, route in enumerate(self.routes):
            flow = self.flow[message]
            self.hops[flow, route[0]].departs.append(message)
            self.hops[flow, route[-1]].ends.append(message)
            for link, following in itertools.pairwise(route):
                if following not in self.hops[flow, link].following:
                    self.hops[flow, link].following.append(following)
                    self.hops[flow, following].inputs += 1
        for message, links in self.first_links.items():
            for link in links:
                self.hops[self.flow[message], link].inputs += 1
                self.hops[self.flow[message], link].feeds.append(message)

    def run(self) -> None:
        """Run all events."""
        while self.events:
            time, what, first, second, link, tail = heapq.heappop(self.events)
            if what == END:
                self.op_end[first] = time
                for successor in self.successors[first]:
                    self._count_down(time, successor)
            elif what == ARRIVE:
                self.arrival[first] = time
                if first in self.recv_op:
                    self._count_down(time, self.recv_op[first])
            elif what == OP:
                self._take_unit(time, first)
            else:
                self._enter(time, first, second, link, tail)

    def _take_unit(self, time: int, i: int) -> None:
        """An op starts once one of the servers of its unit is free: `combining` for combinations, else one."""
        op = self.ops[i]
        servers = self.combining if op.unit == Unit.COMBINE else 1
        free_ps = self.unit_free.setdefault((op.device, op.unit), [0] * servers)
        earliest_ps = heapq.heappop(free_ps)
        self.op_start[i] = max(time, earliest_ps)
        heapq.heappush(free_ps, self.op_start[i] + op.duration_ps)
        self._push(self.op_start[i] + op.duration_ps, END, i)

    def _push(self, time: int, what: int, first: int, second: int = 0, link: int = 0, tail: int = 0) -> None:
        heapq.heappush(self.events, (time, what, first, second, link, tail))

    def _count_down(self, time: int, op: int) -> None:
        self.missing[op] -= 1
        if self.missing[op] == 0:
            self._ready(time, op)

    def _ready(self, time: int, i: int) -> None:
        op = self.ops[i]
        moves = op.kind in (OpKind.SEND, OpKind.RECV)
        if not moves and op.duration_ps > 0 and op.unit != NO_UNIT:
            self._push(time, OP, i)
            return
        self.op_start[i] = time
        if op.kind == OpKind.SEND:
            self._hand_over(time, op.message)
            return
        if op.kind == OpKind.RECV:
            self.op_start[i] = max((self.op_end[dependency] for dependency in op.dependencies), default=0)
        self._push(time if moves else time + op.duration_ps, END, i)

    def _hand_over(self, time: int, message: int) -> None:
        for packet in range(-(-self.sizes[message] // self.packet_bytes)):
            for link in self.first_links[message]:
                self._offer(self.flow[message], link, packet, time, time)

    def _offer(self, flow: int, link: int, packet: int, head: int, tail: int) -> None:
        """One input of a hop has its packet: head and tail are there at these times. The last input starts it."""
        inputs = self.root_inputs[flow] if link == AT_ROOT else self.hops[flow, link].inputs
        if inputs > 1:
            merge = self.merging.setdefault((flow, link, packet), _Merge(inputs))
            merge.missing -= 1
            merge.head, merge.tail = max(merge.head, head), max(merge.tail, tail)
            if merge.missing:
                return
            del self.merging[flow, link, packet]
            head, tail = merge.head + self.combine_ps, merge.tail + self.combine_ps
        if link != AT_ROOT:
            self._push(head, PACKET, flow, packet, link, tail)
        elif self._is_last(flow, packet):
            self._arrive(tail, self.members[flow])

    def _enter(self, time: int, flow: int, packet: int, number: int, tail: int) -> None:
        """The head of a packet has come to a link."""
        link, hop = self.links[number], self.hops[flow, number]
        begin = packet * self.packet_bytes
        end = min(begin + self.packet_bytes, self.sizes[flow])
        start = max(time, link.free_ps)
        link.free_ps = max(start + link.time_of(end) - link.time_of(begin), tail)
        link.bytes += end - begin
        link.packets += 1
        link.busy.append((start, link.free_ps))
        self.n_packet_hops += 1
        in_train = bool(hop.feeds) and hop.inputs == 1
        if not in_train or packet == 0:
            link.wait_ps += start - time
            while link.queue and link.queue[0] <= time:
                link.queue.popleft()
            if start > time:
                link.queue.append(start)
            link.max_queue = max(link.max_queue, len(link.queue))
        if packet == 0:
            self.depart.update(dict.fromkeys(hop.departs, start))
        if self._is_last(flow, packet):
            self._left(hop, link.free_ps)
        self._pass_on(flow, packet, hop, start + link.latency_ps, link.free_ps + link.latency_ps)

    def _pass_on(self, flow: int, packet: int, hop: _Hop, head: int, tail: int) -> None:
        """A packet comes out of a link: a copy to every link that follows, and one to every device where it ends."""
        for following in hop.following:
            self._offer(flow, following, packet, head, tail)
        if hop.ends and flow in self.root_inputs:
            self._offer(flow, AT_ROOT, packet, head, tail)
        elif self._is_last(flow, packet):
            self._arrive(tail, hop.ends)

    def _left(self, hop: _Hop, time: int) -> None:
        """The tail of a flow is on a link; a SEND ends when that is so for all first links of its message."""
        for message in hop.feeds:
            self.leaving[message][0] -= 1
            self.leaving[message][1] = max(self.leaving[message][1], time)
            if self.leaving[message][0] == 0 and message in self.send_op:
                self._push(self.leaving[message][1], END, self.send_op[message])

    def _arrive(self, time: int, messages: Sequence[int]) -> None:
        for message in messages:
            self._push(time, ARRIVE, message)

    def _is_last(self, flow: int, packet: int) -> bool:
        return (packet + 1) * self.packet_bytes >= self.sizes[flow]
