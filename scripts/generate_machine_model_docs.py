"""Write the tables of docs/machine-model.md: what `meshemu validate` finds, between two markers of the page."""

from pathlib import Path

from meshemu.study.checks import KINDS
from meshemu.study.validate import Row, validate

PAGE = Path(__file__).resolve().parents[1] / "docs" / "machine-model.md"
BEGIN, END = "<!-- Written by scripts/generate_machine_model_docs.py -->", "<!-- until here -->"


def main() -> None:
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def with_tables(page: str) -> str:
    """The page with fresh tables between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables(validate())}{END}{after}"


def tables(rows: list[Row]) -> str:
    """What the kinds mean, and one line per row."""
    lines = ["| kind | meaning |", "| --- | --- |"]
    lines += [f"| {kind} | {words} |" for kind, words in KINDS.items()]
    head = ["quantity", "published", "model", "ratio", "kind", "grade", "source", "note"]
    lines += ["", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in rows:
        model = "-" if row.model is None else row.text(row.model)
        ratio = "-" if row.ratio is None else f"{row.ratio:.3f}"
        cells = [row.quantity, row.text(row.published), model, ratio, row.kind, row.grade, row.source, row.note]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n"


if __name__ == "__main__":
    main()
