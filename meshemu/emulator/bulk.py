"""What is recorded of the first step op by op, bin by bin and message by message, as far as a budget of bytes goes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.emulator.timed_step import TimedStep
from meshemu.mesh import Order, message_routes
from meshemu.program.trees import message_trees
from meshemu.record.step_record import MessageRecord
from meshemu.record.writer import RunWriter
from meshemu.units import format_bytes

__all__ = ["ALL_BUT_MESSAGES", "Bulk", "BulkOptions"]


@dataclass(frozen=True)
class BulkOptions:
    """budget_bytes: for all of it together, before compression; None: without bound. messages: whether messages are
    wanted too.
    """

    budget_bytes: int | None = None
    messages: bool = False


ALL_BUT_MESSAGES = BulkOptions()


@dataclass(frozen=True, eq=False)
class Bulk:
    """Which tables of a timed step are recorded: each is whole or left out, in this order. left_out: why, one sentence
    each.
    """

    ops: bool
    timeline: bool
    messages: bool
    left_out: tuple[str, ...]

    @classmethod
    def within(cls, timed: TimedStep, options: BulkOptions) -> "Bulk":
        """As many tables as the budget has room for."""
        sizes = {"ops": _ops_bytes(timed), "timeline": timed.timing.timeline.link_busy_ps.nbytes}
        if options.messages:
            sizes["messages"] = _messages_bytes(timed)
        kept, left_out = _fitting(sizes, options.budget_bytes)
        return cls("ops" in kept, "timeline" in kept, "messages" in kept, left_out)

    def write(self, writer: RunWriter, timed: TimedStep, order: Order) -> None:
        """Write them; `order`: in which messages were routed."""
        timing = timed.timing
        if self.ops:
            writer.write_ops(timing.ops)
        if self.timeline:
            writer.write_timeline(timing.timeline)
        if self.messages:
            hops = _hops(timed, order)
            writer.write_messages(MessageRecord(timing.depart_ps, timing.arrival_ps, hops))


def _fitting(sizes: dict[str, int], budget_bytes: int | None) -> tuple[frozenset[str], tuple[str, ...]]:
    """The tables that fit one after the other, and what is said of the others."""
    kept = dict(_taken(sizes, budget_bytes))
    left_out = (
        f"recorded: no {name}, their {format_bytes(size)} exceed what output.record_budget = "
        f"{format_bytes(budget_bytes or 0)} leaves"
        for name, size in sizes.items()
        if name not in kept
    )
    return frozenset(kept), tuple(left_out)


def _taken(sizes: dict[str, int], budget_bytes: int | None) -> Iterator[tuple[str, int]]:
    spent_bytes = 0
    for name, size in sizes.items():
        if budget_bytes is None or spent_bytes + size <= budget_bytes:
            spent_bytes += size
            yield name, size


def _ops_bytes(timed: TimedStep) -> int:
    return timed.timing.ops.start_ps.nbytes + timed.timing.ops.end_ps.nbytes


def _messages_bytes(timed: TimedStep) -> int:
    hops_bytes = np.dtype(np.int32).itemsize
    return timed.timing.depart_ps.nbytes + timed.timing.arrival_ps.nbytes + hops_bytes * timed.program.n_messages


def _hops(timed: TimedStep, order: Order) -> NDArray[np.int32]:
    """Links on the route of every message, int32[n_messages]; in a tree, those from its source to its target."""
    program = timed.program
    in_tree = ~message_trees(program).alone
    way = message_routes(timed.mesh, program.src, program.dst, program.size_bytes, order, stays=in_tree)
    return np.diff(way.route_ptr)[way.index].astype(np.int32)
