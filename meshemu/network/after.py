"""How soon the end of an op is felt on other ranks: its `after`, for the windows (see `reach`).

It is the least time from when an op ends until something is felt elsewhere that waited for it, through as many other
ops and messages as that takes. What others do can only make it later, so durations, sizes and routes bound it: of all
ops that wait for this one, the least of what they take and what comes after them. FAR where nothing is ever felt, as at
the end of a Program. It is never less than one lookahead, which serves where no more is known.
"""

import numpy as np

from meshemu.comm import Comm
from meshemu.network.compiled import at, kernel
from meshemu.network.events import BRANCH, KIND_BITS, KIND_MASK, Ints
from meshemu.network.ops import RECV, SEND
from meshemu.network.reach import FAR, message_effect
from meshemu.network.state import Network, Work

__all__ = ["find_after"]


@kernel
def _walk_back(network: Network, work: Work, felt: Ints) -> None:
    """Fill `work.after` of this rank's ops: one pass, the last first, so that what waits for an op is known before it.

    Where ids do not follow the order of time, an op whose `after` is not yet known counts with one lookahead.
    felt: int64[n_own], scratch, how soon what depends on an op is felt from when the op is ready.
    """
    after = work.after
    for op in range(len(felt) - 1, -1, -1):
        i, soonest = at(op), FAR
        for entry in range(work.successor_ptr[i], work.successor_ptr[at(op + 1)]):
            successor = work.successor[at(entry)]
            soonest = min(soonest, felt[at(successor)] if successor > op else network.lookahead)
        after[i] = soonest
        if work.kind[i] == SEND:
            message = work.message[i]
            size, where, recv_op = work.size[at(message)], work.where[at(message)], work.recv_op[at(message)]
            felt[i] = network.lookahead
            if where & KIND_MASK < BRANCH:
                after_recv = after[at(recv_op)] if recv_op > op else network.lookahead
                felt[i] = message_effect(network, work, message, where >> KIND_BITS, size, soonest, after_recv)
        elif work.kind[i] == RECV:
            felt[i] = soonest
        else:
            felt[i] = min(FAR, work.duration[i] + soonest)


def find_after(network: Network, work: Work, crossing: Ints, rank: int, comm: Comm | None) -> None:
    """Fill `work.after`.

    Each rank finds it for its own ops and learns it of those that receive the messages `crossing`, from one rank to
    another. Of ops that receive a message between other places of one other rank it knows no more than the lookahead.
    """
    n_own = len(work.kind)
    work.after[n_own:] = network.lookahead
    _walk_back(network, work, np.empty(n_own, np.int64))
    if comm is not None:
        received = work.after[work.recv_op[crossing]]
        work.after[n_own + 1 :] = comm.sum(np.where(work.dst_owner[crossing] == rank, received, 0))
