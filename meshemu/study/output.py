"""How studies leave their tables: CSV text, files in a folder, pictures without a display."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshemu.errors import InputError

if TYPE_CHECKING:  # heavy, and needed only when a picture is made
    from matplotlib.figure import Figure

__all__ = ["csv_text", "folder", "leave", "new_figure", "write_text"]


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV with a header of the names of the first, empty where a value is None; no newline at the end."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def folder(path: Path) -> Path:
    """The folder, made if there is none; InputError if it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made a folder: {error.strerror or error}") from None
    return path


def write_text(path: Path, text: str) -> None:
    """Write a text file, with a newline at its end; InputError if it cannot be."""
    try:
        path.write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None


def new_figure(width: float, height: float) -> "Figure":
    """A figure of so many inches; it needs no display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def leave(into: Path, texts: Mapping[str, str], figures: Mapping[str, "Figure"]) -> list[Path]:
    """Write what a study found into a folder, texts and pictures (PNG) by the names of their files.

    Raises:
        InputError: the folder cannot be made, or a file not be written.
    """
    place = folder(into)
    for name, text in texts.items():
        write_text(place / name, text.rstrip("\n"))
    for name, figure in figures.items():
        try:
            figure.savefig(place / name, dpi=120, metadata={"Software": None})
        except OSError as error:
            raise InputError(f"{place / name}: cannot be written: {error.strerror or error}") from None
    return [place / name for name in (*texts, *figures)]
