"""The timing engine of one rank: the links and devices that the rank owns, their clocks and pending events.

The model. Virtual time is an int64 count of picoseconds. A message of S bytes follows its route as packets of at most P
bytes; packet k covers bytes k P <= x < min((k + 1) P, S). On a link of `num / den` ps per byte it takes
C(end) - C(begin), where C(x) = ceil(x num / den), so that the packets of a message take exactly as long as the message.

* Virtual cut-through: a packet's head enters a link at start = max(head arrival, link free). The link is busy until
  end = max(start + serialisation, arrival of the tail from the link before). Head and tail come out one latency after
  start and end. A message has arrived when its last tail leaves its last link.
* Links are FIFO by head arrival, ties go to the lower (message id, packet index).
* COMPUTE and REDUCE ops run one at a time on their unit of their device (`program.units`), in the order of (ready time,
  op id); where a device has several units that combine, a REDUCE op takes the one that is free first, of these the
  first. An op of duration 0 takes no unit, and what has none runs beside all else. A SEND starts when it is ready and
  ends when its tail has left onto the first link. A RECV starts when its dependencies have ended and ends when the
  message is there too.

A `Region` grows its buffers; all else happens in `kernels`.
"""

import numpy as np

from meshemu.network import kernels
from meshemu.network import state as fields
from meshemu.network.events import EVENT, HEADER, NEVER, ROW, Ints
from meshemu.network.link_statistics import widen_all_bins
from meshemu.network.ops import begin
from meshemu.network.shares import Share
from meshemu.network.state import Network, State, Work

__all__ = ["FIRST_SHIFT", "NO_ROWS", "Region"]

FIRST_SHIFT = 10  # the narrowest timeline bin is 2**10 = 1024 ps
NO_ROWS = np.zeros((0, ROW), np.int64)


class Region:
    """State of one rank; `state` holds zeros for all that other ranks own.

    share: the ops of the rank, whose `waiting` the region takes over and counts down; n_ranks: those that it exchanges
    events with, itself included, 0 if it does not; n_bins: number of timeline bins, 0 for none.
    """

    def __init__(
        self,
        network: Network,
        work: Work,
        share: Share,
        *,
        n_devices: int,
        packet_bytes: int,
        rank: int,
        n_ranks: int,
        n_bins: int,
    ) -> None:
        n_links, n_messages, n_ops = len(network.num), len(work.size), len(work.kind)
        self.network = network
        self.work = work
        self.packet_bytes = packet_bytes
        self.rank = rank
        self.state = State(
            link=_idle_links(n_links),
            unit_free=np.zeros((n_devices, max(int(work.unit.max(initial=0)) + 1, work.combining)), np.int64),
            depart=np.zeros(n_messages, np.int64),
            arrival=np.zeros(n_messages, np.int64),
            waiting=share.waiting,
            start=np.zeros(n_ops, np.int64),
            end=np.empty(n_ops, np.int64),
            busy_bins=np.zeros((n_links, n_bins), np.int64),
            heap=np.empty((n_ops + 1024, EVENT), np.int64),
            out=np.empty((1024 + n_ranks, ROW), np.int64),
            queue=_chained(np.empty((1024, 2), np.int64), 0),
            line=_chained(np.empty((1024, 5), np.int64), 0),
            input=np.zeros((len(network.branch), fields.INPUT_FIELDS), np.int64),
            stack=np.empty(n_ops + 1, np.int64),
            scalar=np.zeros(fields.SCALARS, np.int64),
        )
        self.state.scalar[fields.ROOM] = n_ops
        self.state.scalar[[fields.OUT, fields.HEADERS]] = n_ranks
        self.state.scalar[fields.HORIZON] = NEVER
        self.state.out[:n_ranks, 2] = HEADER
        self.state.out[:n_ranks, 5] = np.where(np.arange(n_ranks) == rank, 0, NEVER)
        begin(work, self.state, share.idle)

    def run(self, rows: Ints = NO_ROWS) -> bool:
        """Take in what other ranks say, all rows that they have for this one; run the events that nothing of theirs can
        come before. Returns whether these were the last of all ranks.
        """
        network, work, packet_bytes, rank = self.network, self.work, self.packet_bytes, self.rank
        while (reached := kernels.run(network, work, self.state, rows, packet_bytes, rank)) < 0:
            self._grow(len(rows))
            if reached == kernels.FULL:
                rows = NO_ROWS
        return reached == NEVER

    def finish(self) -> None:
        """Complete the statistics of the links; call it when no rank has events left."""
        while not kernels.finish(self.network, self.work, self.state, self.packet_bytes):
            self._grow(0)

    def outgoing(self) -> Ints:
        """Rows [time, key, where, tail, rank, -] that crossed to other ranks when it last ran; a view.

        They are behind a header for each of n_ranks, a row [-, -, -, -, -, effect]: a time before which nothing that is
        pending on this rank, or none of the rows for another one, has an effect elsewhere (0 before the first `run`).
        """
        return self.state.out[: self.state.scalar[fields.OUT]]

    def widen_bins(self, end: int) -> int:
        """Make the bins of all links as wide as it takes to hold 0 <= t < end; returns their width in ps."""
        bins, shift = self.state.busy_bins, FIRST_SHIFT
        while bins.shape[1] and bins.shape[1] << shift < end:
            shift += 1
        widen_all_bins(self.state.link, bins, shift)
        return 1 << shift

    def _grow(self, n_rows: int) -> None:
        """Make room for n_rows more events, and double whichever buffer made the kernel stop."""
        state = self.state
        needed = int(state.scalar[fields.HEAP] + state.scalar[fields.ROOM]) + n_rows + kernels.EVENTS_OF_ONE
        heap, out, queue, line = state.heap, state.out, state.queue, state.line
        if needed > len(heap):
            heap = _enlarged(heap, 2 * needed)
        if state.scalar[fields.OUT] + kernels.ROWS_OF_ONE > len(out):
            out = _enlarged(out, 2 * len(out))
        if state.scalar[fields.QUEUE_FREE] < 0:
            state.scalar[fields.QUEUE_FREE] = len(queue)
            queue = _chained(_enlarged(queue, 2 * len(queue)), len(queue))
        if state.scalar[fields.LINE_FREE] < 0:
            state.scalar[fields.LINE_FREE] = len(line)
            line = _chained(_enlarged(line, 2 * len(line)), len(line))
        self.state = state._replace(heap=heap, out=out, queue=queue, line=line)


def _idle_links(n: int) -> Ints:
    """Rows of links that nothing has entered."""
    link = np.zeros((n, fields.LINK_FIELDS), np.int64)
    link[:, [fields.OPEN, fields.VOID]] = fields.NONE
    link[:, fields.SHIFT] = FIRST_SHIFT
    return link


def _enlarged(rows: Ints, n: int) -> Ints:
    """A copy of `rows` with room for n."""
    larger = np.empty((n, *rows.shape[1:]), np.int64)
    larger[: len(rows)] = rows
    return larger


def _chained(entries: Ints, first: int) -> Ints:
    """Link the entries from `first` on into one free list, closed by -1."""
    entries[first:, 0] = np.arange(first + 1, len(entries) + 1)
    entries[-1, 0] = -1
    return entries
