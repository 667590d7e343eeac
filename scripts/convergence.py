"""Packet size as a knob: what larger packets change against 64-byte ones, and how much work they save.

    python scripts/convergence.py [--write] [--png convergence.png] [--config configs/first_light.toml]

Three cases: a training step (`--config`), an all-to-all on 8 x 8 devices, and uniformly random messages there. The end
is that of the last message or op, the transit of a message lasts from when it is ready until it has arrived. These and
packet-hops are the same on every machine, wall times are not. `--write` renews the tables of docs/timing-model.md.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import meshemu
from meshemu.cost import durations_ps
from meshemu.hardware import System
from meshemu.mesh import Mesh, flatten
from meshemu.network import MessageTimes, Timing, simulate_messages, time_program

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "timing-model.md"
BEGIN, END = "<!-- convergence: begin -->", "<!-- convergence: end -->"
PACKETS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


@dataclass(frozen=True)
class Case:
    """Traffic by name, how to time it with packets of a given size, and when each message was ready in a result."""

    name: str
    timed: Callable[[int], Timing | MessageTimes]
    ready_ps: Callable[[Timing | MessageTimes], NDArray[np.int64]]


@dataclass(frozen=True)
class Outcome:
    """One case at one packet size."""

    packet_bytes: int
    end_ps: int
    mean_transit_ps: float
    packet_hops: int
    wall_s: float


def plain_mesh(rows: int, cols: int) -> Mesh:
    """Links of 50 GB/s and 500 ns."""
    return flatten(System.grid(rows=rows, cols=cols, bandwidth="50 GB/s", latency="500 ns"))


def all_to_all(rows: int = 8, cols: int = 8, size_bytes: int = 65536) -> Case:
    """Everyone sends to everyone, all at 0."""
    mesh = plain_mesh(rows, cols)
    src, dst = np.divmod(np.flatnonzero(np.eye(mesh.n_devices).ravel() == 0), mesh.n_devices)
    size = np.full(len(src), size_bytes)
    return Case(
        f"all-to-all, {rows} x {cols}, {size_bytes >> 10} KiB",
        lambda packet: simulate_messages(mesh, src, dst, size, packet_bytes=packet),
        lambda _: np.zeros(len(src), np.int64),
    )


def uniform(rows: int = 8, cols: int = 8, size_bytes: int = 65536, n: int = 3000, load: float = 0.4) -> Case:
    """Messages between random pairs at random times (Poisson); each device injects `load` of a link's bandwidth."""
    mesh, rng = plain_mesh(rows, cols), np.random.default_rng(1)
    src = rng.integers(0, mesh.n_devices, n)
    dst = (src + rng.integers(1, mesh.n_devices, n)) % mesh.n_devices
    spacing_ps = size_bytes * 20 / load / mesh.n_devices
    ready = np.cumsum(rng.exponential(spacing_ps, n)).astype(np.int64)
    return Case(
        f"uniform random, {rows} x {cols}, {n} x {size_bytes >> 10} KiB, load {load}",
        lambda packet: simulate_messages(mesh, src, dst, size_bytes, ready, packet_bytes=packet),
        lambda _: ready,
    )


def step(config: Path) -> Case:
    """A training step as `meshemu run` times it."""
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / "run.h5"
        meshemu.run(config, output=stored, execute=False)
        run = meshemu.open(stored)
        program, system = run.program(), System.from_json(run.system_json)
    mesh, duration = flatten(system), durations_ps(program, system.device)
    return Case(
        f"step of {config.stem} on {system.name}",
        lambda packet: time_program(program, mesh, duration, packet_bytes=packet, timeline_bins=0),
        lambda found: found.ops.start_ps[program.send_op],
    )


def study(case: Case, packets: tuple[int, ...] = PACKETS) -> list[Outcome]:
    """Time a case at each packet size, best wall time of two."""
    outcomes = []
    for packet_bytes in packets:
        walls = []
        for _ in range(2):
            began = time.perf_counter()
            found = case.timed(packet_bytes)
            walls.append(time.perf_counter() - began)
        mean = float((found.arrival_ps - case.ready_ps(found)).mean())
        outcomes.append(Outcome(packet_bytes, found.end_ps, mean, found.counters.packet_hops, min(walls)))
    return outcomes


def rows(outcomes: list[Outcome]) -> list[str]:
    """Rows of the table; errors are relative to the first outcome."""
    finest = outcomes[0]
    return [
        f"| {o.packet_bytes:,} | {o.end_ps / 1e6:.3f} | {100 * (o.end_ps / finest.end_ps - 1):+.2f} % "
        f"| {o.mean_transit_ps / 1e6:.6g} | {100 * (o.mean_transit_ps / finest.mean_transit_ps - 1):+.2f} % "
        f"| {o.packet_hops:,} | {1e3 * o.wall_s:,.0f} |"
        for o in outcomes
    ]


def table(name: str, outcomes: list[Outcome]) -> str:
    """One case as Markdown."""
    head = "| packet (B) | end (us) | error | mean transit (us) | error | packet-hops | wall (ms) |"
    return "\n".join([f"**{name}**", "", head, "|---|---|---|---|---|---|---|", *rows(outcomes)])


def write(text: str) -> None:
    """Put the tables between the marks of the page."""
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def draw(studies: dict[str, list[Outcome]], path: Path) -> None:
    """Errors of the end and of the mean transit, and packet-hops, over the packet size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for name, outcomes in studies.items():
        size, finest = [o.packet_bytes for o in outcomes], outcomes[0]
        axes[0].plot(size, [100 * (o.end_ps / finest.end_ps - 1) for o in outcomes], "o-", label=name)
        axes[1].plot(size, [100 * (o.mean_transit_ps / finest.mean_transit_ps - 1) for o in outcomes], "o-")
        axes[2].plot(size, [o.packet_hops for o in outcomes], "o-")
    for axis, title in zip(axes, ("end, error in %", "mean transit, error in %", "packet-hops"), strict=True):
        axis.set(xscale="log", title=title, xlabel="packet size (bytes)")
        axis.set_xticks([64, 512, 4096, 32768], ["64", "512", "4096", "32768"], minor=False)
        axis.grid(alpha=0.3)
    axes[2].set_yscale("log")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run the study, print it, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "first_light.toml")
    parser.add_argument("--png", type=Path, help="file for a picture")
    parser.add_argument("--write", action="store_true", help="renew the table of docs/timing-model.md")
    options = parser.parse_args()
    cases = [step(options.config), all_to_all(), uniform()]
    cases[1].timed(65536)  # compiles
    studies = {case.name: study(case) for case in cases}
    text = "\n\n".join(table(name, outcomes) for name, outcomes in studies.items())
    print(text)
    if options.png:
        draw(studies, options.png)
    if options.write:
        write(text)


if __name__ == "__main__":
    main()
