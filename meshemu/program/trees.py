"""The messages of a Program that travel together: multicasts and reductions in the network."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.errors import InputError, ScheduleError
from meshemu.mesh import Mesh, Order, Trees, trees
from meshemu.program.ir import Program
from meshemu.program.order import describe_op

__all__ = ["MessageTrees", "check_trees", "message_trees", "routed_trees"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class MessageTrees:
    """Groups of messages that share a SEND (outward: a multicast) or a RECV (a reduction in the network).

    alone: bool[n_messages], messages in no tree. member: int64[n_members], message ids, those of a tree in a row; tree:
    int64[n_members], the tree of each. first: int64[n_trees], the first message of each, which names the tree;
    outward: bool[n_trees]; root: int64[n_trees], the device that sends, or receives, for all.
    """

    alone: NDArray[np.bool_]
    member: Ints
    tree: Ints
    first: Ints
    outward: NDArray[np.bool_]
    root: Ints

    @property
    def n_trees(self) -> int:
        """Number of trees."""
        return len(self.first)


def message_trees(program: Program) -> MessageTrees:
    """Find the trees of a Program that `verify` accepts."""
    p = program
    forks, merges = _shared(p.send_op), _shared(p.recv_op)
    number = np.arange(p.n_messages)
    first = np.flatnonzero((forks & (p.message[p.send_op] == number)) | (merges & (p.message[p.recv_op] == number)))
    member = np.flatnonzero(forks | merges)
    return MessageTrees(
        alone=~(forks | merges),
        member=member,
        tree=np.searchsorted(first, member, side="right") - 1,
        first=first,
        outward=forks[first],
        root=np.where(forks[first], p.src[first], p.dst[first]).astype(np.int64),
    )


def _shared(op: Ints) -> NDArray[np.bool_]:
    """Which messages have an op in common with another: these stand in a row."""
    follows = np.zeros(len(op) + 1, np.bool_)  # entry i: whether message i has the op of the one before
    np.equal(op[1:], op[:-1], out=follows[1:-1])
    return np.asarray(follows[1:] | follows[:-1])


def routed_trees(program: Program, mesh: Mesh, found: MessageTrees, order: Order = "xy") -> Trees:
    """Route the trees of a Program.

    Raises InputError, naming the first tree, where the routers of the mesh cannot do what it needs, and as
    `mesh.trees` does.
    """
    for flag, able, key, what in (
        (True, mesh.multicast, "mesh.multicast", "a multicast"),
        (False, mesh.reduction, "mesh.reduction", "a reduction in the network"),
    ):
        if not able and (found.outward == flag).any():
            message = int(found.first[np.argmax(found.outward == flag)])
            raise InputError(
                f"message {message} ({program.labels[program.label[program.send_op[message]]]!r}) is {what}, but the "
                f"routers of this system have none: {key} = false"
            )
    ends = np.where(found.outward[found.tree], program.dst[found.member], program.src[found.member])
    return trees(mesh, found.root, found.outward, ends, found.tree, order)


def check_trees(program: Program) -> None:
    """Raise ScheduleError unless messages that share an op have one size, one way and different devices at their other
    ends.
    """
    p = program
    follows_send, follows_recv = (op[1:] == op[:-1] for op in (p.send_op, p.recv_op))
    if not follows_send.any() and not follows_recv.any():
        return
    follows = follows_send | follows_recv
    for wrong, why in (
        (follows & (p.size_bytes[1:] != p.size_bytes[:-1]), "differ in size"),
        (follows_send & follows_recv, "share both SEND and RECV"),
        (follows_send[:-1] & follows_recv[1:] | follows_recv[:-1] & follows_send[1:], "make a tree with two roots"),
    ):
        if wrong.any():
            at = int(np.argmax(wrong))
            raise ScheduleError(f"messages {at} and {at + 1}, which share an op with a neighbour, {why}")
    for op, end in ((p.send_op, p.dst), (p.recv_op, p.src)):
        order = np.lexsort((end, op))
        twice = (op[order][1:] == op[order][:-1]) & (end[order][1:] == end[order][:-1])
        if twice.any():
            at = int(order[np.argmax(twice)])
            raise ScheduleError(f"{describe_op(p, int(op[at]))} has two messages with device {end[at]}")
