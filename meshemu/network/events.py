"""What an event is: four numbers, ordered by (time, key).

time: when the head of a packet comes in at a link. key: message id and packet index; for ops and cuts a negative
number, so that at one time ops go first and cuts before packets. where: the index in `route_links` of the link, and the
kind of the event; for ops the op. tail: when the last byte of the packet comes in at the link; for trains the link
whose rate spaces their packets. Keys hold ids of messages, on which every number of ranks agrees, and numbers of ops
(see `shares`), which keep the order of those of a device; so the order of events does not depend on how many ranks
there are. The messages of a tree have the id of their first. Its copies of a packet may have one time and key at
several links: these events change nothing for one another.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ARRIVED",
    "BRANCH",
    "BRANCH_TRAIN",
    "CUT",
    "CUT_KEYS",
    "EVENT",
    "HANDED",
    "HEADER",
    "KIND_BITS",
    "KIND_MASK",
    "MAX_PACKETS",
    "MERGE",
    "MERGE_TRAIN",
    "NEVER",
    "OP_KEYS",
    "OWN",
    "PACKET_BITS",
    "PACKET_MASK",
    "REST",
    "ROW",
    "SINGLE",
    "TRAIN",
    "Ints",
]

Ints = NDArray[np.int64]

EVENT = 4  # numbers per event
ROW = 6  # numbers per row that crosses between ranks: the event, the rank that it is for, when others feel it (HEADER)

NEVER = 2**63 - 1
PACKET_BITS = 31
MAX_PACKETS = 2**PACKET_BITS
PACKET_MASK = MAX_PACKETS - 1
CUT_KEYS = 2**62  # key of a cut: that of the first packet cut off, less this
OP_KEYS = 2**63 - 1  # key of an op: its number, less this

KIND_BITS = 4
KIND_MASK = 2**KIND_BITS - 1
SINGLE, TRAIN, REST, CUT = range(4)  # one packet (or a whole message at its first link); see `trains` for the others
BRANCH, BRANCH_TRAIN, HANDED, MERGE, MERGE_TRAIN, OWN = range(4, 10)  # of trees: see `branching`
# In place of `where`, in rows that cross: one that tells the rank of the destination when a message arrives, and one
# ahead of the events, that tells what a rank knows of another.
ARRIVED, HEADER = -1, -2
