"""What recording costs: the same run with its results file and with a writer that writes nothing.

    python scripts/bench_record.py                       # both cases
    python scripts/bench_record.py --cases tile --steps 40 --repeat 3

`tile` is configs/first_light.toml on 25 dies, executed; `exapod` the same model on 3,000 dies, timed only. Every run
has a process of its own, and runs with and without a file take turns. Times are of `meshemu.run` (capture, partition,
timing, steps and file; imports left out), each the least of the repetitions: of wall time, and of processor time, which
other programs disturb less. `in the writer` is what a run with a file spends in calls of the writer: a share of one
run, and so exact where the difference of two runs is lost in their noise.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import meshemu
from meshemu.config import load
from meshemu.emulator import recording
from meshemu.record import RunWriter

ROOT = Path(__file__).resolve().parent.parent
CASES = {
    "tile": ([], True),
    "exapod": (["system.preset=dojo-exapod", "plan=data", "data.batch_size=3000"], False),
}
LIMITS = {"tile": 0.05, "exapod": 0.10}
CALLS = (
    "create", "publish", "append_step", "write_ops", "write_messages", "write_timeline", "write_peak_memory", "finish",
)  # fmt: skip


@dataclass
class Measured:
    """One run. writer_s: wall and processor time in calls of the writer; steps_s: of that, in appending steps.

    head_bytes: of the file before its first step; step_bytes: what a step adds, in the mean.
    """

    wall_s: float
    processor_s: float
    writer_wall_s: float = 0.0
    writer_processor_s: float = 0.0
    steps_processor_s: float = 0.0
    head_bytes: int = 0
    step_bytes: float = 0.0


class NoWriter:
    """Takes what a `RunWriter` takes and writes nothing."""

    @classmethod
    def create(cls, *_: Any, **__: Any) -> "NoWriter":
        """In the place of a file."""
        return cls()

    def __getattr__(self, name: str) -> Callable[..., None]:
        if not hasattr(RunWriter, name):
            raise AttributeError(name)
        return lambda *_, **__: None


def main() -> None:
    """Print a table of all cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # of the processes that this script starts
    options = parser.parse_args()
    if options.measure:
        case, how = options.measure
        print(json.dumps(asdict(measure(case, how == "file", options.steps))))
        return
    for case in options.cases:
        runs = {how: [] for how in ("file", "none")}
        for number in range(2 * options.repeat):
            how = ("file", "none")[number % 2]
            runs[how].append(launch(case, how, options.steps))
        show(case, options.steps, least(runs["file"]), least(runs["none"]))


def show(case: str, steps: int, file: Measured, none: Measured) -> None:
    print(f"{case}, {steps} steps: at most {LIMITS[case]:.0%} is asked for")
    print(f"{'':<26}{'wall s':>9}{'core s':>9}")
    print(f"{'without a file':<26}{none.wall_s:>9.2f}{none.processor_s:>9.2f}")
    print(f"{'with its file':<26}{file.wall_s:>9.2f}{file.processor_s:>9.2f}")
    wall, processor = file.wall_s / none.wall_s - 1, file.processor_s / none.processor_s - 1
    print(f"{'more':<26}{wall:>9.1%}{processor:>9.1%}")
    print(f"{'in the writer':<26}{file.writer_wall_s:>9.3f}{file.writer_processor_s:>9.3f}")
    wall = file.writer_wall_s / (file.wall_s - file.writer_wall_s)
    processor = file.writer_processor_s / (file.processor_s - file.writer_processor_s)
    print(f"{'over the rest':<26}{wall:>9.1%}{processor:>9.1%}")
    each_ms = 1e3 * file.steps_processor_s / steps
    print(f"a step: {each_ms:.2f} ms of a core, {file.step_bytes:,.0f} bytes")
    print(f"before the first: {file.head_bytes:,} bytes\n")


def least(runs: Sequence[Measured]) -> Measured:
    """The least of every figure."""
    return Measured(*(min(values) for values in zip(*(asdict(run).values() for run in runs), strict=True)))


def launch(case: str, how: str, steps: int) -> Measured:
    command = [sys.executable, __file__, "--measure", case, how, "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def measure(case: str, with_file: bool, steps: int) -> Measured:
    """One run in this process."""
    overrides, execute = CASES[case]
    config = load(ROOT / "configs/first_light.toml", [*overrides, f"training.steps={steps}"])
    with tempfile.TemporaryDirectory() as folder, writer_of(with_file) as spent:
        before = time.perf_counter(), time.process_time()
        meshemu.run(config, Path(folder) / "run.h5", execute=execute)
        spent.wall_s, spent.processor_s = time.perf_counter() - before[0], time.process_time() - before[1]
    return spent


@contextmanager
def writer_of(with_file: bool) -> Iterator[Measured]:
    """Recording into a file, with a clock around each call of the writer; or into nothing."""
    spent = Measured(0.0, 0.0)
    if not with_file:
        recording.RunWriter = NoWriter
        yield spent
        return
    kept = {name: RunWriter.__dict__[name] for name in CALLS}
    depth, sizes = 0, []

    def clocked(name: str, function: Any) -> Any:
        @wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal depth
            depth += 1
            before = time.perf_counter(), time.process_time()
            try:
                result = function(*arguments, **options)
            finally:
                depth -= 1
                wall_s, processor_s = time.perf_counter() - before[0], time.process_time() - before[1]
                if not depth:  # calls within calls are counted once
                    spent.writer_wall_s += wall_s
                    spent.writer_processor_s += processor_s
                    spent.steps_processor_s += processor_s * (name == "append_step")
            if name == "append_step":
                sizes.append(arguments[0].size_bytes)
            if name == "publish" and not sizes:
                sizes.append(arguments[0].size_bytes)
            return result

        return call

    for name, function in kept.items():
        is_class = isinstance(function, classmethod)
        wrapped = clocked(name, function.__func__ if is_class else function)
        setattr(RunWriter, name, classmethod(wrapped) if is_class else wrapped)
    yield spent
    spent.head_bytes, spent.step_bytes = sizes[0], (sizes[-1] - sizes[0]) / max(len(sizes) - 1, 1)


if __name__ == "__main__":
    main()
