"""How soon the end of an op is felt on other ranks: its `after`, for the windows (see `reach`).

It is the least time from when an op ends until something is felt elsewhere that waited for it, through as many other
ops and messages as that takes. What others do can only make it later, so durations, sizes and routes bound it: of all
ops that wait for this one, the least of what they take and what comes after them. FAR where nothing is ever felt, as at
the end of a Program. It is never less than one lookahead, which serves where no more is known.
"""

import numpy as np
from numpy.typing import NDArray

from meshemu.comm import Comm
from meshemu.network.compiled import kernel
from meshemu.network.events import BRANCH, KIND_BITS, KIND_MASK, Ints
from meshemu.network.ops import RECV, SEND
from meshemu.network.reach import FAR, message_effect
from meshemu.network.state import Network, Work

__all__ = ["find_after"]


@kernel
def _walk_back(network: Network, work: Work, dep_ptr: Ints, dep: Ints, own: NDArray[np.bool_]) -> None:
    """Fill `work.after` of this rank's ops: one pass, the last first, so that what waits for an op is known before it.

    Where ids do not follow the order of time, an op whose `after` is not yet known counts with one lookahead.
    """
    after, n_ops = work.after, len(work.after)
    for op in range(n_ops):
        after[op] = FAR if own[op] else network.lookahead
    for op in range(n_ops - 1, -1, -1):
        if not own[op]:
            continue
        if work.kind[op] == SEND:
            message = work.message[op]
            size, where, recv_op = work.size[message], work.where[message], work.recv_op[message]
            felt = network.lookahead
            if where & KIND_MASK < BRANCH:
                after_recv = after[recv_op] if recv_op > op else network.lookahead
                felt = message_effect(network, work, message, where >> KIND_BITS, size, after[op], after_recv)
        elif work.kind[op] == RECV:
            felt = after[op]
        else:
            felt = min(FAR, work.duration[op] + after[op])
        for entry in range(dep_ptr[op], dep_ptr[op + 1]):
            known = felt if dep[entry] < op else network.lookahead
            after[dep[entry]] = min(after[dep[entry]], known)


def find_after(
    network: Network,
    work: Work,
    dep_ptr: Ints,
    dep: Ints,
    own: NDArray[np.bool_],
    crosses: NDArray[np.bool_],
    comm: Comm | None,
) -> None:
    """Fill `work.after`; dep_ptr, dep: what ops wait for, as in a Program; own: bool[n_ops], this rank's.

    Each rank finds it for its own ops and learns it of the ops that receive a message from another rank, crosses:
    bool[n_messages].
    """
    _walk_back(network, work, dep_ptr, dep, own)
    if comm is None:
        return
    receiving = work.recv_op[crosses]
    work.after[receiving] = comm.sum(np.where(own[receiving], work.after[receiving], 0))
