"""Experiments that others have published, repeated on the model by the engine that times runs."""

import numpy as np

from meshemu.emulator.collective_times import collective
from meshemu.emulator.timing import simulate_messages, time
from meshemu.errors import InputError
from meshemu.hardware import System
from meshemu.mesh import flatten
from meshemu.network import time_program

__all__ = ["across_ps", "all_reduce_ps", "bisection_traffic_bytes_per_s", "chain_reduce_cycles", "one_way_ps"]

BATCH_NORM_BYTES = 4096  # mean and variance of 512 channels in fp32
COLUMN_BYTES = 64 * 2**20  # over each link of the cut: long enough that latencies do not count


def all_reduce_ps(system: System, size_bytes: int = BATCH_NORM_BYTES) -> int:
    """An all-reduce over all devices by the algorithm that the model chooses."""
    program = collective("all_reduce", "auto", system=system, size_bytes=size_bytes, itemsize=4)
    return time(program, system).end_ps


def bisection_traffic_bytes_per_s(system: System) -> int:
    """Rate at which every device north of the middle sends to its counterpart south of it, all at once."""
    mesh = flatten(system)
    half = mesh.rows // 2
    src = np.flatnonzero((mesh.row < half) & mesh.alive)
    dst = src + half * mesh.cols
    src, dst = src[mesh.alive[dst]], dst[mesh.alive[dst]]
    senders = np.bincount(mesh.col[src], minlength=mesh.cols)[mesh.col[src]]
    size_bytes = COLUMN_BYTES // senders
    done = simulate_messages(system, src, dst, size_bytes, packet_bytes=65536)
    return int(size_bytes.sum()) * 10**12 // int(done.arrival_ps.max())


def one_way_ps(system: System) -> int:
    """A message of one byte from device 0 to device 1 of the system's first column, or row where it has one row."""
    return int(simulate_messages(system, [0], [system.cols if system.rows > 1 else 1], 1).arrival_ps[0])


def across_ps(system: System) -> int:
    """A message of one wavelet (4 B) along the longer side of the system."""
    mesh = flatten(system)
    down = mesh.nest[0][1] > mesh.nest[0][2] and mesh.rows > 1
    far = (mesh.rows - 1) * mesh.cols if down else mesh.cols - 1
    return int(simulate_messages(system, [0], [far], 4).arrival_ps[0])


def chain_reduce_cycles(n_cores: int, n_wavelets: int, *, additions: bool, system: System) -> int:
    """Cycles in which a column of cores reduces a vector to its end, wavelet by wavelet (4 B), each passing its sum on.

    system: with cores as devices; its fabric's latency is a cycle. additions: with the time of the arithmetic.
    Raises InputError if the system has no ramps between cores and routers.
    """
    if system.injection_bandwidth_bytes_per_s is None:
        raise InputError(f"{system.name} with {system.devices}s as devices has no ramps: give cores as devices")
    column = system.override({"cores": [n_cores, 1], "blocks": [1, 1], "dies": [1, 1]})
    program = collective(
        "reduce", "tree", system=column, size_bytes=4 * n_wavelets, itemsize=4, n_chunks=n_wavelets, root=0
    )
    if additions:
        end_ps = time(program, column, packet_bytes=4).end_ps
    else:
        end_ps = time_program(program, flatten(column), np.zeros(program.n_ops, np.int64), packet_bytes=4).end_ps
    return round(end_ps / system.figure("fabric.latency").number)
