"""The model of back-pressure mode in plain Python: its specification, slow and simple.

Whenever anything happens anywhere, every device is looked at. Credits are counted, and come back by explicit events.
Ops are those of `network.reference`. At one time first ops end and messages arrive, then units take ops by op id, then
messages are handed over by message id, then devices inject and allocate.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from meshemu.network.reference import ARRIVE, END, Reference, ReferenceOp

__all__ = ["ReferenceChannel", "ReferenceHop", "RouterReference", "RouterRules"]


HAND_OVER, CREDIT, LOOK = 3, 4, 5


@dataclass(frozen=True)
class RouterRules:
    """What all routers have in common; packet_flits: of the longest packet; restart_ps: of the pipeline, for a packet
    that comes to the front.
    """

    cycle_ps: int
    restart_ps: int
    packet_flits: int
    n_classes: int
    n_vcs: int
    cut_through: bool


@dataclass
class ReferenceChannel:
    """A channel of num / den ps per flit from a device to a device (None: ejection). The rest changes.

    counts: flits carried. turn: the input whose turn it is to be granted, at an injection channel the message class.
    As an input: ask_ps, when it may ask again; the output and the virtual channel whose turn it is; n_held, flits
    that it holds.
    """

    num: int
    den: int
    onward_ps: int
    credit_ps: int
    slots: int
    near: int
    far: int | None
    injects: bool
    is_link: bool
    free_ps: int = 0
    flits: int = 0
    busy: list[tuple[int, int]] = field(default_factory=list)
    wait_ps: int = 0
    packets: int = 0
    max_queue: int = 0
    turn: int = 0
    ask_ps: int = 0
    turn_out: int = 0
    turn_vc: int = 0
    n_held: int = 0


@dataclass(frozen=True)
class ReferenceHop:
    """A channel, and the virtual channels low <= vc < high of a class that a packet may take there."""

    channel: int
    low: int
    high: int


@dataclass
class _Flit:
    """A flit in a buffer; hop: the next of its message; left: flits of its packet, itself included."""

    message: int
    hop: int
    left: int
    ready_ps: int


@dataclass
class _Buffer:
    """A virtual channel. held: by a packet that is being sent into it; out_vc: where the packet in front goes on;
    front_ps: when that is through the pipeline again, if it came to the front behind another.
    """

    credits: int
    held: bool = False
    flits: deque[_Flit] = field(default_factory=deque)
    out_vc: int | None = None
    front_ps: int = 0
    turn: int = 0


@dataclass
class _Queue:
    """Messages of one class that wait at an injection channel; of the first: flits sent, and its packet."""

    messages: deque[int] = field(default_factory=deque)
    sent: int = 0
    left: int = 0
    vc: int | None = None
    turn: int = 0


class RouterReference(Reference):
    """Simulates messages (flits, hops, class, ready time or None if a SEND hands it over) and ops."""

    def __init__(
        self,
        rules: RouterRules,
        channels: Sequence[ReferenceChannel],
        flits: Sequence[int],
        hops: Sequence[Sequence[ReferenceHop]],
        message_class: Sequence[int],
        ready_ps: Sequence[int | None],
        ops: Sequence[ReferenceOp],
    ) -> None:
        self.rules = rules
        self.channels = channels
        self.hops_of = hops
        self.message_class = message_class
        self.flits = flits
        self.missing_flits = list(flits)
        self.handed: dict[int, int] = {}
        self.passed: set[int] = set()
        self.queues: defaultdict[tuple[int, int], _Queue] = defaultdict(_Queue)
        self.buffers = {
            (c, vc): _Buffer(channel.slots) for c, channel in enumerate(channels) for vc in range(rules.n_vcs)
        }
        self.inputs: defaultdict[int, list[int]] = defaultdict(list)
        self.outputs: defaultdict[int, list[int]] = defaultdict(list)
        for c, channel in enumerate(channels):
            if channel.far is not None:
                self.inputs[channel.far].append(c)
            if not channel.injects:
                self.outputs[channel.near].append(c)
        super().__init__([], flits, [[hop.channel for hop in way] for way in hops], ready_ps, ops, 1)

    def _hand_over(self, time: int, message: int) -> None:
        self._later(time, HAND_OVER, message)

    def _later(self, time: int, what: int, first: int = 0, second: int = 0) -> None:
        self._push(time, what, first, second, what)

    def _enter(self, time: int, flow: int, packet: int, number: int, tail: int) -> None:
        """An event that is not about ops: `number` says what, `flow` and `packet` to what."""
        if number == HAND_OVER:
            self.handed[flow] = time
            self.queues[self.hops_of[flow][0].channel, self.message_class[flow]].messages.append(flow)
            self._later(time, LOOK)
        elif number == CREDIT:
            self.buffers[flow, packet].credits += 1
            self._later(time, LOOK)
        elif not self.events or self.events[0][:2] != (time, LOOK):
            for device in set(self.inputs) | set(self.outputs):
                self._inject(time, device)
                self._allocate(time, device)

    def _inject(self, time: int, device: int) -> None:
        for c in self.inputs[device]:
            channel = self.channels[c]
            if not channel.injects or channel.free_ps > time:
                continue
            n = self.rules.n_classes
            for message_class in [(channel.turn + k) % n for k in range(n)]:
                if self._inject_class(time, c, message_class):
                    channel.turn = (message_class + 1) % n
                    break

    def _inject_class(self, time: int, c: int, message_class: int) -> bool:
        """Send a flit of the first message of a class; False if there is none that can be sent."""
        queue, channel = self.queues[c, message_class], self.channels[c]
        if not queue.messages:
            return False
        message = queue.messages[0]
        if queue.vc is None:
            left = min(self.rules.packet_flits, self.flits[message] - queue.sent)
            per_class = self.rules.n_vcs // self.rules.n_classes
            first_vc = message_class * per_class
            vc = self._open(c, range(first_vc, first_vc + per_class), queue.turn, left)
            if vc is None:
                return False
            queue.vc, queue.left, queue.turn = vc, left, vc + 1
            channel.packets += 1
        elif self.buffers[c, queue.vc].credits == 0:
            return False
        if queue.sent == 0:
            self.depart[message] = time
            if time > self.handed[message]:
                channel.wait_ps += time - self.handed[message]
                channel.max_queue = max(channel.max_queue, len(queue.messages))
        end = self._send(time, c, queue.vc, _Flit(message, 1, queue.left, 0))
        queue.sent += 1
        queue.left -= 1
        if queue.left == 0:
            queue.vc = None
        if queue.sent == self.flits[message]:
            queue.messages.popleft()
            queue.sent = 0
            if message in self.send_op:
                self._push(end, END, self.send_op[message])
        return True

    def _allocate(self, time: int, device: int) -> None:
        """One round: inputs ask, outputs grant, inputs accept."""
        inputs, outputs = self.inputs[device], self.outputs[device]
        asked: dict[tuple[int, int], tuple[int, int]] = {}
        for port, c in enumerate(inputs):
            channel = self.channels[c]
            if channel.ask_ps > time or not channel.n_held:
                continue
            for vc in _turns(range(self.rules.n_vcs), channel.turn_vc):
                found = self._wish(time, c, vc)
                if found is not None and (port, outputs.index(found[0])) not in asked:
                    asked[port, outputs.index(found[0])] = vc, found[1]
                    channel.ask_ps = time + self.rules.cycle_ps
                    self._later(channel.ask_ps, LOOK)
        granted: defaultdict[int, list[int]] = defaultdict(list)
        for number, out in enumerate(outputs):
            ports = [port for port in _turns(range(len(inputs)), self.channels[out].turn) if (port, number) in asked]
            if ports:
                granted[ports[0]].append(number)
        for port in sorted(granted):
            c = inputs[port]
            number = next(n for n in _turns(range(len(outputs)), self.channels[c].turn_out) if n in granted[port])
            vc, out_vc = asked[port, number]
            self.channels[outputs[number]].turn = port + 1
            self.channels[c].turn_out = number + 1
            self.channels[c].turn_vc = vc + 1
            self._move(time, device, c, vc, outputs[number], out_vc)

    def _wish(self, time: int, c: int, vc: int) -> tuple[int, int] | None:
        """Over which output, and in which virtual channel there, the flit in front could go on now."""
        buffer = self.buffers[c, vc]
        if not buffer.flits or max(buffer.flits[0].ready_ps, buffer.front_ps) > time:
            return None
        flit = buffer.flits[0]
        hop = self.hops_of[flit.message][flit.hop]
        output = self.channels[hop.channel]
        if output.free_ps > time:
            return None
        if output.far is None:
            return hop.channel, 0
        if buffer.out_vc is not None:
            return (hop.channel, buffer.out_vc) if self.buffers[hop.channel, buffer.out_vc].credits else None
        first_vc = self.message_class[flit.message] * (self.rules.n_vcs // self.rules.n_classes)
        vcs = range(first_vc + hop.low, first_vc + hop.high)
        out_vc = self._open(hop.channel, vcs, buffer.turn, flit.left)
        return None if out_vc is None else (hop.channel, out_vc)

    def _open(self, c: int, vcs: range, turn: int, left: int) -> int | None:
        """The first of `vcs`, by turns, that a packet of `left` flits can take now."""
        needed = left if self.rules.cut_through else 1
        free = (vc for vc in _turns(vcs, turn) if not self.buffers[c, vc].held)
        return next((vc for vc in free if self.buffers[c, vc].credits >= needed), None)

    def _move(self, time: int, device: int, c: int, vc: int, out: int, out_vc: int) -> None:
        buffer, output = self.buffers[c, vc], self.channels[out]
        flit = buffer.flits[0]
        if buffer.out_vc is None:
            buffer.turn = out_vc + 1
            self._note_head(time, device, c, out, flit)
        buffer.flits.popleft()
        self.channels[c].n_held -= 1
        buffer.out_vc = out_vc if flit.left > 1 else None
        if flit.left == 1:
            buffer.front_ps = time + self.rules.restart_ps
            self._later(buffer.front_ps, LOOK)
        self._later(time + self.channels[c].credit_ps, CREDIT, c, vc)
        if output.far is not None:
            self._send(time, out, out_vc, _Flit(flit.message, flit.hop + 1, flit.left, 0))
            return
        arrival = self._carry(time, out) + output.onward_ps
        self.missing_flits[flit.message] -= 1
        if self.missing_flits[flit.message] == 0:
            self._push(arrival, ARRIVE, flit.message)

    def _note_head(self, time: int, device: int, c: int, out: int, flit: _Flit) -> None:
        output, wait = self.channels[out], time - flit.ready_ps
        output.packets += 1
        if wait > 0:
            waiting = sum(
                1
                for into in self.inputs[device]
                for vc in range(self.rules.n_vcs)
                for buffer in [self.buffers[into, vc]]
                if buffer.flits
                and buffer.out_vc is None
                and buffer.flits[0].ready_ps < time
                and self.hops_of[buffer.flits[0].message][buffer.flits[0].hop].channel == out
            )
            output.max_queue = max(output.max_queue, waiting)
        if not self.channels[c].is_link:
            wait = 0 if flit.message in self.passed else time - self.handed[flit.message] - self._lead(c)
            self.passed.add(flit.message)
        output.wait_ps += wait

    def _lead(self, c: int) -> int:
        """What an added injection channel takes a flit that does not wait."""
        channel = self.channels[c]
        return channel.num + channel.onward_ps

    def _send(self, time: int, c: int, vc: int, flit: _Flit) -> int:
        """Send a flit into a buffer; returns when it has left."""
        end = self._carry(time, c)
        buffer = self.buffers[c, vc]
        buffer.credits -= 1
        buffer.held = flit.left > 1
        flit.ready_ps = end + self.channels[c].onward_ps
        buffer.flits.append(flit)
        self.channels[c].n_held += 1
        self._later(flit.ready_ps, LOOK)
        return end

    def _carry(self, time: int, c: int) -> int:
        channel = self.channels[c]
        took = -(-(channel.flits + 1) * channel.num // channel.den) + (-channel.flits * channel.num // channel.den)
        channel.flits += 1
        channel.free_ps = time + took
        channel.busy.append((time, channel.free_ps))
        self._later(channel.free_ps, LOOK)
        return channel.free_ps


def _turns(numbers: range, turn: int) -> list[int]:
    """The numbers from `turn` around."""
    return [n for n in numbers if n >= turn] + [n for n in numbers if n < turn]
