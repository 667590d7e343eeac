"""Time and memory of one emulated training step on 25 devices beside plain PyTorch: same model, same global batch.

    python scripts/bench_step.py                                   # RegNet, 50 images of 40 px
    python scripts/bench_step.py --model resnet50 --image-size 224 --batch-size 25 --steps 3 --ranks 1 2
    python scripts/bench_step.py --cases data:1 --model resnet50   # one case only, without ratios

Each case runs in processes of its own, one thread a rank. Ratios are to plain PyTorch with as many threads as the case
has ranks. Times are medians over the steps after the first: of wall time, and of processor time a core, which other
programs disturb less (of the busiest rank; a rank that waits for another is busy). Memory is what a process has at most
beyond the model and the batch, of the largest rank.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

import meshemu
from meshemu.comm import Comm
from meshemu.emulator.prepare import prepare
from meshemu.emulator.timed_step import TimingOptions
from meshemu.execute.training import Trainer
from meshemu.runtime.mpi import as_comm
from meshemu.workload.models import build_model

MODELS: Mapping[str, dict[str, Any]] = {
    "regnet": {"in_channels": 3, "num_classes": 10, "stem_width": 32, "widths": [32, 64], "depths": [1, 2],
               "group_width": 32},
    "resnet50": {},
}  # fmt: skip
KINDS = {
    "convolution": "convolutions", "convolution_backward": "convolutions", "mm": "products", "addmm": "products",
    "bmm": "products", "fetch": "halos", "push_add": "halos", "all_reduce": "collectives",
    "reduce_scatter": "collectives", "all_gather": "collectives",
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """Medians of a step; memory of the largest rank. parts_s: mean processor time by kind of work, of one rank."""

    wall_s: float
    processor_s: float
    memory_bytes: int
    parts_s: dict[str, float]


def main() -> None:
    """Print a table of all cases and where the time of the emulated ones goes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="regnet")
    parser.add_argument("--image-size", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--steps", type=int, default=5, help="measured ones, after one to warm up")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1])
    about = "such as plain:1 or spatial:2; without it, plain, data and spatial"
    parser.add_argument("--cases", nargs="+", type=case_name, help=about)
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # of the processes that this script starts
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options)
        return
    cases = options.cases or [f"{kind}:{n}" for n in options.ranks for kind in ("plain", "data", "spatial")]
    print(f"{options.model}, {options.batch_size} images of {options.image_size} px, 25 devices")
    print(f"{'':<12}{'ranks':>6}{'wall s':>9}{'ratio':>7}{'core s':>9}{'ratio':>7}{'MiB':>8}{'ratio':>7}")
    results: dict[str, Measured] = {}
    for case in cases:
        results[case] = launch(case)
        print(row(case, results), flush=True)
    for case, measured in results.items():
        if measured.parts_s:
            print(f"\n{case} spends, s of a core:")
            print("\n".join(f"  {kind:<24}{s:>9.3f}" for kind, s in measured.parts_s.items()))


def case_name(text: str) -> str:
    """KIND:RANKS as it was written. ArgumentTypeError if it is no such thing."""
    kind, _, ranks = text.partition(":")
    if kind not in ("plain", "data", "spatial") or not ranks.isdecimal() or int(ranks) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not plain, data or spatial, a colon and a number of ranks")
    return text


def row(case: str, results: Mapping[str, Measured]) -> str:
    """One line of the table; ratios to the plain case with as many threads, if it was measured before."""
    kind, ranks = case.split(":")
    own, plain = results[case], results.get(f"plain:{ranks}")
    columns = [(own.wall_s, "9.3f"), (own.processor_s, "9.3f"), (own.memory_bytes / 2**20, "8.0f")]
    base = [None] * 3 if plain is None else [plain.wall_s, plain.processor_s, plain.memory_bytes / 2**20]
    cells = (f"{x:{form}}{'' if b is None else f'{x / b:.2f}':>7}" for (x, form), b in zip(columns, base, strict=True))
    return f"{kind:<12}{ranks:>6}{''.join(cells)}"


def launch(case: str) -> Measured:
    """Measure a case in processes of its own: this script again, with the same options."""
    kind, n = case.split(":")
    threads = n if kind == "plain" else "1"
    command = [sys.executable, __file__, *sys.argv[1:], "--measure", kind]
    if kind != "plain" and int(n) > 1:
        command = [str(Path(sys.executable).with_name("mpirun")), "-n", n, *command]
    environment = os.environ | {"OMP_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    job = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Measured(**json.loads(job.stdout.splitlines()[-1]))


def measure(kind: str, options: argparse.Namespace) -> None:
    """Run the steps of one case in this process (one of its ranks) and let rank 0 print what was measured."""
    threads = int(os.environ["OMP_NUM_THREADS"])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = build_model(options.model, MODELS[options.model]).train()
    batch = (
        torch.randn(options.batch_size, 3, options.image_size, options.image_size),
        torch.randint(0, 10, (options.batch_size,)),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before_bytes = resident_bytes()
    spent: Mapping[str, float] = {}
    if kind == "plain":
        comm = as_comm(None)
        step = plain_step(model, optimizer, batch)
    else:
        comm = as_comm(world())
        step, spent = emulated_step(model, optimizer, batch, kind, comm)
    step()
    warm = dict(spent)
    wall, processor = [time.perf_counter()], [time.process_time()]
    for _ in range(options.steps):
        step()
        wall.append(time.perf_counter())
        processor.append(time.process_time())
    own = Measured(
        median_difference(wall),
        median_difference(processor) / threads,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before_bytes,
        parts(
            {name: (s - warm.get(name, 0)) / options.steps for name, s in spent.items()},
            (processor[-1] - processor[0]) / options.steps,
        ),
    )
    ranks = [Measured(**fields) for fields in comm.all_gather(asdict(own))]
    if comm.rank == 0:
        slowest = max(ranks, key=lambda m: m.processor_s)
        largest = max(m.memory_bytes for m in ranks)
        print(json.dumps(asdict(Measured(own.wall_s, slowest.processor_s, largest, slowest.parts_s))))


def world() -> Any:
    """MPI's communicator of all ranks, None without mpirun."""
    if not any(name in os.environ for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_RANK")):
        return None
    from mpi4py import MPI

    return MPI.COMM_WORLD


def plain_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> Callable[[], None]:
    """One step of plain PyTorch."""
    images, labels = batch

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def emulated_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: Any, plan: str, comm: Comm
) -> tuple[Callable[[], None], Mapping[str, float]]:
    """(one step of this rank's share of the emulated devices, its executor's processor time so far by kind of work)."""
    prepared = prepare(
        model, batch, lambda call, item: functional.cross_entropy(call(item[0]), item[1]), plan=plan,
        system=meshemu.System.preset("dojo-tile"), optimizer=optimizer, options=TimingOptions(), comm=comm,
    )  # fmt: skip
    executor = prepared.executor(comm)
    trainer = Trainer(model, optimizer, executor, seed=0)
    spent: Mapping[str, float] = executor.spent_s  # type: ignore[attr-defined]
    return lambda: void(trainer.step(batch, 0)), spent


def void(_outcome: object) -> None:
    """Let go of what a step left behind."""


def parts(spent_s: Mapping[str, float], step_s: float) -> dict[str, float]:
    """Time by kind of work, greatest first; what the executor does not count is the optimizer, mostly."""
    if not spent_s:
        return {}
    sums: dict[str, float] = {}
    for name, seconds in spent_s.items():
        kind = "batch norm" if name.startswith("batch_norm") else KINDS.get(name, "other operators")
        sums[kind] = sums.get(kind, 0.0) + seconds
    sums["optimizer, results"] = step_s - sum(sums.values())
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def resident_bytes() -> int:
    """Memory of this process now; where the system does not tell, the most that it has had."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * resource.getpagesize()


def median_difference(times: list[float]) -> float:
    """The median of what lies between successive times."""
    return statistics.median(b - a for a, b in pairwise(times))


if __name__ == "__main__":
    main()
