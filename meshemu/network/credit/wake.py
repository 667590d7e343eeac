"""A tournament tree of times, one leaf per device, compiled: who has to be looked at first.

The leaves are the second half of the array, the root is entry 1. Times only get earlier from outside (`advance`); the
device that is looked at sets its own next time (`settle`). Equal times go to the lower device.
"""

import numpy as np

from meshemu.network.compiled import at, compiled
from meshemu.network.events import NEVER, Ints

__all__ = ["advance", "first", "settle", "tree"]


def tree(n: int) -> Ints:
    """A tree for n devices, none of which has anything to do."""
    leaves = 1 << max(1, (n - 1).bit_length())
    return np.full(2 * leaves, NEVER, np.int64)


@compiled
def advance(wake: Ints, device: int, time: int) -> None:
    """Look at the device at `time`, if not before."""
    node = (len(wake) >> 1) + device
    while node > 0 and wake[at(node)] > time:
        wake[at(node)] = time
        node >>= 1


@compiled
def first(wake: Ints) -> int:
    """The device to look at first, at wake[1]; its own entry becomes NEVER until `settle`."""
    node, leaves, time = 1, len(wake) >> 1, wake[1]
    while node < leaves:
        node <<= 1
        node += int(wake[at(node)] != time)
    wake[at(node)] = NEVER
    return node - leaves


@compiled
def settle(wake: Ints, device: int, time: int) -> None:
    """The device that `first` gave has been looked at, and has to be again at `time`, if not before."""
    node = (len(wake) >> 1) + device
    wake[at(node)] = min(wake[at(node)], time)
    while node > 1:
        node >>= 1
        earliest = min(wake[at(2 * node)], wake[at(2 * node + 1)])
        if wake[at(node)] == earliest:
            break
        wake[at(node)] = earliest
