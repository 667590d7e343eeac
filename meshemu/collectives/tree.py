"""Tree: reduce towards one device and broadcast back, as Dojo's compiler does for batch-norm statistics.

The tree of a root is made of neighbours: a device's parent is a present neighbour one hop nearer to the root, in its
own row if there is one (west before east), else in its column (north before south). On a full grid each row so reduces
towards the root's column from both ends, and that column towards the root. all_reduce uses the tree of the middle
device; reduce_scatter and all_gather send chunk i over the tree of participant i. Few phases: best for short buffers.
By default a buffer is one chunk; more make a pipeline, in which reduction and broadcast overlap.
"""

import numpy as np
from numpy.typing import NDArray

from meshemu.collectives.group import Group
from meshemu.collectives.transfers import Transfers, concatenate, no_transfers, pipeline
from meshemu.errors import InputError

__all__ = [
    "depth_of_tree",
    "middle",
    "spanning_trees",
    "subtree_heights",
    "tree",
    "tree_broadcast",
    "tree_default_chunks",
    "tree_reduce",
]

Ints = NDArray[np.int32]


def tree(kind: str, group: Group, root: int, n_chunks: int) -> Transfers:
    """Return the transfers of one collective over trees. Raises InputError if absent positions split the grid."""
    match kind:
        case "broadcast":
            return tree_broadcast(group, root, n_chunks)
        case "reduce":
            return tree_reduce(group, root, n_chunks)
        case "reduce_scatter":
            return _owner_trees(group, reduce=True)
        case "all_gather":
            return _owner_trees(group, reduce=False)
    root = middle(group)
    up = tree_reduce(group, root, n_chunks)
    down = tree_broadcast(group, root, n_chunks)
    return concatenate((up, down.after(depth_of_tree(group, root))))


def tree_default_chunks(kind: str, group: Group) -> int:
    """Return the whole buffer as one chunk, or one chunk per participant where each ends with its own."""
    return group.size if kind in ("reduce_scatter", "all_gather") else 1


def middle(group: Group) -> int:
    """Return the participant nearest to the middle of the grid, the first of several."""
    row, col = np.divmod(group.position, group.cols)
    distance = np.abs(row - (group.rows - 1) // 2) + np.abs(col - (group.cols - 1) // 2)
    return int(np.argmin(distance))


def tree_broadcast(group: Group, root: int, n_chunks: int, *, columns_first: bool = False) -> Transfers:
    """From the root to the leaves; an edge's stage is the depth of its upper end."""
    parent, depth = spanning_trees(group, np.array([root]), columns_first=columns_first)
    child = np.flatnonzero(depth[0])
    return pipeline(parent[0, child], child, depth[0, child] - 1, n_chunks, reduce=False)


def tree_reduce(group: Group, root: int, n_chunks: int, *, columns_first: bool = False) -> Transfers:
    """From the leaves to the root; an edge's stage counts from the deepest leaf.

    A device combines its children's pieces in the order in which they can arrive: from small subtrees first.
    """
    parent, depth = spanning_trees(group, np.array([root]), columns_first=columns_first)
    child = np.flatnonzero(depth[0])
    child = child[np.argsort(subtree_heights(parent[0], depth[0])[child], kind="stable")]
    return pipeline(child, parent[0, child], depth.max() - depth[0, child], n_chunks, reduce=True)


def depth_of_tree(group: Group, root: int) -> int:
    """Return the hops from the root to the farthest participant."""
    return int(_distances(group, np.array([root])).max())


def subtree_heights(parent: NDArray[np.integer], depth: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the hops from each participant to its deepest descendant, int64[n], in the tree parent, depth: [n]."""
    height = np.zeros(len(parent), np.int64)
    for level in range(int(depth.max(initial=0)), 0, -1):
        child = np.flatnonzero(depth == level)
        np.maximum.at(height, parent[child], height[child] + 1)
    return height


def spanning_trees(group: Group, roots: NDArray[np.integer], *, columns_first: bool = False) -> tuple[Ints, Ints]:
    """Return (parent, depth), int32[n_roots, n]: of each participant in the tree of each root (parent of a root: -1).

    columns_first: prefer a parent in the same column. Raises InputError if a participant cannot be reached.
    """
    depth = _distances(group, roots)
    grid = np.full((len(roots), group.rows + 2, group.cols + 2), -1, np.int32)
    row, col = np.divmod(group.position, group.cols)
    grid[:, row + 1, col + 1] = depth
    parent = np.full(depth.shape, -1, np.int32)
    by_row, by_column = ((0, -1), (0, 1)), ((-1, 0), (1, 0))
    for step_row, step_col in by_column + by_row if columns_first else by_row + by_column:
        nearer = (parent < 0) & (depth > 0) & (grid[:, row + 1 + step_row, col + 1 + step_col] == depth - 1)
        which = np.nonzero(nearer)
        parent[which] = group.participant[group.position[which[1]] + step_row * group.cols + step_col]
    return parent, depth


def _distances(group: Group, roots: NDArray[np.integer]) -> Ints:
    """Hops over present neighbours from each root to each participant, int32[n_roots, n]."""
    row, col = np.divmod(group.position, group.cols)
    if group.full:
        return np.asarray(np.abs(row - row[roots][:, None]) + np.abs(col - col[roots][:, None]), np.int32)
    present = np.zeros((group.rows + 2, group.cols + 2), bool)
    present[row + 1, col + 1] = True
    distance = np.full((len(roots), *present.shape), -1, np.int32)
    front = np.zeros(distance.shape, bool)
    front[np.arange(len(roots)), row[roots] + 1, col[roots] + 1] = True
    hops = 0
    while front.any():
        distance[front] = hops
        hops += 1
        spread = np.zeros_like(front)
        for axis in (1, 2):
            spread |= np.roll(front, 1, axis) | np.roll(front, -1, axis)
        front = spread & present & (distance < 0)
    result = distance[:, row + 1, col + 1]
    if (result < 0).any():
        start, lost = (int(index[0]) for index in np.nonzero(result < 0))
        raise InputError(
            f"tree: absent positions cut {group.place(int(group.position[lost]))} off from "
            f"{group.place(int(group.position[roots[start]]))} on a grid of {group.rows} x {group.cols}"
        )
    return result


def _owner_trees(group: Group, *, reduce: bool) -> Transfers:
    """Chunk i over the tree of participant i, all trees at once."""
    if group.size == 1:
        return no_transfers()
    parent, depth = spanning_trees(group, np.arange(group.size))
    chunk, child = (index.astype(np.int32) for index in np.nonzero(depth))
    upper, below = parent[chunk, child], depth[chunk, child]
    phase = depth.max() - below if reduce else below - np.int32(1)
    src, dst = (child, upper) if reduce else (upper, child)
    return Transfers(phase, src, dst, chunk, chunk + np.int32(1), np.full(len(chunk), reduce))
