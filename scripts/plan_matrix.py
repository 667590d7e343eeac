"""Models x plans against plain PyTorch: the table at the end of docs/plans.md, or on stdout without --write.

Every cell is one training step in fp64 on a small model: the greatest error of loss and gradients relative to the
tensor's largest element (or to a thousandth of the model's largest gradient), MB between devices, and operators that
were computed on whole inputs; or why the plan is refused. Takes a few minutes.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

PLANS = {
    "data 4": {"data": 4},
    "zero 1": {"shard": 4, "zero": 1},
    "zero 2": {"shard": 4, "zero": 2},
    "zero 3": {"shard": 4},
    "tensor 2": {"tensor": 2},
    "data x tensor": {"data": 2, "tensor": 2},
    "zero 3 x tensor": {"shard": 2, "tensor": 2},
    "data x zero 3 x tensor": {"data": 2, "shard": 2, "tensor": 2},
    "spatial 2 x 2": {"spatial": [2, 2]},
    "data x spatial": {"data": 2, "spatial": [2, 2]},
}
BEGIN, END = "<!-- matrix: written by scripts/plan_matrix.py -->", "<!-- end of matrix -->"


def row(name: str) -> Iterator[str]:
    """One model under every plan, in words."""
    from models_under_test import captured, largest, partitioned, plain_step
    from test_emulator_parity import SUBJECTS, of_logits

    from meshemu.errors import MeshemuError

    torch.manual_seed(0)
    model = SUBJECTS[name].make().double().train()
    inputs, targets = SUBJECTS[name].batch(8)
    batch = (inputs.double() if inputs.is_floating_point() else inputs), targets
    graph, wanted = captured(model, batch, of_logits), plain_step(model, batch, of_logits)
    floor = 1e-3 * largest(wanted.gradients)
    for spec in PLANS.values():
        if "spatial" in spec and inputs.dim() < 4:
            yield "no images"
            continue
        try:
            step = partitioned(graph, spec, 2, 4)
        except MeshemuError as error:
            yield f"refused: {error}"
            continue
        got = step.run(model, batch)
        pairs = [(got.loss, wanted.loss, 0.0), *((got.gradients[k], g, floor) for k, g in wanted.gradients.items())]
        error = max(float((a - b).abs().max()) / max(float(b.abs().max()), low, 1e-300) for a, b, low in pairs)
        gathers = "".join(f", gathers {g.op}" for g in step.spmd.gathered)
        yield f"{error:.0e}, {step.program.size_bytes.sum() / 1e6:.2f} MB{gathers}"


def table() -> str:
    """The whole matrix as Markdown: a row per model."""
    from test_emulator_parity import SUBJECTS

    lines = [f"| model | {' | '.join(PLANS)} |", "|---" * (len(PLANS) + 1) + "|"]
    for name in SUBJECTS:
        lines.append(f"| {name} | {' | '.join(row(name))} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def main() -> None:
    """Print the table, or write it into docs/plans.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table into docs/plans.md")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    text = table()
    if not arguments.write:
        print(text)
        return
    path = ROOT / "docs" / "plans.md"
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    heading = "## Every model under every plan\n\nError against plain PyTorch, bytes between devices, gathers.\n\n"
    _, after = rest.split(END)
    path.write_text(f"{before}{BEGIN}\n{heading}{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
