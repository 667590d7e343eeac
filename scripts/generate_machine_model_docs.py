"""Write the tables of docs/machine-model.md: what `meshemu validate` finds, and what the time of a step depends on.

    python scripts/generate_machine_model_docs.py [--only WORDS ...]

With --only, steps whose names have none of the words stay as they are in the page. All take a quarter of an hour.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import fill

import meshemu
from meshemu.analysis.report import as_dict, render
from meshemu.config import load
from meshemu.cost.interfaces import interfaces_of
from meshemu.hardware import System
from meshemu.program.ir import Program
from meshemu.study.checks import KINDS
from meshemu.study.sensitivity import achieved, sensitivity
from meshemu.study.validate import Row, validate
from meshemu.units import format_time

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "machine-model.md"
BEGIN, END = "<!-- Written by scripts/generate_machine_model_docs.py -->", "<!-- until here -->"
STEPS_BEGIN, STEPS_END = "<!-- Steps, written by scripts/generate_machine_model_docs.py -->", "<!-- end of steps -->"
RESNET = ("model.dtype=bf16", "data.args.image_size=224")
GPT = (
    "model.dtype=bf16", "model.args.context=256", "data.args.context=256", "model.args.width=384",
    "model.args.heads=6", "model.args.layers=6",
)  # fmt: skip
ALL = ("training.steps=1", "ingest.enabled=true")
EXAPOD = ("system.preset=dojo-exapod", "plan=data", "data.batch_size=12000")
STEPS = {
    "ResNet-50, 224-pixel images, 4 a die, bf16, on dojo-tile": (
        "resnet50.toml", (*RESNET, "data.args.n_samples=100", "data.batch_size=100"),
    ),
    "GPT of 6 layers, width 384, 4 x 256 tokens a die, bf16, on dojo-tile": (
        "gpt.toml", (*GPT, "data.batch_size=100"),
    ),
    "ResNet-50, 224-pixel images, 4 a die, bf16, on dojo-exapod": (
        "resnet50.toml", (*RESNET, "data.args.n_samples=4", *EXAPOD),
    ),
    "GPT of 6 layers, width 384, 4 x 256 tokens a die, bf16, on dojo-exapod": ("gpt.toml", (*GPT, *EXAPOD)),
}  # fmt: skip
KEYS = (
    "op_launch", "combine", "node.ingest_bandwidth", "node.load_bandwidth", "node.store_bandwidth", "node.vector.bf16",
    "node.matrix.bf16", "die_edge.bandwidth", "die_edge.latency", "tile_edge.bandwidth", "tile_edge.latency",
    "interface.host_bandwidth", "interface.pcie_bandwidth", "interface.link_latency",
)  # fmt: skip
"""What a step may hang on: every figure that is assumed, and the published ones beside them."""

INGEST, WIDTH = "ingest: ", 100
SECTIONS = ("Steps", "Layers of the model", "Memory of the fullest device", "Collectives", INGEST)
"""Of the report, besides its first words: what the page shows."""
UNQUOTED = ("wall time of emulation", "loss ")
"""Lines of these that say nothing here."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="WORDS", help="steps to time again, by words of their names")
    words = parser.parse_args().only
    page = with_tables(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(page, encoding="utf-8")
    for name in STEPS:
        if words is None or any(word in name for word in words):
            made = {**sections(page), name: step_tables(name)}
            page = _between(page, STEPS_BEGIN, STEPS_END, "".join(made[known] for known in STEPS if known in made))
            PAGE.write_text(page, encoding="utf-8")


def sections(page: str) -> dict[str, str]:
    """Name -> text of the steps that the page has."""
    steps = page.partition(STEPS_BEGIN)[2].partition(STEPS_END)[0]
    return {text.partition("\n")[0]: f"### {text}" for text in steps.split("### ")[1:]}


def with_tables(page: str) -> str:
    """The page with fresh tables of published figures between its markers."""
    return _between(page, BEGIN, END, tables(validate()))


def tables(rows: list[Row]) -> str:
    """What the kinds mean, and one line per row."""
    lines = ["| kind | meaning |", "| --- | --- |"]
    lines += [f"| {kind} | {words} |" for kind, words in KINDS.items()]
    head = ["quantity", "published", "model", "ratio", "kind", "grade", "source", "note"]
    lines += ["", *_head(head)]
    for row in rows:
        model = "-" if row.model is None else row.text(row.model)
        ratio = "-" if row.ratio is None else f"{row.ratio:.3f}"
        cells = [row.quantity, row.text(row.published), model, ratio, row.kind, row.grade, row.source, row.note]
        lines.append(_line(cells))
    return "\n".join(lines) + "\n\n"


def step_tables(name: str) -> str:
    """A step: what its classes of ops achieve, and what its time does when a figure is doubled or halved."""
    program, system, report = _timed(*STEPS[name])
    usual_ps, fused_ps = (
        meshemu.time(program, system, packet_bytes=65536, costs=meshemu.cost.CostOptions(fusion=fusion)).end_ps
        for fusion in (False, True)
    )
    assert system.device is not None
    lines = [
        f"### {name}", "",
        f"{format_time(usual_ps)} a step; {format_time(fused_ps)} with `timing.fusion = true`. From its report:", "",
        "```text", *_quoted(report), "```", "",
        *_head(["op class", "ops", "time on all dies", "of peak", "bound by"]),
    ]  # fmt: skip
    for row in achieved(program, system.device, interfaces=interfaces_of(system)):
        share = "-" if row.of_peak is None else f"{row.of_peak:.1%}"
        lines.append(_line([f"`{row.op_class}`", f"{row.ops:,}", format_time(row.time_ps), share, row.bound]))
    lines += ["", *_head(["figure", "value", "grade", "step with twice of it", "step with half of it"])]
    for change in sensitivity(program, system, KEYS):
        doubled, halved = (f"{ratio - 1:+.1%}" for ratio in (change.doubled, change.halved))
        lines.append(_line([f"`{change.key}`", change.value, change.grade, doubled, halved]))
    return "\n".join(lines) + "\n\n"


def _timed(config: str, changes: tuple[str, ...]) -> tuple[Program, System, str]:
    """The Program of a step, its system, and the report on it."""
    with TemporaryDirectory(prefix="meshemu-") as folder:
        path = Path(folder) / "run.h5"
        meshemu.run(load(ROOT / "configs" / config, (*changes, *ALL)), path, execute=False)
        stored = meshemu.open(path)
        ingest = next(text for text in as_dict(stored)["assumptions"] if text.startswith(INGEST))
        return stored.program(), System.from_json(stored.system_json), f"{render(stored)}\n\n{fill(ingest, WIDTH)}"


def _quoted(report: str) -> list[str]:
    """What bounds the step and each of its layers, exposed communication and memory, in the words of a report."""
    parts = report.split("\n\n")
    kept = [parts[1], *(part for begin in SECTIONS for part in parts if part.startswith(begin))]
    lines = "\n\n".join(kept).splitlines()
    return [line.rstrip() for line in lines if not line.strip().startswith(UNQUOTED)]


def _between(page: str, begin: str, end: str, text: str) -> str:
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{text}{end}{after}"


def _head(cells: list[str]) -> list[str]:
    return [_line(cells), f"|{' --- |' * len(cells)}"]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
