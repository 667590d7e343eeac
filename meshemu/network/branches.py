"""The trees of a Program as arrays of the kernels: a row per branch, that is per link of a tree (see `branching`)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.mesh import Mesh, Trees
from meshemu.network.events import BRANCH, HANDED, KIND_BITS, MERGE, OWN, Ints
from meshemu.network.state import (
    ARRIVES,
    BRANCH_FIELDS,
    COPY,
    DEPARTS,
    INPUT,
    LEAVES,
    NONE,
    ONWARD,
    ONWARD_LAST,
    OWNER,
)
from meshemu.program.trees import MessageTrees

__all__ = ["Branches", "branches", "no_branches", "owned"]


@dataclass(frozen=True, eq=False)
class Branches:
    """Branches, and after them the inputs of merges that devices feed themselves; and where messages start.

    link: int64[n_rows], -1 for an input without a link; flow_of_row: int64[n_rows], the first message of its tree.
    table: int64[n_rows, BRANCH_FIELDS], but for OWNER. member: int64[n_members], message ids; flow, where: of each
    member, as in `Work`. departs_with, arrives_with: of each member, the message under which the kernels note its
    times.
    """

    link: Ints
    flow_of_row: Ints
    table: Ints
    member: Ints
    flow: Ints
    where: Ints
    departs_with: Ints
    arrives_with: Ints


def branches(found: MessageTrees, routed: Trees) -> Branches:
    """Lay out the routed trees of a Program."""
    n_edges, tree = len(routed.link), found.tree
    number, tree_of_edge = np.arange(n_edges), routed.tree_of_edge
    outward, at_root = found.outward[tree_of_edge], routed.inner < 0
    first, sends = found.first[tree_of_edge], found.outward[tree]
    merges = ~outward & (routed.inputs > 1)  # in the router that the edge leaves

    # A junction is where edges meet: at the outer end of an edge, or (numbers from n_edges on) at a root.
    own = np.flatnonzero(~sends & merges[routed.leaf])
    junction = np.concatenate((np.where(at_root, n_edges + tree_of_edge, routed.inner), routed.leaf[own]))
    merging = np.concatenate((merges, ~found.outward & (routed.root_inputs > 1)))
    following, ring, outermost = _neighbours(junction, n_edges + found.n_trees)

    table = np.full((len(junction), BRANCH_FIELDS), NONE, np.int64)
    forks = outermost[:n_edges]
    onward = np.where(
        outward,
        np.where(forks >= 0, forks << KIND_BITS | BRANCH, NONE),
        np.where(at_root, NONE, routed.inner << KIND_BITS | BRANCH),
    )
    meets = merging[junction[:n_edges]]
    onward_last = np.where(meets, number << KIND_BITS | MERGE, onward)
    table[:n_edges, COPY] = np.where(outward, following[:n_edges], NONE)
    table[:n_edges, ONWARD] = np.where(at_root, onward, onward_last)
    table[:n_edges, ONWARD_LAST] = onward_last
    table[:n_edges, ARRIVES] = np.where(~outward & at_root & ~meets, first, NONE)
    table[routed.leaf[sends], ARRIVES] = found.member[sends]
    table[routed.leaf[~sends], DEPARTS] = found.member[~sends]
    table[:, INPUT] = np.where(merging[junction], ring, NONE)
    table[:, LEAVES] = np.where(junction < n_edges, junction, NONE)

    root_edge = routed.from_root(number, np.minimum)[routed.leaf]  # inner edges have lower numbers
    table[root_edge[sends][::-1], DEPARTS] = found.member[sends][::-1]
    where = np.where(sends, outermost[n_edges + tree] << KIND_BITS | HANDED, routed.leaf << KIND_BITS | HANDED)
    where[own] = (n_edges + np.arange(len(own))) << KIND_BITS | OWN
    return Branches(
        link=np.concatenate((routed.link.astype(np.int64), np.full(len(own), NONE))),
        flow_of_row=np.concatenate((first, found.first[tree[own]])),
        table=table,
        member=found.member,
        flow=found.first[tree],
        where=where,
        departs_with=np.where(sends, table[root_edge, DEPARTS], found.member),
        arrives_with=np.where(sends, found.member, found.first[tree]),
    )


def no_branches() -> Branches:
    """What there is where no message is in a tree."""
    none = np.zeros(0, np.int64)
    return Branches(none, none, np.zeros((0, BRANCH_FIELDS), np.int64), none, none, none, none, none)


def owned(found: Branches, mesh: Mesh, rank_of_vertex: NDArray[np.int32]) -> Ints:
    """The table with the rank of the device where each branch comes out."""
    table = found.table.copy()
    linked = found.link >= 0
    table[linked, OWNER] = rank_of_vertex[mesh.link_dst[found.link[linked]]]
    return table


def _neighbours(group: Ints, n_groups: int) -> tuple[Ints, Ints, Ints]:
    """Entries of one group, in order: the next of each entry (-1 after the last), the next in a ring, and the first
    entry of each group (-1 if it has none).
    """
    order = np.argsort(group, kind="stable")
    begin = np.searchsorted(group[order], np.arange(n_groups + 1))
    after = np.append(order[1:], NONE)
    ends = begin[group[order] + 1] - 1 == np.arange(len(order))
    following, ring = np.empty((2, len(group)), np.int64)
    leading = np.append(order, NONE)[np.minimum(begin[:-1], len(order))]
    first = np.where(np.diff(begin) > 0, leading, NONE)
    following[order] = np.where(ends, NONE, after)
    ring[order] = np.where(ends, first[group[order]], after)
    return following, ring, first
