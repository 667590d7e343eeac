"""Latency against load on a mesh: routers with finite buffers beside unbounded FIFOs, as CSV and PNG.

    python scripts/latency_load.py --pattern uniform --rows 8 --cols 8 --loads 0.05:0.5:0.05 --out DIR

Every node creates messages of --message-flits flits at random (Bernoulli, --seed), so that it offers `load` flits per
cycle. Messages created in the --cycles after the --warmup are measured, from their creation until their last flit has
arrived; the nodes go on for another --warmup, and all messages are delivered. Accepted: flits that arrive in the
measured cycles, per node and cycle.

A cycle is 1 ns, a flit 64 B, a link carries one flit per cycle; latency of links is part of --pipeline-cycles. FIFO
mode has no local ports: its links take pipeline_cycles, and the destination's router and the local channels are added.
"""

import argparse
import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from traffic import PATTERNS, bernoulli, destinations

from meshemu.errors import InputError
from meshemu.hardware import System
from meshemu.mesh import flatten
from meshemu.network import Router, simulate_messages

CYCLE_PS = 1000
FLIT_BYTES = 64
BANDWIDTH = "64 GB/s"

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Experiment:
    """What is the same for all loads."""

    pattern: str
    rows: int
    cols: int
    message_flits: int
    warmup: int
    cycles: int
    seed: int
    router: Router


@dataclass(frozen=True)
class Point:
    """One row of the CSV. Loads in flits per node and cycle, latencies in cycles; messages: how many were measured."""

    pattern: str
    mode: str
    offered: float
    accepted: float
    mean_latency: float
    p99_latency: float
    messages: int


@dataclass(frozen=True, eq=False)
class Traffic:
    """Messages by time: creation in cycles, sender, destination."""

    cycle: Ints
    src: Ints
    dst: Ints


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pattern", default="uniform", help=", ".join(PATTERNS))
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--cols", type=int, default=8)
    parser.add_argument("--loads", default="0.05:0.5:0.05", help="first:last:step, or a,b,c")
    parser.add_argument("--message-flits", type=int, default=1)
    parser.add_argument("--warmup", type=int, default=5_000, help="cycles")
    parser.add_argument("--cycles", type=int, default=10_000, help="measured cycles")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pipeline-cycles", type=int, default=5)
    parser.add_argument("--virtual-channels", type=int, default=16)
    parser.add_argument("--buffer-flits", type=int, default=8)
    parser.add_argument("--switching", default="wormhole", help="wormhole or virtual_cut_through")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for the CSV and the PNG")
    given = parser.parse_args(arguments)
    try:
        loads = parse_loads(given.loads)
        router = Router(
            flit_bytes=FLIT_BYTES,
            pipeline_cycles=given.pipeline_cycles,
            virtual_channels=given.virtual_channels,
            buffer_flits=given.buffer_flits,
            switching=given.switching,
        )
        experiment = Experiment(
            given.pattern, given.rows, given.cols, given.message_flits, given.warmup, given.cycles, given.seed, router
        )
        points = [point for load in loads for point in measure(experiment, load)]
    except InputError as error:
        parser.error(str(error))
    given.out.mkdir(parents=True, exist_ok=True)
    name = f"latency_load_{given.pattern}_{given.rows}x{given.cols}"
    write_csv(points, given.out / f"{name}.csv")
    draw(points, experiment, given.out / f"{name}.png")
    print(table(points))


def parse_loads(text: str) -> list[float]:
    """Loads of "first:last:step" (last included) or of "a,b,c". InputError for anything else."""
    try:
        if ":" not in text:
            return [float(part) for part in text.split(",")]
        first, last, step = (Fraction(part) for part in text.split(":"))
        return [float(first + k * step) for k in range(int((last - first) / step) + 1)]
    except (ValueError, ZeroDivisionError):
        raise InputError(f"--loads {text}: give first:last:step or a,b,c, for example 0.05:0.5:0.05") from None


def measure(experiment: Experiment, load: float) -> Iterator[Point]:
    """Both modes on the same messages."""
    traffic = create(experiment, load)
    for mode, simulate in (("router", with_routers), ("fifo", with_fifos)):
        yield summarise(experiment, load, mode, traffic, simulate(experiment, traffic))


def create(experiment: Experiment, load: float) -> Traffic:
    """Messages of the warm-up, the measured cycles and another warm-up."""
    rng = np.random.default_rng([experiment.seed, round(load * 10**6)])
    n_cycles = 2 * experiment.warmup + experiment.cycles
    cycle, src = bernoulli(experiment.rows * experiment.cols, n_cycles, load / experiment.message_flits, rng)
    return Traffic(cycle, src, destinations(experiment.pattern, experiment.rows, experiment.cols, src, rng))


def with_routers(experiment: Experiment, traffic: Traffic) -> Ints:
    """Arrivals in ps."""
    mesh = flatten(System.grid(rows=experiment.rows, cols=experiment.cols, bandwidth=BANDWIDTH, latency=0))
    size_bytes = experiment.message_flits * FLIT_BYTES
    return simulate_messages(
        mesh, traffic.src, traffic.dst, size_bytes, traffic.cycle * CYCLE_PS, packet_bytes=size_bytes,
        router=experiment.router,
    ).arrival_ps  # fmt: skip


def with_fifos(experiment: Experiment, traffic: Traffic) -> Ints:
    """Arrivals in ps. A message to its own node meets no link."""
    hop_ps = experiment.router.pipeline_cycles * CYCLE_PS
    mesh = flatten(System.grid(rows=experiment.rows, cols=experiment.cols, bandwidth=BANDWIDTH, latency=hop_ps))
    size_bytes = experiment.message_flits * FLIT_BYTES
    away = traffic.src != traffic.dst
    arrival = traffic.cycle * CYCLE_PS + experiment.message_flits * CYCLE_PS
    arrival[away] = simulate_messages(
        mesh, traffic.src[away], traffic.dst[away], size_bytes, traffic.cycle[away] * CYCLE_PS, packet_bytes=size_bytes
    ).arrival_ps
    return np.asarray(arrival + hop_ps + CYCLE_PS)


def summarise(experiment: Experiment, load: float, mode: str, traffic: Traffic, arrival_ps: Ints) -> Point:
    begin, end = experiment.warmup, experiment.warmup + experiment.cycles
    measured = (traffic.cycle >= begin) & (traffic.cycle < end)
    latency = (arrival_ps - traffic.cycle * CYCLE_PS)[measured] / CYCLE_PS
    arrived = np.count_nonzero((arrival_ps >= begin * CYCLE_PS) & (arrival_ps < end * CYCLE_PS))
    per_flit = experiment.message_flits / (experiment.rows * experiment.cols * experiment.cycles)
    return Point(
        pattern=experiment.pattern,
        mode=mode,
        offered=load,
        accepted=round(float(arrived) * per_flit, 5),
        mean_latency=round(float(latency.mean()), 3) if latency.size else float("nan"),
        p99_latency=round(float(np.percentile(latency, 99)), 3) if latency.size else float("nan"),
        messages=len(latency),
    )


def write_csv(points: Sequence[Point], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Point)])
        writer.writeheader()
        writer.writerows(asdict(point) for point in points)


def draw(points: Sequence[Point], experiment: Experiment, path: Path) -> None:
    """Latency and accepted load over offered load, both modes."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    series: tuple[tuple[str, str, str], ...] = (("router", "tab:blue", "routers"), ("fifo", "tab:orange", "FIFOs"))
    for mode, colour, name in series:
        of_mode = [point for point in points if point.mode == mode]
        offered = [point.offered for point in of_mode]
        curve(left, offered, of_mode, lambda point: point.mean_latency, colour, "o-", f"{name}, mean")
        curve(left, offered, of_mode, lambda point: point.p99_latency, colour, ":", f"{name}, 99 %")
        curve(right, offered, of_mode, lambda point: point.accepted, colour, "o-", name)
    lowest = min(point.mean_latency for point in points)
    left.set_ylim(0, 4 * lowest)
    left.set_ylabel("latency (cycles)")
    right.plot([0, max(point.offered for point in points)], [0, max(point.offered for point in points)], "k--", lw=0.8)
    right.set_ylim(0, None)
    right.set_ylabel("accepted (flits / node / cycle)")
    for axes in (left, right):
        axes.set_xlabel("offered (flits / node / cycle)")
        axes.set_xlim(0, None)
        axes.grid(alpha=0.3)
        axes.legend()
    router = experiment.router
    figure.suptitle(
        f"{experiment.pattern} traffic, {experiment.rows} x {experiment.cols} mesh, {experiment.message_flits}-flit "
        f"messages, {router.pipeline_cycles}-cycle routers, {router.virtual_channels} VCs x {router.buffer_flits} flits"
    )
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def curve(
    axes: object, offered: Sequence[float], points: Sequence[Point], value: Callable[[Point], float],
    colour: str, style: str, label: str,
) -> None:
    axes.plot(offered, [value(point) for point in points], style, color=colour, label=label, markersize=4)


def table(points: Sequence[Point]) -> str:
    lines = [f"{'mode':<8}{'offered':>9}{'accepted':>10}{'mean':>10}{'99 %':>10}{'messages':>10}"]
    lines += [
        f"{p.mode:<8}{p.offered:>9.3f}{p.accepted:>10.4f}{p.mean_latency:>10.2f}{p.p99_latency:>10.1f}{p.messages:>10,}"
        for p in points
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
