"""Routing trees: the links of a message that forks on its way, or of many that merge.

A multicast carries one message from its root to several members; a reduction in the network carries one message from
every member to its root, and routers merge what meets. Either way the tree is the union of the dimension-ordered routes
between root and members. That is a tree because the next hop towards a root depends on where a message is, not on where
it came from, around faults too (`detour` looks at nothing else, and agrees with dimension order where that is clear).
A multicast follows the tree of the other order backwards: routes "yx" to the root, reversed, are the routes "xy" from
it. Each member so has the route of a message of its own, except that a multicast may pass a fault on another side, and
reach the opposite device of a ring the other way round. Trees stay on the mesh: Ethernet neither forks nor merges.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meshemu.errors import InputError
from meshemu.mesh.mesh import Mesh
from meshemu.mesh.routing import Order, routes
from meshemu.mesh.transit import link_rates, serialisation_ps

__all__ = ["Trees", "trees", "trees_ps"]

Ints = NDArray[np.int64]

_OTHER: dict[str, Order] = {"xy": "yx", "yx": "xy"}


@dataclass(frozen=True, eq=False)
class Trees:
    """Trees as lists of edges, each a link used by one tree; those of a tree stand together, nearest the root first.

    outward: bool[n_trees], True for a multicast (edges lead away from the root), False for a reduction (towards it).
    ptr: int64[n_trees + 1], the edges of each tree. link: int32[n_edges]. inner: int64[n_edges], the edge next to it on
    the side of the root, -1 at the root. tree: int64[n_members], the tree of each member; leaf: int64[n_members], the
    edge at its end: its copy comes in there, or its contribution goes out.
    """

    outward: NDArray[np.bool_]
    ptr: Ints
    link: NDArray[np.int32]
    inner: Ints
    tree: Ints
    leaf: Ints

    @property
    def n_trees(self) -> int:
        """Number of trees."""
        return len(self.outward)

    @property
    def tree_of_edge(self) -> Ints:
        """The tree of every edge, int64[n_edges]."""
        return np.repeat(np.arange(self.n_trees), np.diff(self.ptr))

    @property
    def inputs(self) -> Ints:
        """What meets in the router that an edge leaves, if the tree is a reduction, int64[n_edges]: edges further out,
        and the contribution of a member that injects without a link of its own.
        """
        inner = self.inner[self.inner >= 0]
        return np.bincount(np.concatenate((inner, self.leaf)), minlength=len(self.link))

    @property
    def root_inputs(self) -> Ints:
        """Edges that touch the root, int64[n_trees]: what a reduction merges there."""
        return np.bincount(self.tree_of_edge[self.inner < 0], minlength=self.n_trees)

    def path(self, member: int) -> list[int]:
        """Links between a member and its root, in the order in which a packet passes them."""
        edge, found = int(self.leaf[member]), []
        while edge >= 0:
            found.append(int(self.link[edge]))
            edge = int(self.inner[edge])
        return found[::-1] if self.outward[self.tree[member]] else found

    def from_root(self, values: Ints, join: np.ufunc) -> Ints:
        """Join the values of all edges from the root to each edge, itself included, by a ufunc such as np.add."""
        joined = values.copy()
        level = np.flatnonzero(np.isin(self.inner, np.flatnonzero(self.inner < 0)))
        while level.size:
            joined[level] = join(joined[self.inner[level]], joined[level])
            level = np.flatnonzero(np.isin(self.inner, level))
        return joined


def trees(
    mesh: Mesh, root: ArrayLike, outward: ArrayLike, member: ArrayLike, tree: ArrayLike, order: Order = "xy"
) -> Trees:
    """Route trees over a mesh.

    root, outward: of each tree. member, tree: device ids and the tree that each is in. Injection and ejection links
    are edges where the hardware has them. Raises InputError, with the number of the member as `pair`, where a member
    is the root, is dead or cannot be reached, and if a device is in one tree twice.
    """
    roots, ends, owner = (np.asarray(values, np.int64) for values in (root, member, tree))
    out = np.asarray(outward, np.bool_)
    _, first, times = np.unique(owner * mesh.n_devices + ends, return_index=True, return_counts=True)
    if (times > 1).any():
        at = int(first[np.argmax(times > 1)])
        raise InputError(f"device {ends[at]} is in one tree twice (root {roots[owner[at]]})")
    back = _backward(mesh)
    parts = []
    for flag in (False, True):
        which = np.flatnonzero(out[owner] == flag)
        name = [f"pair {member}" for member in which].__getitem__
        way = routes(mesh, ends[which], roots[owner[which]], _OTHER[order] if flag else order, name=name)
        length = np.diff(way.route_ptr)[way.index]
        at = np.arange(length.sum()) + np.repeat(way.route_ptr[way.index] - np.cumsum(length) + length, length)
        links = way.route_links[at].astype(np.int64)
        depth = np.repeat(np.cumsum(length), length) - 1 - np.arange(length.sum())
        parts.append((np.repeat(which, length), depth, back[links] if flag else links))
    of, depth, link = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    span = int(depth.max(initial=0)) + 1
    _, first, edge = np.unique((owner[of] * span + depth) * mesh.n_links + link, return_index=True, return_inverse=True)
    edge = edge.ravel()
    leaf = np.zeros(len(ends), np.int64)
    outermost = np.flatnonzero(np.diff(of, prepend=-1))
    leaf[of[outermost]] = edge[outermost]
    return Trees(
        outward=out,
        ptr=np.searchsorted(owner[of[first]], np.arange(len(roots) + 1)),
        link=link[first].astype(np.int32),
        inner=np.where(depth[first] > 0, edge[np.minimum(first + 1, len(edge) - 1)], -1),
        tree=owner,
        leaf=leaf,
    )


def trees_ps(mesh: Mesh, found: Trees, size_bytes: ArrayLike) -> Ints:
    """Contention-free time of each member, int64[n_members]; size_bytes: of each tree.

    Of a multicast, when the member's copy has arrived. Of a reduction, how long the member's contribution takes to the
    root if nobody else is late; the greatest of a tree is when the sum is there. Each is the latency of all links on
    the way, `mesh.combine_ps` for every merge, and the serialisation at the slowest link, whatever the packet size.
    """
    if not found.n_trees:
        return np.zeros(0, np.int64)
    num, den = link_rates(mesh)
    size = np.asarray(size_bytes, np.int64)[found.tree_of_edge]
    slowest = found.from_root(serialisation_ps(size, num[found.link], den[found.link]), np.maximum)
    merges = (found.inputs > 1) & ~found.outward[found.tree_of_edge]
    latency = found.from_root(mesh.latency_ps[found.link] + merges * np.int64(mesh.combine_ps), np.add)
    at_root = ~found.outward & (found.root_inputs > 1)
    return np.asarray((latency + slowest)[found.leaf] + at_root[found.tree] * np.int64(mesh.combine_ps), np.int64)


def _backward(mesh: Mesh) -> Ints:
    """The link that leads back, for every link; ejection for injection."""
    back = np.arange(mesh.n_links)
    for direction in range(4):
        link = mesh.out_link[:, direction]
        link = link[link >= 0]
        back[link] = mesh.out_link[mesh.link_dst[link], (direction + 2) % 4]
    if mesh.switches is not None:
        joined = mesh.switches.up >= 0
        back[mesh.switches.up[joined]] = mesh.switches.down[joined]
        back[mesh.switches.down[joined]] = mesh.switches.up[joined]
    ports = mesh.injection_link >= 0
    back[mesh.injection_link[ports]] = mesh.ejection_link[ports]
    back[mesh.ejection_link[ports]] = mesh.injection_link[ports]
    return back
