"""`meshemu validate`: published figures beside the model's, and whether those that must agree do."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from meshemu.analysis.table import table
from meshemu.emulator.changes import hardware_figures
from meshemu.errors import InputError
from meshemu.hardware import Figure, System, preset_names
from meshemu.hardware.published import EXACT
from meshemu.study.checks import KINDS, Check, Machine, checks

__all__ = ["Row", "render", "to_json", "validate"]


@dataclass(frozen=True)
class Row:
    """One comparison. model: None if it is not modelled; ratio: model over published; agrees: None if it need not."""

    quantity: str
    published: int
    unit: str
    grade: str
    source: str
    model: int | None
    ratio: float | None
    kind: str
    tolerance: float
    agrees: bool | None
    note: str

    def text(self, value: int) -> str:
        """A value of this row for people."""
        return Figure(value, self.unit, self.source, self.grade).text()


def validate(overrides: Sequence[str] = ()) -> list[Row]:
    """All rows. overrides: "system.KEY=VALUE", for every preset that has such a figure.

    Raises InputError for a key that no preset has, or a value that does not fit.
    """
    figures, _ = hardware_figures(overrides, ("system",))
    return [_row(check) for check in checks(_machine(figures))]


def render(rows: Sequence[Row]) -> str:
    """The rows as a table, with what the kinds mean and which rows do not agree."""
    cells = [
        [
            row.quantity,
            row.text(row.published),
            "-" if row.model is None else row.text(row.model),
            "-" if row.ratio is None else f"{row.ratio:.3f}",
            row.kind,
            row.grade,
            row.source,
            row.note,
        ]
        for row in rows
    ]
    head = ["quantity", "published", "model", "ratio", "kind", "grade", "source", "note"]
    kinds = "\n".join(f"  {kind}: {words}" for kind, words in KINDS.items())
    exact = [row for row in rows if row.agrees is not None]
    wrong = [row for row in exact if not row.agrees]
    verdict = f"{len(exact) - len(wrong)} of {len(exact)} figures that are {EXACT} agree"
    faults = "".join(
        f"\n  {row.quantity}: model {row.text(row.model or 0)}, published {row.text(row.published)} "
        f"({row.source}), ratio {row.ratio:.3f}, tolerance {row.tolerance:g}"
        for row in wrong
    )
    return f"{table(head, cells, left=1, right_to=4)}\n\nKinds\n{kinds}\n\n{verdict}{':' if wrong else '.'}{faults}"


def to_json(rows: Sequence[Row]) -> str:
    """The rows as a JSON list of objects."""
    return json.dumps([asdict(row) for row in rows], indent=2)


def _row(check: Check) -> Row:
    figure = check.published
    model = None if check.model is None else check.model()
    ratio = None if model is None else model / figure.number
    agrees = abs(ratio - 1) <= check.tolerance if ratio is not None and check.kind == EXACT else None
    return Row(
        quantity=check.quantity,
        published=figure.number,
        unit=figure.unit,
        grade=figure.grade,
        source=figure.source,
        model=model,
        ratio=ratio,
        kind=check.kind,
        tolerance=check.tolerance,
        agrees=agrees,
        note=check.note,
    )


def _machine(changes: Mapping[str, object]) -> Machine:
    """Presets with the figures replaced that they have."""
    known = {key for name in preset_names() for key, _ in System.preset(name).figures()}
    unknown = [key for key in changes if key not in known]
    if unknown:
        raise InputError(f"no system has a figure {unknown[0]!r}; there are {', '.join(sorted(known))}")

    def machine(name: str, devices: str | None = None, figures: dict[str, str] | None = None) -> System:
        system = System.preset(name, devices, figures)
        own = {key for key, _ in system.figures()}
        return system.override({key: value for key, value in changes.items() if key in own})

    return machine
