"""How fast the timing engine is: packet-hops per second beside the same model in plain Python, and end to end.

    python scripts/bench_network.py [--large] [--repeat N]

`engine` is a whole call, with checks, routes and results; `python` the event loop of `meshemu.network.reference` alone
(at most 4,000 messages); `ratio` engine / python. CPU time of one core, so that other processes disturb little.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from meshemu.collectives import collective_program
from meshemu.hardware import System
from meshemu.mesh import Mesh, flatten, rate, routes
from meshemu.network import MessageTimes, Timing, simulate_messages, time_program
from meshemu.network.reference import Reference, ReferenceLink, ReferenceOp
from meshemu.program.ir import Program

PACKET_BYTES = 4096


@dataclass(frozen=True)
class Case:
    """A workload: how to run it, and its messages or Program for the reference."""

    name: str
    mesh: Mesh
    run: Callable[[], MessageTimes | Timing]
    traffic: tuple[np.ndarray, np.ndarray, int] | Program


def grid(rows: int, cols: int) -> Mesh:
    return flatten(System.grid(rows=rows, cols=cols, bandwidth="50 GB/s", latency="500 ns"))


def ring(rows: int, cols: int, size_bytes: int) -> Case:
    mesh = grid(rows, cols)
    program = collective_program("all_reduce", "ring", mesh, size_bytes)
    free = np.zeros(program.n_ops, np.int64)
    name = f"ring all-reduce {rows}x{cols}, {size_bytes >> 10} KiB"
    return Case(name, mesh, lambda: time_program(program, mesh, free, packet_bytes=PACKET_BYTES), program)


def messages(name: str, mesh: Mesh, src: np.ndarray, dst: np.ndarray, size_bytes: int) -> Case:
    def run() -> MessageTimes:
        return simulate_messages(mesh, src, dst, size_bytes, packet_bytes=PACKET_BYTES)

    return Case(f"{name} {mesh.rows}x{mesh.cols}, {size_bytes >> 10} KiB", mesh, run, (src, dst, size_bytes))


def all_to_all(rows: int, cols: int, size_bytes: int, turns: int | None = None) -> Case:
    """Turn t sends from every device d to device d + t; `turns` of them, spread over all."""
    mesh = grid(rows, cols)
    n = mesh.n_devices
    every = np.arange(1, n) if turns is None else np.linspace(1, n - 1, turns).astype(np.int64)
    src, turn = (axis.ravel() for axis in np.meshgrid(np.arange(n), every))
    name = "all-to-all" if turns is None else f"all-to-all ({turns} turns)"
    return messages(name, mesh, src, (src + turn) % n, size_bytes)


def uniform(rows: int, cols: int, n_messages: int, size_bytes: int) -> Case:
    mesh, rng = grid(rows, cols), np.random.default_rng(0)
    src = rng.integers(0, mesh.n_devices, n_messages)
    dst = (src + rng.integers(1, mesh.n_devices, n_messages)) % mesh.n_devices
    return messages("uniform random", mesh, src, dst, size_bytes)


def reference(case: Case, most_messages: int = 4000) -> Reference:
    """The plain Python model on the case, or on its first messages where it would take too long."""
    mesh = case.mesh
    ops: list[ReferenceOp] = []
    if isinstance(case.traffic, Program):
        program = case.traffic
        src, dst, sizes = program.src, program.dst, program.size_bytes.tolist()
        ready: list[int | None] = [None] * len(sizes)
        columns = zip(program.kind, program.device, program.message, strict=True)
        ends = program.dep_ptr.tolist()
        ops = [
            ReferenceOp(int(kind), int(device), 0, program.dep[ends[i] : ends[i + 1]].tolist(), int(message))
            for i, (kind, device, message) in enumerate(columns)
        ]
    else:
        src, dst, size_bytes = case.traffic
        src, dst = src[:most_messages], dst[:most_messages]
        sizes, ready = [size_bytes] * len(src), [0] * len(src)
    paths = routes(mesh, src, dst)
    links = [
        ReferenceLink(*rate(int(bandwidth)), int(latency))
        for bandwidth, latency in zip(mesh.bandwidth_bytes_per_s, mesh.latency_ps, strict=True)
    ]
    return Reference(links, sizes, [paths.links(i).tolist() for i in paths.index], ready, ops, PACKET_BYTES)


def best(repeat: int, function: Callable[[], MessageTimes | Timing]) -> tuple[MessageTimes | Timing, float]:
    """The result and the least CPU seconds of a call."""
    seconds = []
    for _ in range(repeat):
        began = time.process_time()
        result = function()
        seconds.append(time.process_time() - began)
    return result, min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="also 60x50 devices")
    parser.add_argument("--repeat", type=int, default=7, help="the best of so many runs counts")
    arguments = parser.parse_args()
    cases = [ring(8, 8, 2**20), ring(8, 8, 2**24), all_to_all(8, 8, 2**16), uniform(8, 8, 4000, 2**16)]
    if arguments.large:
        large_ring = ring(60, 50, 3000 * 2**14)
        cases += [all_to_all(60, 50, 2**14, 20), uniform(60, 50, 60_000, 2**14), large_ring]
    row = "{:<44}{:>12}{:>10}{:>13}{:>13}{:>8}"
    print(row.format("case", "packet-hops", "events", "engine M/s", "python M/s", "ratio"))
    for case in cases:
        case.run()
        result, call_s = best(arguments.repeat, case.run)
        hops = result.counters.packet_hops
        plain = ["", ""]
        if not isinstance(case.traffic, Program) or case.traffic.n_ops < 10**5:
            model = reference(case)
            began = time.process_time()
            model.run()
            speed = model.n_packet_hops / (time.process_time() - began)
            plain = [f"{speed / 1e6:.2f}", f"{hops / call_s / speed:.0f}"]
        print(row.format(case.name, hops, result.counters.events, f"{hops / call_s / 1e6:.1f}", *plain))


if __name__ == "__main__":
    main()
