r"""The Z-plane: interface processors at edges of the mesh, joined by an Ethernet switch.

    device -- interface processor       vertices n_devices + i, beside the devices of `interface_devices`
                     |
                  switch                the last vertex
                     |
              interface processor -- device

Each of these is a link with its capacity, one way and one back. A message may so leave the mesh at one edge and come in
again at another, in four hops; which messages do is for `shortcuts` to say.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["PLANE_CLASSES", "PLANE_FIGURES", "PlaneLinks", "ZPlane", "plane_links", "z_plane"]

Ints = NDArray[np.int64]

PLANE_CLASSES = ("interface_edge", "ethernet")
"""Classes of the links between devices and interface processors, and between these and the switch."""

PLANE_FIGURES = ("link_bandwidth", "link_latency", "ethernet_bandwidth", "ethernet_latency")
"""What is known of these links: figures of `interface`. A link to the switch and one from it make ethernet_latency."""


@dataclass(frozen=True, eq=False)
class ZPlane:
    """Interface processors and the links over them.

    beside: int32[n], the device beside each. first_link: its four links are first_link + i + (0, n, 2 n, 3 n): from
    the device, to the switch, from the switch, to the device. nearest: int32[n_devices, most], the interface
    processors in the fewest hops from each device, n_nearest of them, -1 beyond; none where dead devices part it from
    all.
    """

    beside: NDArray[np.int32]
    first_link: int
    nearest: NDArray[np.int32]
    n_nearest: NDArray[np.int32]

    @property
    def n_interfaces(self) -> int:
        """Number of interface processors."""
        return len(self.beside)

    @property
    def home(self) -> NDArray[np.int32]:
        """Device whose rank emulates each interface processor, and the switch; int32[n + 1]."""
        return np.append(self.beside, self.beside[0])

    def name(self, number: int) -> str:
        """An interface processor, or the switch, in words."""
        return "Ethernet switch" if number == self.n_interfaces else f"interface processor {number}"

    def crossing(self, leave: Ints, enter: Ints) -> Ints:
        """Links from the device beside one interface processor to that beside another, int64[n_crossings, 4]."""
        n = self.n_interfaces
        return self.first_link + np.stack([leave, n + leave, 2 * n + enter, 3 * n + enter], axis=-1)

    def gate(self, device: Ints, turn: Ints) -> Ints:
        """An interface processor in the fewest hops from each device, -1 without any: of several, by turns."""
        return self.nearest[device, turn % np.maximum(self.n_nearest[device], 1)].astype(np.int64)


class PlaneLinks(NamedTuple):
    """Ends of the links of a Z-plane, and whether each is of Ethernet; arrays of 4 n_interfaces."""

    src: Ints
    dst: Ints
    is_ethernet: NDArray[np.bool_]


def z_plane(beside: Ints, hops: NDArray[np.int32], first_link: int) -> ZPlane:
    """The Z-plane over interface processors beside these devices.

    hops: int32[n_interfaces, n_devices], to the device beside each, -1 where there is no way.
    """
    away = np.where(hops < 0, np.iinfo(np.int32).max, hops).T
    is_nearest = (away == away.min(axis=1, keepdims=True)) & (hops.T >= 0)
    n_nearest = np.count_nonzero(is_nearest, axis=1).astype(np.int32)
    first = np.argsort(~is_nearest, axis=1, kind="stable")[:, : max(1, int(n_nearest.max()))]
    nearest = np.where(np.arange(first.shape[1]) < n_nearest[:, None], first, -1).astype(np.int32)
    return ZPlane(beside.astype(np.int32), first_link, nearest, n_nearest)


def plane_links(beside: Ints, n_devices: int) -> PlaneLinks:
    """The links over interface processors beside these devices, in the order that `ZPlane` tells."""
    n = len(beside)
    interface, switch = n_devices + np.arange(n), np.full(n, n_devices + n)
    return PlaneLinks(
        src=np.concatenate([beside, interface, switch, interface]),
        dst=np.concatenate([interface, switch, interface, beside]),
        is_ethernet=np.repeat([False, True, True, False], n),
    )
