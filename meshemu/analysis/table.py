"""Plain text for tables: aligned columns, and shares as percentages."""

from collections.abc import Sequence

__all__ = ["fraction", "percent", "shortened", "table"]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, right_to: int | None = None) -> str:
    """Aligned columns: the first `left` to the left, the others to the right up to column `right_to`."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    stop = len(head) if right_to is None else right_to

    def render_line(line: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if left <= i < stop else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return f"  {'  '.join(cells)}".rstrip()

    return "\n".join(map(render_line, lines))


def shortened(text: str, width: int) -> str:
    """At most `width` characters, "-" of an empty text; what is left out of its middle shows as "..."."""
    if len(text) <= width:
        return text or "-"
    head = (width - 3) // 2
    return f"{text[:head]}...{text[len(text) - (width - 3 - head) :]}"


def percent(part: float, total: float, *, sign: bool = False) -> str:
    """Part of total with one decimal, "-" of nothing; sign: with a + where it is more than zero."""
    return f"{100 * part / total:{'+' if sign and part else ''}.1f} %" if total else "-"


def fraction(value: float | None) -> str:
    """A share from 0 to 1 in percent, of less than one percent with three decimals; "-" where none is known."""
    return "-" if value is None else f"{100 * value:.{1 if value >= 0.01 or value == 0 else 3}f} %"
