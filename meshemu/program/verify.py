"""Check that a Program is sound before anything runs or times it.

What is checked: arrays fit one another; every message is sent once and received once, by its ends; messages that share
an op are a sound multicast or reduction in the network; ops at interface processors name one of their units;
dependencies stay on a device and, with messages, form no cycle; ops of a collective that touch one chunk of a buffer
(other than two sends) are ordered by dependencies and messages, so that every order of execution gives one result; and
in one such order every collective does what its kind says, each contribution exactly once.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from meshemu.errors import ScheduleError
from meshemu.program.contributions import KINDS, Moves, Step, check_exactly_once, pieces_of
from meshemu.program.hazards import Hazards
from meshemu.program.interfaces import INTERFACE_CLASSES
from meshemu.program.ir import CollectiveUse, OpKind, Program
from meshemu.program.order import describe_op, first_unordered, levels, precedence
from meshemu.program.trees import check_trees

__all__ = ["verify"]

_OPS = (
    "kind", "device", "label", "op_class", "number_format", "flops", "read_bytes", "write_bytes", "message",
    "collective", "chunk_lo", "chunk_hi", "shape", "producer", "producer_bytes", "interface",
)
_MESSAGES = ("src", "dst", "size_bytes", "send_op", "recv_op")


def verify(program: Program) -> None:
    """Raise ScheduleError, naming op, device and message, unless the Program holds all its invariants."""
    _check_arrays(program)
    _check_messages(program)
    before, after = precedence(program)
    _check_dependencies(program)
    level = levels(before, after, program.n_ops, lambda op: describe_op(program, op))
    writer = _writers(program)
    conflicts = [
        _check_collective(program, index, moves, message, writer[message], level)
        for index, moves, message in _moves(program, writer)
    ]
    if conflicts:
        first, then = (np.concatenate(ops) for ops in zip(*conflicts, strict=True))
        race = first_unordered(before, after, level, first, then)
        if race >= 0:
            raise ScheduleError(
                f"{describe_op(program, first[race])} and {describe_op(program, then[race])} touch one chunk of "
                f"collective {program.collective[first[race]]}, but nothing orders them"
            )


def _check_arrays(p: Program) -> None:
    for columns, count in ((_OPS, p.n_ops), (_MESSAGES, p.n_messages)):
        for name in columns:
            if len(getattr(p, name)) != count:
                raise ScheduleError(f"Program.{name} has {len(getattr(p, name))} entries instead of {count}")
    ptr = p.dep_ptr
    if len(ptr) != p.n_ops + 1 or ptr[0] != 0 or ptr[-1] != len(p.dep) or (np.diff(ptr) < 0).any():
        raise ScheduleError(f"Program.dep_ptr does not index {len(p.dep)} dependencies of {p.n_ops} ops")
    limits = {
        "kind": (0, len(OpKind)), "label": (0, len(p.labels)), "op_class": (0, len(p.op_classes)),
        "number_format": (0, len(p.number_formats)), "device": (0, p.n_devices), "message": (-1, p.n_messages),
        "collective": (-1, len(p.collectives)), "dep": (0, p.n_ops), "src": (0, p.n_devices),
        "dst": (0, p.n_devices), "send_op": (0, p.n_ops), "recv_op": (0, p.n_ops),
        "flops": (0, None), "read_bytes": (0, None), "write_bytes": (0, None), "size_bytes": (1, None),
        "shape": (-1, len(p.shapes)), "producer": (-1, p.n_ops), "producer_bytes": (0, None),
        "interface": (-1, None),
    }
    for name, (low, high) in limits.items():
        column = getattr(p, name)
        wrong = (column < low) if high is None else (column < low) | (column >= high)
        if wrong.any():
            at, row = int(np.argmax(wrong)), "message" if name in _MESSAGES else "dep" if name == "dep" else "op"
            bound = f"at least {low}" if high is None else f"in [{low}, {high})"
            raise ScheduleError(f"{row} {at}: {name} = {column[at]} must be {bound}")
    _check_producers(p)
    _check_interfaces(p)
    for index, use in enumerate(p.collectives):
        _check_use(index, use, p.n_devices)


def _check_producers(p: Program) -> None:
    """Producers come earlier on the same device, and what is read alone is no more than what they made."""
    op = np.flatnonzero(p.producer >= 0)
    made, size = p.producer[op], p.producer_bytes[op]
    taken = np.zeros(p.n_ops, np.int64)
    np.add.at(taken, made, size)
    fits = (size <= p.read_bytes[op]) & (taken[made] <= p.write_bytes[made])
    before = (made < op) & (p.device[made] == p.device[op])
    wrong = ~(fits & before & (p.kind[op] == OpKind.COMPUTE) & (p.kind[made] == OpKind.COMPUTE))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ScheduleError(
            f"{describe_op(p, int(op[at]))} cannot alone read {size[at]} bytes that "
            f"{describe_op(p, int(made[at]))} made"
        )


def _check_interfaces(p: Program) -> None:
    """INTERFACE ops, and no others, name an interface processor, which is beside one device, and one of its units."""
    at_interface = p.kind == OpKind.INTERFACE
    known = np.array([name in INTERFACE_CLASSES for name in p.op_classes] or [False])
    for wrong, why in (
        (at_interface != (p.interface >= 0), "must name an interface processor if, and only if, it is of one"),
        (at_interface & ~known[p.op_class], f"must be of a class {', '.join(INTERFACE_CLASSES)}"),
        (at_interface & ((p.flops > 0) | (p.message >= 0) | (p.collective >= 0)), "moves bytes and does nothing else"),
    ):
        if wrong.any():
            raise ScheduleError(f"{describe_op(p, int(np.argmax(wrong)))} {why}")
    op = np.flatnonzero(at_interface)
    _, first, which = np.unique(p.interface[op], return_index=True, return_inverse=True)
    apart = p.device[op] != p.device[op[first]][which]
    if apart.any():
        at = int(np.argmax(apart))
        raise ScheduleError(
            f"{describe_op(p, int(op[at]))}: interface processor {p.interface[op[at]]} is beside device "
            f"{p.device[op[first[which[at]]]]}"
        )


def _check_use(use_index: int, use: CollectiveUse, n_devices: int) -> None:
    n = len(use.devices)
    if use.kind not in KINDS:
        raise ScheduleError(f"collective {use_index} {use.label!r}: unknown kind {use.kind!r}")
    if len(set(use.devices)) != n or not all(0 <= device < n_devices for device in use.devices):
        raise ScheduleError(f"collective {use_index} {use.label!r}: devices are not {n} different ones")
    if (use.root >= 0) != (use.kind in ("broadcast", "reduce")) or use.root >= n or use.n_chunks < 1:
        raise ScheduleError(
            f"collective {use_index} {use.label!r}: root {use.root} and {use.n_chunks} chunks do not fit a "
            f"{use.kind} of {n} devices"
        )


def _check_messages(p: Program) -> None:
    number = np.arange(p.n_messages)
    for kind, op, end, verb in ((OpKind.SEND, p.send_op, p.src, "sent"), (OpKind.RECV, p.recv_op, p.dst, "received")):
        wrong = (p.kind[op] != kind) | (p.device[op] != end) | (p.message[op] != _first_of_op(op, number))
        if wrong.any():
            at = int(np.argmax(wrong))
            raise ScheduleError(f"message {at} is to be {verb} on device {end[at]}, not by {describe_op(p, op[at])}")
        extra = p.kind == kind
        extra[op] = False
        if extra.any():
            raise ScheduleError(f"{describe_op(p, int(np.argmax(extra)))} belongs to no message or repeats one")
    check_trees(p)
    if (p.src == p.dst).any():
        at = int(np.argmax(p.src == p.dst))
        raise ScheduleError(f"message {at} goes from device {p.src[at]} to itself")
    stray = (p.kind == OpKind.COMPUTE) & (p.message >= 0)
    if stray.any():
        raise ScheduleError(f"{describe_op(p, int(np.argmax(stray)))} is no op of a message")


def _first_of_op(op: NDArray[np.int64], number: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first message of the run of messages that share an op, for every message."""
    starts = np.concatenate(([True], op[1:] != op[:-1]))[: len(op)]
    return np.asarray(number[starts][np.cumsum(starts) - 1])


def _check_dependencies(p: Program) -> None:
    waiting = np.repeat(np.arange(p.n_ops), np.diff(p.dep_ptr))
    apart = p.device[p.dep] != p.device[waiting]
    if apart.any():
        at = int(np.argmax(apart))
        raise ScheduleError(f"{describe_op(p, waiting[at])} waits for {describe_op(p, p.dep[at])} of another device")
    combine = np.flatnonzero((p.kind == OpKind.REDUCE) & (p.message >= 0))
    awaited = np.full(p.n_ops, -1, np.int64)
    awaited[combine] = p.recv_op[p.message[combine]]
    loose = awaited >= 0
    loose[waiting[p.dep == awaited[waiting]]] = False
    if loose.any():
        op = int(np.argmax(loose))
        raise ScheduleError(f"{describe_op(p, op)} does not wait for {describe_op(p, awaited[op])}")
    named = p.message[p.recv_op[p.message[combine]]]
    if (named != p.message[combine]).any():
        op = int(combine[np.argmax(named != p.message[combine])])
        raise ScheduleError(f"{describe_op(p, op)} combines a sum of the network, so it names its first message")
    times = np.bincount(p.message[combine], minlength=p.n_messages)
    if (times > 1).any():
        raise ScheduleError(f"message {int(np.argmax(times))} is reduced {times.max()} times instead of once")


def _writers(p: Program) -> NDArray[np.int64]:
    """Return the op of each message that changes a buffer: its REDUCE, else its RECV."""
    by_recv = np.arange(p.n_ops)
    combine = np.flatnonzero((p.kind == OpKind.REDUCE) & (p.message >= 0))
    by_recv[p.recv_op[p.message[combine]]] = combine
    return by_recv[p.recv_op]


def _moves(p: Program, writer: NDArray[np.int64]) -> Iterator[tuple[int, Moves, NDArray[np.int64]]]:
    """(collective, its messages as moves between participants, their message ids)."""
    for name in ("collective", "chunk_lo", "chunk_hi"):
        column = getattr(p, name)
        sent = column[p.send_op]
        wrong = (column[p.recv_op] != sent) | (column[writer] != sent)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise ScheduleError(f"message {at}: {name} of its ops differs from {describe_op(p, p.send_op[at])}")
    lone = (p.collective >= 0) & (p.message < 0)
    if lone.any():
        raise ScheduleError(f"{describe_op(p, int(np.argmax(lone)))} is in a collective but has no message")
    owner = p.collective[p.send_op]
    by_collective = np.argsort(owner, kind="stable")
    bounds = np.searchsorted(owner[by_collective], np.arange(len(p.collectives) + 1))
    for index, use in enumerate(p.collectives):
        message = by_collective[bounds[index] : bounds[index + 1]]
        participant = np.full(p.n_devices, -1, np.int64)
        participant[list(use.devices)] = np.arange(len(use.devices))
        send = p.send_op[message]
        moves = Moves(
            participant[p.src[message]], participant[p.dst[message]], p.chunk_lo[send].astype(np.int64),
            p.chunk_hi[send].astype(np.int64), p.kind[writer[message]] == OpKind.REDUCE,
        )
        wrong = (np.minimum(moves.src, moves.dst) < 0) | (moves.lo < 0) | (moves.lo >= moves.hi)
        wrong |= moves.hi > use.n_chunks
        if wrong.any():
            at = int(np.argmax(wrong))
            raise ScheduleError(
                f"{describe_op(p, send[at])} with chunks {moves.lo[at]}:{moves.hi[at]} does not fit collective "
                f"{index} {use.label!r} of {len(use.devices)} devices and {use.n_chunks} chunks"
            )
        overwrites = (p.message[p.recv_op[message]] != message) & ~moves.reduce
        if overwrites.any():
            recv = p.recv_op[message[np.argmax(overwrites)]]
            raise ScheduleError(f"{describe_op(p, int(recv))} gets a sum of the network that no REDUCE combines")
        yield index, moves, message


def _check_collective(
    p: Program, index: int, moves: Moves, message: NDArray[np.int64], writer: NDArray[np.int64],
    level: NDArray[np.int32],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Replay one collective in the order of levels; return the pairs of ops (first, then) that must keep it."""
    use = p.collectives[index]
    send = p.send_op[message]
    steps = _steps(level[send], level[writer])
    try:
        cut = pieces_of(use.kind, len(use.devices), use.n_chunks, moves)
        check_exactly_once(
            use.kind, len(use.devices), use.n_chunks, use.root, moves, steps, cut,
            name=lambda participant: f"device {use.devices[participant]}",
            move_name=lambda move: f"{describe_op(p, int(writer[move]))} from device {p.src[message[move]]}",
        )
    except ScheduleError as error:
        raise ScheduleError(f"collective {index} {use.label!r}: {error}") from None
    (read, n_read), (written, n_written) = (cut.ranges(access) for access in moves.accesses)
    buffers = Hazards(cut.n_pieces)
    forked, merged = (p.message[op] != message for op in (send, p.recv_op[message]))
    pairs = []
    for sent, received in steps:
        for access, op, start, length, which in (
            (buffers.read, send, read, n_read, sent[~forked[sent]]),
            (buffers.write, writer, written, n_written, received[~merged[received]]),
        ):  # fmt: skip
            waiting, on = access(op[which], start[which], length[which])
            pairs.append((on[on >= 0], op[which][waiting[on >= 0]]))
    first, then = (np.concatenate([pair[side] for pair in pairs] or [np.empty(0, np.int64)]) for side in (0, 1))
    return first, then


def _steps(sent_at: NDArray[np.int32], received_at: NDArray[np.int32]) -> list[Step]:
    """Moves by the level of their send and of their last op."""
    times = np.unique(np.concatenate((sent_at, received_at)))
    halves = []
    for at in (sent_at, received_at):
        order = np.argsort(at, kind="stable")
        halves.append(np.split(order, np.searchsorted(at[order], times[1:])))
    return list(zip(*halves, strict=True))
