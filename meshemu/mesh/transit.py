"""Exact integer time arithmetic that the engine and the closed forms share.

A link's rate is a fraction num / den of picoseconds per byte, so that sizes and times stay integers. den is at most
10**6: the rate is exact for every bandwidth of up to six significant digits; for others its relative error is below
1e-6 at worst and near 1e-12 as a rule.
"""

from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meshemu.errors import InputError
from meshemu.mesh.mesh import Mesh
from meshemu.mesh.routing import Routes

__all__ = ["LARGEST_PS", "check_links", "link_rates", "message_ps", "rate", "serialisation_ps"]

LARGEST_PS = 2**62
_LARGEST_DENOMINATOR = 10**6
_LARGEST_BANDWIDTH = 10**18


def rate(bandwidth_bytes_per_s: int) -> tuple[int, int]:
    """(num, den): picoseconds per byte of a bandwidth, as a reduced fraction with den <= 10**6.

    InputError for bandwidths below 1 B/s and for those so large that the fraction would be zero (above 10**18 B/s).
    """
    if bandwidth_bytes_per_s < 1:
        raise InputError(f"bandwidth = {bandwidth_bytes_per_s} B/s must be at least 1 B/s")
    fraction = Fraction(10**12, int(bandwidth_bytes_per_s)).limit_denominator(_LARGEST_DENOMINATOR)
    if fraction == 0:
        raise InputError(f"bandwidth = {bandwidth_bytes_per_s} B/s is more than the 10**18 B/s that can be timed")
    return fraction.numerator, fraction.denominator


def check_links(mesh: Mesh) -> None:
    """Raise InputError, naming the first link concerned, for bandwidths and latencies that cannot be timed."""
    for name, values, least, most in (
        ("bandwidth_bytes_per_s", mesh.bandwidth_bytes_per_s, 1, _LARGEST_BANDWIDTH),
        ("latency_ps", mesh.latency_ps, 0, LARGEST_PS),
    ):
        fits = (values >= least) & (values <= most)
        if not fits.all():
            link = int(np.argmin(fits))
            bound = f"at least {least}" if not values[link] > most else f"at most {most}"
            ends = f"device {mesh.link_src[link]} -> device {mesh.link_dst[link]}"
            raise InputError(f"link {link} ({ends}): {name} = {values[link]} must be {bound}")


def link_rates(mesh: Mesh) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(num, den) of every link of a mesh, int64[n_links] each. Raises InputError as `check_links` does."""
    check_links(mesh)
    distinct, inverse = np.unique(mesh.bandwidth_bytes_per_s, return_inverse=True)
    rates = np.array([rate(int(bandwidth)) for bandwidth in distinct], np.int64).reshape(-1, 2)
    return rates[inverse, 0], rates[inverse, 1]


def serialisation_ps(size_bytes: ArrayLike, num: ArrayLike, den: ArrayLike) -> NDArray[np.int64]:
    """ceil(size_bytes * num / den), elementwise with broadcasting: how long a link of this rate is busy.

    InputError for a negative size and for times above 2**62 ps (53 days).
    """
    size, numerator, denominator = (np.asarray(value, np.int64) for value in (size_bytes, num, den))
    if np.any(size < 0):
        raise InputError(f"size = {size.min()} bytes is negative")
    if np.any(size.astype(np.float64) * numerator > float(LARGEST_PS) * denominator):
        raise InputError(f"a message of {size.max()} bytes takes more than 2**62 ps on a link of its route")
    whole, rest = np.divmod(size, denominator)
    return np.asarray(whole * numerator - (-rest * numerator) // denominator, np.int64)


def message_ps(mesh: Mesh, routes: Routes, size_bytes: ArrayLike) -> NDArray[np.int64]:
    """Contention-free cut-through time of each message, int64[n_messages].

    The sum of the latencies on its route and the serialisation at its slowest link. size_bytes: one per message, or
    one for all. Raises InputError as `check_links` does.
    """
    check_links(mesh)
    sizes = np.broadcast_to(np.asarray(size_bytes, np.int64), routes.index.shape)
    if routes.n_routes == 0:
        return np.zeros(0, np.int64)
    starts = routes.route_ptr[:-1]
    latency = np.add.reduceat(mesh.latency_ps[routes.route_links], starts)
    slowest, which = np.unique(
        np.minimum.reduceat(mesh.bandwidth_bytes_per_s[routes.route_links], starts), return_inverse=True
    )
    rates = np.array([rate(int(bandwidth)) for bandwidth in slowest], np.int64)[which[routes.index]]
    return latency[routes.index] + serialisation_ps(sizes, rates[:, 0], rates[:, 1])
