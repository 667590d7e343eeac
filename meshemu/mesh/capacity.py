"""What the links of a mesh carry together between two sets of devices, for checks against published bandwidths."""

import numpy as np
from numpy.typing import NDArray

from meshemu.mesh.mesh import Mesh

__all__ = ["bandwidth_between_bytes_per_s", "bisection_bytes_per_s"]


def bandwidth_between_bytes_per_s(mesh: Mesh, source: NDArray[np.bool_], target: NDArray[np.bool_]) -> int:
    """Sum of the bandwidths of the links of the mesh from a device in `source` to one in `target`, both
    bool[n_devices].
    """
    links = np.flatnonzero(mesh.on_grid)
    between = source[mesh.link_src[links]] & target[mesh.link_dst[links]]
    return int(mesh.bandwidth_bytes_per_s[links[between]].sum())


def bisection_bytes_per_s(mesh: Mesh) -> int:
    """Bandwidth from the northern half of the rows to the southern, in that direction; 0 for a single row."""
    north = mesh.row < mesh.rows // 2
    return bandwidth_between_bytes_per_s(mesh, north, ~north)
