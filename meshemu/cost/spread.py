"""How a matrix product spreads over the nodes of a device, and what its shape costs there.

A product of a batch of M x K by K x N matrices is cut into pb x pm x pn x pk equal parts, one a node, at most as many
as there are nodes. The pipe of a node computes whole products of m x n x k, so the busiest node takes

    ceil(B / pb) ceil(ceil(M / m) / pm) ceil(ceil(N / n) / pn) ceil(ceil(K / k) / pk)

of them, at the node's share of the peak rate. Nodes side by side along N need the same rows of the left operand, and
nodes side by side along M the same columns of the right one: an operand that several nodes need is sent to them over
the on-die network while they compute, as fast as a node takes in bytes; one that is cut as the nodes are lies where it
is needed. If the sum over K is cut (into a power of two), its partial sums in fp32 are exchanged and added afterwards,
each node those of its share. Of all such cuts, and of the matrix unit and the vector pipe (L lanes along M or N), the
fastest is taken.
"""

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from meshemu.cost.exact import PS_PER_S
from meshemu.cost.number_formats import bits_of, flops_per_s
from meshemu.hardware.device import DeviceSpec

__all__ = ["Pipe", "ProductTime", "lanes", "pipes_of", "product_time"]

_PARTIAL_BYTES = 4  # fp32


@dataclass(frozen=True)
class Pipe:
    """What computes products on every node: whole ones of `sides` (m, n, k), at flops_per_s of all nodes together."""

    sides: tuple[int, int, int]
    flops_per_s: int
    matrix: bool


@dataclass(frozen=True)
class ProductTime:
    """Of one product: arithmetic of the busiest node; operands that it takes in meanwhile; partial sums afterwards."""

    arithmetic_ps: int
    ingest_ps: int
    exchange_ps: int
    matrix: bool

    @property
    def total_ps(self) -> int:
        """From its first to its last operation."""
        return max(self.arithmetic_ps, self.ingest_ps) + self.exchange_ps


def lanes(device: DeviceSpec, number_format: str) -> int:
    """Elements that the vector pipe of a node holds."""
    return max(1, 8 * device.vector_bytes // bits_of(number_format))


def pipes_of(device: DeviceSpec, number_format: str) -> tuple[Pipe, ...]:
    """The pipes of a device whose matrix unit is known."""
    assert device.matrix_unit is not None
    vector, wide = flops_per_s(device, number_format, matrix=False), lanes(device, number_format)
    return (
        Pipe(device.matrix_unit, flops_per_s(device, number_format, matrix=True), True),
        Pipe((wide, 1, 1), vector, False),
        Pipe((1, wide, 1), vector, False),
    )


def product_time(device: DeviceSpec, number_format: str, product: tuple[int, ...]) -> ProductTime:
    """The time of one product (batch, m, n, k, elements of the left operand, of the right one) by the fastest cut."""
    times = (_by_pipe(device, number_format, product, pipe) for pipe in pipes_of(device, number_format))
    return min(times, key=lambda time: time.total_ps)


def _by_pipe(device: DeviceSpec, number_format: str, product: tuple[int, ...], pipe: Pipe) -> ProductTime:
    """The fastest cut for one pipe: chosen in floating point, then timed in whole numbers."""
    batch, m, n, k, left, right = product
    rates = _Rates(device, number_format, pipe)
    whole = np.array((batch, *(-(-z // a) for z, a in zip((m, n, k), pipe.sides, strict=True))))
    cuts = _cuts(whole, device.n_nodes)
    steps = -(-whole[:, None] // cuts)
    rows = np.minimum(steps * np.array((1, *pipe.sides))[:, None], np.array((batch, m, n, k))[:, None])
    qb, rm, rn, rk = rows / np.array((batch, m, n, k))[:, None]
    taken = (cuts[2] > 1) * (left * qb * rm * rk) + (cuts[1] > 1) * (right * qb * rn * rk)
    moved = (batch * m * n) * (qb * rm * rn) * (1 - 1 / cuts[3])
    times = np.maximum(rates.step_s * steps.prod(axis=0), rates.take_s * taken) + rates.exchange_s * moved
    best = int(np.argmin(times))
    _, pm, pn, pk = cuts[:, best].tolist()
    b, i, j, s = rows[:, best].tolist()
    of_left, of_right = _ceil(left * b * i * s, batch * m * k), _ceil(right * b * j * s, batch * n * k)
    taken_whole = (pn > 1) * of_left + (pm > 1) * of_right
    return rates.time(prod(steps[:, best].tolist()), taken_whole, _ceil(b * i * j * (pk - 1), pk))


class _Rates:
    """What one node does in a second, as seconds for the choice and as exact picoseconds for the result."""

    def __init__(self, device: DeviceSpec, number_format: str, pipe: Pipe) -> None:
        self._matrix = pipe.matrix
        self._bits = bits_of(number_format)
        self._ingest = device.ingest_bytes_per_s
        self._step = 2 * prod(pipe.sides) * device.n_nodes, pipe.flops_per_s
        self._add = device.n_nodes, flops_per_s(device, "fp32", matrix=False)
        byte_s = 1 / self._ingest if self._ingest else 0.0
        self.step_s = self._step[0] / self._step[1]
        self.take_s = byte_s * self._bits / 8
        self.exchange_s = byte_s * _PARTIAL_BYTES + self._add[0] / self._add[1]

    def time(self, steps: int, taken: int, moved: int) -> ProductTime:
        """The time of so many steps, elements of operands taken in, and partial sums moved and added."""

        def transfer_ps(size_bytes: int) -> int:
            return _ceil(size_bytes * PS_PER_S, self._ingest) if self._ingest else 0

        return ProductTime(
            arithmetic_ps=_ceil(steps * self._step[0] * PS_PER_S, self._step[1]),
            ingest_ps=transfer_ps(_ceil(taken * self._bits, 8)),
            exchange_ps=transfer_ps(_PARTIAL_BYTES * moved) + _ceil(moved * self._add[0] * PS_PER_S, self._add[1]),
            matrix=self._matrix,
        )


def _cuts(whole: NDArray[np.int64], n_nodes: int) -> NDArray[np.int64]:
    """Cuts (pb, pm, pn, pk), int64[4, n_cuts], that may be the fastest.

    Every pb and pm that shortens its dim, powers of two for pk, and of pn either no cut or all nodes that are left:
    more of it takes no longer once there is one.
    """
    b, m = (_shortening(int(length), n_nodes) for length in whole[:2])
    k = 2 ** np.arange(min(n_nodes, int(whole[3])).bit_length())
    pb, pm, pk = (grid.ravel() for grid in np.meshgrid(b, m, k, indexing="ij"))
    left = n_nodes // (pb * pm * pk)
    pb, pm, pk, left = (cut[left > 0] for cut in (pb, pm, pk, left))
    pn = np.minimum(left, whole[2])
    several = pn > 1
    one = np.stack((pb, pm, np.ones_like(pn), pk))
    return np.concatenate((one, np.stack((pb, pm, pn, pk))[:, several]), axis=1)


def _shortening(length: int, n_nodes: int) -> NDArray[np.int64]:
    """The least number of parts for every length of the longest part that so many nodes can have."""
    parts = np.arange(1, min(length, n_nodes) + 1)
    _, first = np.unique(-(-length // parts), return_index=True)
    return np.asarray(parts[first])


def _ceil(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
