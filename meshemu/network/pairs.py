"""The distinct (src, dst) pairs of messages, found in one compiled pass: many messages share few routes."""

import numpy as np
from numpy.typing import NDArray

from meshemu.network.compiled import at, kernel
from meshemu.network.events import Ints

__all__ = ["distinct_pairs"]

Ids = NDArray[np.int32]

SPREAD = 1_000_003  # a prime that takes sources apart in the table


@kernel
def _number_pairs(src: Ids, dst: Ids, table: Ids, follows: Ids, first: Ints, pair: Ids) -> int:
    """Fill pair[i], the number of the pair of message i, and first[number], the first message that has it; returns how
    many pairs there are.

    table: of 2**k > len(src) entries, all 0: the numbers of pairs, plus 1, by a hash of their ends. follows: int32[n],
    scratch: which came after each when it was last met, since phases of a schedule resemble one another.
    """
    n, mask, number = 0, len(table) - 1, -1
    for i in range(len(src)):
        before, slot = number, -1
        if before >= 0:
            number = follows[at(before)]
        while number < 0 or src[at(first[at(number)])] != src[i] or dst[at(first[at(number)])] != dst[i]:
            if slot < 0:
                slot = int(src[i]) * SPREAD + int(dst[i])
                slot = (slot ^ slot >> 15) & mask
            else:
                slot = (slot + 1) & mask
            number = table[at(slot)] - 1
            if number < 0:
                number = n
                table[at(slot)], first[at(n)], follows[at(n)] = n + 1, i, -1
                n += 1
        if before >= 0:
            follows[at(before)] = number
        pair[i] = number
    return n


def distinct_pairs(src: Ids, dst: Ids) -> tuple[Ints, Ids]:
    """(first, pair): the first message of each distinct pair, ascending, int64[n_pairs]; of each message the number of
    its pair there, int32[n].
    """
    n = len(src)
    table = np.zeros(1 << (2 * n).bit_length(), np.int32)
    first, follows, pair = np.empty(n, np.int64), np.empty(n, np.int32), np.empty(n, np.int32)
    return first[: _number_pairs(src, dst, table, follows, first, pair)], pair
