"""Models x plans against plain PyTorch: the tables at the end of docs/plans.md, or on stdout without --write.

Every cell is three trainings of five steps on a small model (tests/plan_cells.py says what is compared with what), one
cell after another. Exits with 1 if an error is above its tolerance.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from plan_cells import PLANS, REGIMES, SAMPLES, STEPS, Cell, evaluate  # noqa: E402
from subjects import SUBJECTS  # noqa: E402

BEGIN, END = "<!-- matrix: written by scripts/plan_matrix.py -->", "<!-- end of matrix -->"


def short(number: float) -> str:
    """One digit and a power of ten."""
    digit, power = f"{number:.0e}".split("e")
    return f"{digit}e{int(power)}" if number else "0"


ALLOWED = " · ".join(short(regime.tolerance) for regime in REGIMES.values())
FLOORS = " · ".join(short(regime.floor) for regime in REGIMES.values())
HEADING = f"""## Every model under every plan

Small models of every family, {SAMPLES} samples, {STEPS} steps by `meshemu.emulate` against as many of plain PyTorch,
with the same micro-batches and the same random numbers (dropout included). A cell has the greatest error of all losses,
of the last gradients, and of parameters and buffers at the end; then MB between devices in a step. There are three
errors: {" · ".join(REGIMES)}.
Allowed are {ALLOWED}; what is above that is bold. Errors are relative to the largest element of each
tensor, or to {FLOORS} of the model's largest gradient (parameter) where that is more: some gradients
are zero in exact arithmetic. For fp32, batches are such that plain PyTorch in fp32 itself stays within the tolerance of
plain PyTorch in fp64: a ReLU that rounding flips says nothing about a plan.
"""

Cells = Mapping[tuple[str, str], Cell]


def measured(models: list[str], plans: list[str]) -> Cells:
    """(model, plan) -> cell, and progress on stderr."""
    cells = {}
    for model in models:
        for plan in plans:
            began = time.process_time()
            cells[model, plan] = evaluate(model, plan)
            text, spent_s = in_words(cells[model, plan]), time.process_time() - began
            print(f"{model} | {plan} | {text} | {spent_s:.1f} s", file=sys.stderr, flush=True)
    return cells


def in_words(cell: Cell) -> str:
    """A cell as Markdown."""
    if cell.refusal:
        return cell.refusal if cell.refusal == "no images" else "refused"
    errors = " · ".join(
        short(error) if error <= REGIMES[name].tolerance else f"**{short(error)}**"
        for name, error in cell.errors.items()
    )
    return f"{errors}, {cell.size_bytes / 1e6:.2f} MB"


def page(cells: Cells, models: list[str], plans: list[str]) -> str:
    """The tables as Markdown."""
    single = [plan for plan in plans if len(_axes(plan)) == 1]
    products = [plan for plan in plans if len(_axes(plan)) > 1]
    tables = (_table(cells, models, some) for some in (single, products) if some)
    return "\n\n".join([HEADING + _specifications(plans), *tables, *_gathers(cells), *_refusals(cells)])


def _specifications(plans: list[str]) -> str:
    rows = [f"| {plan} | `{{ {_spec(plan)} }}` | {PLANS[plan].rows} x {PLANS[plan].cols} |" for plan in plans]
    return "\n".join(["", "| column | plan | devices |", "|---|---|---|", *rows])


def _axes(plan: str) -> list[str]:
    return plan.split(" x ")


def _spec(plan: str) -> str:
    return ", ".join(f'{k} = "{v}"' if isinstance(v, str) else f"{k} = {v}" for k, v in PLANS[plan].spec.items())


def _table(cells: Cells, models: list[str], plans: list[str]) -> str:
    lines = [f"| model | {' | '.join(plans)} |", "|---" * (len(plans) + 1) + "|"]
    lines += [f"| {model} | {' | '.join(in_words(cells[model, plan]) for plan in plans)} |" for model in models]
    return "\n".join(lines)


def _gathers(cells: Cells) -> Iterator[str]:
    """Which pairs computed an operator on whole inputs."""
    rows = [
        f"| {model} | {plan} | {name} ({len(ops)}) | {sum(op.size_bytes for op in ops) / 1e3:.1f} |"
        for (model, plan), cell in cells.items()
        for name, group in groupby(sorted(cell.gathered, key=lambda g: g.op), key=lambda g: g.op)
        for ops in [list(group)]
    ]
    if not rows:
        yield "No pair computes an operator on gathered inputs."
        return
    yield "Operators that were computed on gathered inputs:"
    yield "\n".join(["| model | plan | operator (how often) | KB gathered |", "|---|---|---|---|", *rows])


def _refusals(cells: Cells) -> Iterator[str]:
    refused = [
        f"- {model}, {plan}: {cell.refusal}"
        for (model, plan), cell in cells.items()
        if cell.refusal not in ("", "no images")
    ]
    if refused:
        yield "Refused:\n\n" + "\n".join(refused)


def chosen(names: Mapping[str, object], glob: str) -> list[str]:
    """The names that match a glob, or the end of the program."""
    found = [name for name in names if fnmatchcase(name, glob)]
    if not found:
        raise SystemExit(f"{glob!r} matches none of {', '.join(names)}")
    return found


def main() -> None:
    """Print the tables, or write them into docs/plans.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/plans.md")
    parser.add_argument("--models", default="*", metavar="GLOB", help="which models")
    parser.add_argument("--plans", default="*", metavar="GLOB", help="which plans")
    arguments = parser.parse_args()
    if arguments.write and (arguments.models, arguments.plans) != ("*", "*"):
        parser.error("--write is for the whole table")
    warnings.simplefilter("ignore")
    models, plans = chosen(SUBJECTS, arguments.models), chosen(PLANS, arguments.plans)
    cells = measured(models, plans)
    text = page(cells, models, plans)
    if arguments.write:
        path = ROOT / "docs" / "plans.md"
        before, rest = path.read_text(encoding="utf-8").split(BEGIN)
        _, after = rest.split(END)
        path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    else:
        print(text)
    raise SystemExit(0 if all(cell.passed for cell in cells.values()) else 1)


if __name__ == "__main__":
    main()
