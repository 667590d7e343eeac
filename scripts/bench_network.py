"""How fast the timing engine is: beside other simulators of the same model, and over MPI ranks.

    python scripts/bench_network.py [--large] [--ranks 1 2 4] [--repeat N]

First lines: a new process until its first message is timed, with compiled code on disk and without, in wall and in
processor time. First table, one core: packet-hops per second of whole calls (checks, routes, event loop, results) in
processor time, beside a heapq loop in plain Python (`meshemu.network.reference`) and, where they are installed, simpy
and SimGrid. These run a part of the messages where all would take too long. In back-pressure mode, which they do not
have, a packet is a flit. Second table: the same calls over MPI ranks, in wall time, all numbers of ranks in turn in one
run; `x`: how many times as fast as on the fewest ranks.

SimGrid runs its flow model CM02 with all corrections off: a message is one flow that shares links max-min, with the sum
of their latencies before it. There are no packets; its column counts those that the engine would have moved.
"""

import argparse
import importlib.util
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from traffic import bernoulli, destinations

from meshemu.collectives import collective_program
from meshemu.comm import Comm
from meshemu.hardware import Router, System
from meshemu.mesh import Mesh, flatten, rate, routes
from meshemu.network import MessageTimes, Timing, simulate_messages, time_program
from meshemu.network.reference import Reference, ReferenceLink, ReferenceOp
from meshemu.network.results import EngineCounters
from meshemu.program.ir import Program
from meshemu.runtime.memory import keep_freed_memory
from meshemu.runtime.mpi import as_comm, raw_world

Result = MessageTimes | Timing

PACKET_BYTES = 4096
MOST_HOPS = 400_000  # that a simulator in plain Python is given


@dataclass(frozen=True)
class Case:
    """A workload: its mesh, and its Program or its messages (src, dst, size_bytes of each, ready at ready_ps).

    router: of back-pressure mode.
    """

    name: str
    mesh: Mesh
    traffic: Program | tuple[np.ndarray, np.ndarray, int]
    packet_bytes: int = PACKET_BYTES
    ready_ps: np.ndarray | int = 0
    router: Router | None = None

    def run(self, comm: Comm | None = None) -> Result:
        """One call of the engine."""
        if isinstance(self.traffic, Program):
            free = np.zeros(self.traffic.n_ops, np.int64)
            return time_program(self.traffic, self.mesh, free, packet_bytes=self.packet_bytes, comm=comm)
        return simulate_messages(
            self.mesh, *self.traffic, self.ready_ps, packet_bytes=self.packet_bytes, router=self.router, comm=comm
        )


def grid(rows: int, cols: int) -> Mesh:
    return flatten(System.grid(rows=rows, cols=cols, bandwidth="50 GB/s", latency="500 ns"))


def all_reduce(algorithm: str, mesh: Mesh, size_bytes: int, packet_bytes: int = PACKET_BYTES) -> Case:
    program = collective_program("all_reduce", algorithm, mesh, size_bytes, itemsize=4)
    name = f"{algorithm} all-reduce {mesh.rows}x{mesh.cols}, {size_bytes / 1e6:.3g} MB"
    return Case(name, mesh, program, packet_bytes)


def all_to_all(rows: int, cols: int, size_bytes: int, turns: int | None = None) -> Case:
    """Turn t sends from every device d to device d + t; `turns` of them, spread over all."""
    mesh = grid(rows, cols)
    n = mesh.n_devices
    every = np.arange(1, n) if turns is None else np.linspace(1, n - 1, turns).astype(np.int64)
    src, turn = (axis.ravel() for axis in np.meshgrid(np.arange(n), every))
    name = "all-to-all" if turns is None else f"all-to-all ({turns} turns)"
    return Case(f"{name} {rows}x{cols}, {size_bytes >> 10} KiB", mesh, (src, (src + turn) % n, size_bytes))


def uniform(rows: int, cols: int, n_messages: int, size_bytes: int) -> Case:
    mesh, rng = grid(rows, cols), np.random.default_rng(0)
    src = rng.integers(0, mesh.n_devices, n_messages)
    dst = (src + rng.integers(1, mesh.n_devices, n_messages)) % mesh.n_devices
    return Case(f"uniform random {rows}x{cols}, {size_bytes >> 10} KiB", mesh, (src, dst, size_bytes))


def incast(rows: int, cols: int, size_bytes: int) -> Case:
    """Everybody sends to device 0."""
    mesh = grid(rows, cols)
    src = np.arange(1, mesh.n_devices)
    return Case(f"incast {rows}x{cols}, {size_bytes >> 10} KiB", mesh, (src, np.zeros_like(src), size_bytes))


def flits(rows: int, cols: int, load: float, virtual_channels: int) -> Case:
    """Back-pressure mode under 10,000 cycles of single flits to anywhere; load in flits per node and cycle of 1 ns."""
    mesh, rng = flatten(System.grid(rows=rows, cols=cols, bandwidth="64 GB/s", latency=0)), np.random.default_rng(7)
    cycle, src = bernoulli(mesh.n_devices, 10_000, load, rng)
    dst = destinations("uniform", rows, cols, src, rng)
    router = Router(flit_bytes=64, pipeline_cycles=5, virtual_channels=virtual_channels, buffer_flits=8)
    name = f"routers, {virtual_channels} VCs, {load} flits/node/cycle {rows}x{cols}"
    return Case(name, mesh, (src, dst, 64), 64, cycle * 1000, router)


CASES: dict[str, Callable[[], Case]] = {
    "ring": lambda: all_reduce("ring", grid(8, 8), 2**20),
    "ring 16": lambda: all_reduce("ring", grid(8, 8), 2**24),
    "all-to-all": lambda: all_to_all(8, 8, 2**16),
    "uniform": lambda: uniform(8, 8, 4000, 2**16),
    "incast": lambda: incast(8, 8, 2**20),
    "die": lambda: all_reduce("tree", flatten(System.preset("dojo-die")), 2**20, 64),
    "routers": lambda: flits(8, 8, 0.3, 4),
    "routers 16": lambda: flits(8, 8, 0.3, 16),
}
LARGE: dict[str, Callable[[], Case]] = {
    "rows_columns 60x50": lambda: all_reduce("rows_columns", grid(60, 50), 10**8),
    "all-to-all 60x50": lambda: all_to_all(60, 50, 2**14, 20),
    "uniform 60x50": lambda: uniform(60, 50, 30_000, 2**16),
    "incast 60x50": lambda: incast(60, 50, 2**16),
}


def some_messages(case: Case) -> tuple[list[list[int]], int]:
    """Routes, as link ids, of as many messages of a case as a simulator in plain Python is given; their size."""
    assert not isinstance(case.traffic, Program)
    src, dst, size_bytes = case.traffic
    paths = routes(case.mesh, src, dst)
    hops = np.diff(paths.route_ptr)[paths.index] * -(-size_bytes // case.packet_bytes)
    n = max(1, int(np.searchsorted(np.cumsum(hops), MOST_HOPS)))
    return [paths.links(route).tolist() for route in paths.index[:n]], size_bytes


def plain_python(case: Case) -> float | None:
    """Packet-hops per second of the reference model."""
    mesh, traffic = case.mesh, case.traffic
    if case.router:
        return None
    links = [
        ReferenceLink(*rate(int(bandwidth)), int(latency))
        for bandwidth, latency in zip(mesh.bandwidth_bytes_per_s, mesh.latency_ps, strict=True)
    ]
    if isinstance(traffic, Program):
        paths = routes(mesh, traffic.src, traffic.dst)
        hops = np.diff(paths.route_ptr)[paths.index] * -(-traffic.size_bytes // case.packet_bytes)
        if hops.sum() > 2 * MOST_HOPS:
            return None
        bounds = traffic.dep_ptr.tolist()
        ops = [
            ReferenceOp(int(kind), int(device), 0, traffic.dep[bounds[i] : bounds[i + 1]].tolist(), int(message), 1)
            for i, (kind, device, message) in enumerate(
                zip(traffic.kind, traffic.device, traffic.message, strict=True)
            )
        ]
        ways = [paths.links(route).tolist() for route in paths.index]
        model = Reference(links, traffic.size_bytes.tolist(), ways, [None] * len(ways), ops, case.packet_bytes)
    else:
        ways, size = some_messages(case)
        model = Reference(links, [size] * len(ways), ways, [0] * len(ways), [], case.packet_bytes)
    began = time.process_time()
    model.run()
    return model.n_packet_hops / (time.process_time() - began)


def with_simpy(case: Case) -> float | None:
    """Packet-hops per second of simpy: a packet is a process, a link a resource held for the serialisation."""
    if isinstance(case.traffic, Program) or case.router:
        return None
    import simpy

    ways, size = some_messages(case)
    environment = simpy.Environment()
    links = [simpy.Resource(environment) for _ in range(case.mesh.n_links)]
    latency = case.mesh.latency_ps.tolist()
    rates = [rate(int(bandwidth)) for bandwidth in case.mesh.bandwidth_bytes_per_s]

    def busy(link: int, request: object, size_bytes: int) -> Iterator[object]:
        num, den = rates[link]
        yield environment.timeout(-(-size_bytes * num // den))
        links[link].release(request)

    def packet(way: list[int], size_bytes: int) -> Iterator[object]:
        for link in way:
            request = links[link].request()
            yield request
            environment.process(busy(link, request, size_bytes))
            yield environment.timeout(latency[link])

    n_hops = 0
    for way in ways:
        for begin in range(0, size, case.packet_bytes):
            environment.process(packet(way, min(case.packet_bytes, size - begin)))
            n_hops += len(way)
    began = time.process_time()
    environment.run()
    return n_hops / (time.process_time() - began)


def with_simgrid(case: Case) -> float | None:
    """Packet-hops per second of SimGrid, in a process of its own: a process has one simulation only."""
    if isinstance(case.traffic, Program) or case.router:
        return None
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(run_simgrid, case).result()


def run_simgrid(case: Case) -> float:
    """A host for each device, a link for each directed link, the route of each message; all are sent at time 0."""
    from simgrid import ActivitySet, Comm, Engine

    flow_model = ["network/model:CM02", "network/crosstraffic:0", "network/TCP-gamma:0", "network/weight-S:0"]
    exact = ["network/latency-factor:1", "network/bandwidth-factor:1"]
    engine = Engine([__file__, *(f"--cfg={setting}" for setting in flow_model + exact), "--log=root.thres:error"])
    mesh, (src, dst, _) = case.mesh, case.traffic
    ways, size = some_messages(case)
    zone = engine.netzone_root
    hosts = [zone.add_host(f"device {device}", 1e9).seal() for device in range(mesh.n_devices)]
    links = [
        zone.add_link(f"link {link}", float(bandwidth)).set_latency(latency * 1e-12).seal()
        for link, (bandwidth, latency) in enumerate(
            zip(mesh.bandwidth_bytes_per_s.tolist(), mesh.latency_ps.tolist(), strict=True)
        )
    ]
    pairs = list(zip(src[: len(ways)].tolist(), dst[: len(ways)].tolist(), strict=True))
    for (sender, receiver), way in dict(zip(pairs, ways, strict=True)).items():
        zone.add_route(hosts[sender], hosts[receiver], [links[link] for link in way], False)
    zone.seal()

    def send_all() -> None:
        flows = ActivitySet()
        for sender, receiver in pairs:
            flows.push(Comm.sendto_async(hosts[sender], hosts[receiver], size))
        flows.wait_all()

    hosts[0].add_actor("sender", send_all)
    began = time.process_time()
    engine.run()
    return sum(map(len, ways)) * -(-size // case.packet_bytes) / (time.process_time() - began)


PEERS: dict[str, Callable[[Case], float | None]] = {
    "python": plain_python, "simpy": with_simpy, "SimGrid": with_simgrid
}  # fmt: skip

FIRST_MESSAGE = """
import meshemu
system = meshemu.System.grid(rows=8, cols=8, bandwidth="50 GB/s", latency="500 ns")
meshemu.simulate_messages(system, [0], [63], [4096], router={router})
"""


def start_up(repeat: int) -> None:
    """Print what a new process takes until the end of its first call, without compiled code and then with it."""
    row = "{:<42}{:>13.2f}{:>17.2f}"
    print(f"{'new process':<42}{'wall s':>13}{'processor s':>17}")
    for mode, router in (("FIFO", "None"), ("routers", "meshemu.Router()")):
        with tempfile.TemporaryDirectory() as cache:
            environment = os.environ | {"NUMBA_CACHE_DIR": cache}
            cold = first_message(router, environment)
            print(row.format(f"first message, {mode}, compiled on the way", *cold))
            warm = min(first_message(router, environment) for _ in range(repeat))
            print(row.format(f"first message, {mode}, compiled code on disk", *warm), flush=True)
    print()


def first_message(router: str, environment: dict[str, str]) -> tuple[float, float]:
    """(wall, processor) seconds of a process that times one message."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before, began = used(), time.perf_counter()
    subprocess.run([sys.executable, "-c", FIRST_MESSAGE.format(router=router)], env=environment, check=True)
    return time.perf_counter() - began, used() - before


def best(repeat: int, clock: Callable[[], float], call: Callable[[], Result]) -> tuple[EngineCounters, float]:
    """Counters and seconds of the fastest call; the first call, which loads or compiles, does not count."""
    call()
    timed = []
    for _ in range(repeat):
        began = clock()
        result = call()
        timed.append((clock() - began, result.counters))
    seconds, counters = min(timed, key=lambda one: one[0])
    return counters, seconds


def one_core(names: Iterable[str], repeat: int) -> None:
    """Print the table of packet-hops per second."""
    peers = {name: run for name, run in PEERS.items() if name == "python" or importlib.util.find_spec(name.lower())}
    for name in PEERS:
        if name not in peers:
            print(f"{name} is not installed: left out (pip install {name.lower()})")
    row = "{:<42}{:>13}{:>10}{:>12}" + "{:>12}{:>8}" * len(peers)
    heads = [text for name in peers for text in (f"{name} M/s", "ratio")]
    print(row.format("case", "packet-hops", "events", "engine M/s", *heads))
    for name in names:
        case = (CASES | LARGE)[name]()
        counters, seconds = best(repeat, time.process_time, case.run)
        speed = counters.packet_hops / seconds
        beside = []
        for peer in peers.values():
            found = peer(case)
            beside += ["", ""] if found is None else [f"{found / 1e6:.2f}", f"{speed / found:.0f}"]
        print(row.format(case.name, counters.packet_hops, counters.events, f"{speed / 1e6:.1f}", *beside), flush=True)


def over_ranks(names: Iterable[str], n_ranks: Iterable[int], repeat: int) -> None:
    """Print the table of strong scaling; the lines of a case are one run of this script under mpirun."""
    mpirun = Path(sys.executable).with_name("mpirun")
    launcher = str(mpirun) if mpirun.exists() else "mpirun"
    numbers = sorted(set(n_ranks))
    heads = ["best s", "loop s", "busy s", "windows", "imbalance", "memory", "median s", "x best", "x median"]
    print(f"\n{'case':<42}{'ranks':>6}" + "".join(f"{head:>10}" for head in heads))
    for name in names:
        options = ["--worker", name, "--repeat", str(repeat), "--ranks", *map(str, numbers)]
        subprocess.run([launcher, "-n", str(numbers[-1]), sys.executable, __file__, *options], check=True)


def worker(name: str, n_ranks: list[int], repeat: int) -> None:
    """The lines of a case: all numbers of ranks in turn, as often as is asked, so that they share good and bad minutes.

    Of the fastest call: seconds in all; loop, in windows; busy, processor time of the busiest rank in the event loop.
    The most memory of a rank that ran with no fewer ranks. The median call. How many times as fast as the fewest ranks,
    by the best calls, and the median of what neighbouring calls give.
    """
    everyone = raw_world()
    ranks = {n: as_comm(everyone.Split(color=int(everyone.rank >= n), key=everyone.rank)) for n in n_ranks}
    case = (CASES | LARGE)[name]()
    calls: dict[int, list[tuple[float, EngineCounters]]] = {n: [] for n in n_ranks}
    for turn in range(repeat + 1):
        for n, comm in ranks.items():
            if everyone.rank < n:
                began = time.perf_counter()
                counters = case.run(comm).counters
                if turn > 0:  # the first loads or compiles
                    calls[n].append((time.perf_counter() - began, counters))
            done = everyone.Ibarrier()
            while not done.Test():  # asleep: a rank that waits would take the memory's time from those that run
                time.sleep(0.001)
    memory = everyone.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    if everyone.rank > 0:
        return
    seconds = {n: np.array([one for one, _ in calls[n]]) for n in n_ranks}
    fewest = seconds[n_ranks[0]]
    for n in n_ranks:
        call_s, counters = min(calls[n], key=lambda one: one[0])
        busy_s = max(rank.busy_s for rank in counters.ranks)
        figures = [f"{one:.3f}" for one in (call_s, counters.wall_s, busy_s)]
        figures += [str(counters.windows), f"{counters.imbalance:.2f}", f"{memory[n - 1] / 2**20:.2f}G"]
        figures += [f"{np.median(seconds[n]):.3f}", f"{fewest.min() / call_s:.2f}"]
        figures += [f"{np.median(fewest / seconds[n]):.2f}"]
        print(f"{case.name:<42}{n:>6}" + "".join(f"{figure:>10}" for figure in figures), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="also 60x50 devices, and the table over ranks")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="numbers of ranks of that table")
    parser.add_argument("--over-ranks", nargs="+", choices=LARGE, metavar="CASE", help="that table alone, of these")
    parser.add_argument("--repeat", type=int, default=7, help="the best of so many calls counts")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    keep_freed_memory(os.environ)  # as the command line does
    if arguments.worker:
        worker(arguments.worker, arguments.ranks, arguments.repeat)
        return
    if arguments.over_ranks:
        over_ranks(arguments.over_ranks, arguments.ranks, arguments.repeat)
        return
    start_up(min(arguments.repeat, 3))
    one_core([*CASES, *(LARGE if arguments.large else [])], arguments.repeat)
    if arguments.large:
        over_ranks(LARGE, arguments.ranks, arguments.repeat)


if __name__ == "__main__":
    main()
