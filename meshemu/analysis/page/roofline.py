"""The roofline for the page."""

from collections.abc import Mapping
from typing import Any

from meshemu.analysis.page.arrays import plain
from meshemu.analysis.roofs import roofs
from meshemu.record import Run

__all__ = ["roofline"]


def roofline(run: Run, report: Mapping[str, Any]) -> dict[str, Any] | None:
    """The report's classes of ops that compute and move bytes, and the roofs; None where there is no such class."""
    points = [point for point in report["roofline"] if point["flops"] and point["moved_bytes"]]
    if not points:
        return None
    bounds = sorted({point["bound"] for point in points})
    return {"points": plain(points), "bounds": bounds, "roofs": [dict(vars(roof)) for roof in roofs(run)]}
