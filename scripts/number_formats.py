"""How well, and how fast, a model trains in the number formats of the machine: accuracy over steps, and time of a step.

    python scripts/number_formats.py [--png number-formats.png] [--write] [--steps 100] [--config ...] [--only NAME ...]

Each case is a run of `--config` with another [formats] table. Losses, accuracies and times are the same on every
machine. `--write` renews the table of docs/number-formats.md.
"""

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import meshemu
from meshemu.config import load
from meshemu.program.ir import Program

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "number-formats.md"
BEGIN, END = "<!-- cases: begin -->", "<!-- cases: end -->"

EVERYTHING = ("weights", "activations", "gradients", "communication")
STORED = ("weights", "activations")
SLIDING = 'format = "cfloat8_1_4_3", rounding = "stochastic", bias = "sliding"'
FIXED = 'format = "cfloat8_1_4_3", rounding = "nearest", bias = {}'
WIDE = 'format = "cfloat8_1_5_2", rounding = "stochastic", bias = "sliding"'
HALF = 'format = "bf16"'

CASES: Mapping[str, Mapping[str, str]] = {
    "fp32": {},
    "bf16": dict.fromkeys(EVERYTHING, HALF),
    "CFloat8, stochastic, sliding bias": {**dict.fromkeys(EVERYTHING, HALF), **dict.fromkeys(STORED, SLIDING)},
    **{
        f"CFloat8, nearest, bias {bias}": {
            **dict.fromkeys(EVERYTHING, HALF), **dict.fromkeys(STORED, FIXED.format(bias))
        }
        for bias in (7, 3)
    },
    "CFloat8, gradients too, stochastic, sliding bias": {
        "communication": HALF, **dict.fromkeys((*STORED, "gradients"), SLIDING)
    },
    "CFloat8, gradients too, nearest, bias 7": {
        "communication": HALF, **dict.fromkeys((*STORED, "gradients"), FIXED.format(7))
    },
    "CFloat8 everywhere, stochastic, sliding bias": {
        **dict.fromkeys(STORED, SLIDING), "gradients": WIDE, "communication": WIDE
    },
}  # fmt: skip
"""Name -> role -> its table."""

COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#F0E442")  # Okabe and Ito's
LINES = ("-", "--", "-.", ":")  # other in number than the colours and markers, for those who see no colours
MARKERS = "osD^vPXh"


@dataclass(frozen=True)
class Outcome:
    """One run. accuracies: step -> held-out accuracy. message_bytes: on links, of one step."""

    name: str
    losses: list[float]
    accuracies: dict[int, float]
    time_ps: int
    message_bytes: int
    peak_memory_bytes: int

    @property
    def accuracy(self) -> float:
        """After the last step."""
        return self.accuracies[max(self.accuracies)]


def outcome(name: str, config: Path, steps: int, every: int) -> Outcome:
    """Run one case."""
    tables = [f"formats.{role}={{{table}}}" for role, table in CASES[name].items()]
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / "run.h5"
        overrides = [*tables, f"training.steps={steps}", f"training.evaluate_every={every}"]
        result = meshemu.run(load(config, overrides), output=stored)
        peak = meshemu.open(stored).column("/results/devices/peak_memory_bytes")
        program: Program = result.program
        return Outcome(
            name, result.losses, result.accuracies, result.time_ps, int(program.size_bytes.sum()), int(peak.max())
        )


def table(outcomes: list[Outcome]) -> str:
    """All cases as Markdown; times relative to the first."""
    first = outcomes[0]
    columns = ("formats", "loss, mean of the last 10 steps", "accuracy", "step (us)", "against the first", "sent (KiB)")
    head = "| " + " | ".join([*columns, "peak memory (KiB)"]) + " |"
    rows = [
        f"| {o.name} | {sum(o.losses[-10:]) / len(o.losses[-10:]):.3f} | {100 * o.accuracy:.1f} % "
        f"| {o.time_ps / 1e6:.1f} | {100 * (o.time_ps / first.time_ps - 1):+.1f} % | {o.message_bytes / 1024:,.0f} "
        f"| {o.peak_memory_bytes / 1024:,.0f} |"
        for o in outcomes
    ]
    return "\n".join([head, "|---|---|---|---|---|---|---|", *rows])


def draw(outcomes: list[Outcome], path: Path) -> None:
    """Held-out accuracy, and the loss of every step, over steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(13, 5), layout="constrained")
    for i, o in enumerate(outcomes):
        style = {"color": COLOURS[i % len(COLOURS)], "linestyle": LINES[i % len(LINES)], "linewidth": 1.5}
        wrong = [100 * (1 - accuracy) for accuracy in o.accuracies.values()]
        marker = MARKERS[i % len(MARKERS)]
        axes[0].plot([s + 1 for s in o.accuracies], wrong, marker=marker, ms=5, **style)
        windows = [o.losses[max(0, i - 4) : i + 1] for i in range(len(o.losses))]
        means = [sum(window) / len(window) for window in windows]
        axes[1].plot(range(1, len(means) + 1), means, label=o.name, **style)
    axes[0].set(xlabel="step", ylabel="held-out images classified wrongly, %", yscale="log")
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_formatter("{x:g}")
    axes[1].set(xlabel="step", ylabel="loss, mean of 5 steps", yscale="log")
    axes[1].legend(fontsize=8, loc="lower left")  # where every run but a failing one is still above
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def write(text: str) -> None:
    """Put the table between the marks of the page."""
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def main() -> None:
    """Run the cases, print them, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "first_light.toml")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=10, help="steps between evaluations")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="cases to run")
    parser.add_argument("--png", type=Path, help="file for a picture")
    parser.add_argument("--write", action="store_true", help="renew the table of docs/number-formats.md")
    options = parser.parse_args()
    outcomes = []
    for name in options.only:
        outcomes.append(outcome(name, options.config, options.steps, options.every))
        print(table(outcomes[:1] + outcomes[-1:] if len(outcomes) > 1 else outcomes), flush=True)
    print("\n" + table(outcomes))
    if options.png:
        draw(outcomes, options.png)
    if options.write:
        write(table(outcomes))


if __name__ == "__main__":
    main()
