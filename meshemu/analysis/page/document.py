"""Puts template, style, scripts and figures together into one file."""

import html
import json
import os
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from meshemu.analysis.page.content import page_content
from meshemu.errors import RecordError
from meshemu.record import Run

__all__ = ["render", "save"]

_SCRIPTS = (
    "base.js",
    "scroller.js",
    "wafer_figures.js",
    "wafer_paint.js",
    "wafer.js",
    "strips.js",
    "charts.js",
    "roofline.js",
    "memory.js",
    "tables.js",
    "main.js",
)


def save(run: Run, path: str | os.PathLike[str]) -> None:
    """Write the page of a run to `path`.

    Raises:
        RecordError: the file cannot be written.
    """
    try:
        Path(path).write_text(render(run), encoding="utf-8")
    except OSError as error:
        raise RecordError(f"cannot write {path}: {os.strerror(error.errno) if error.errno else error}") from None


def render(run: Run) -> str:
    """The page of a run as HTML that refers to nothing outside itself."""
    content = page_content(run)
    return Template(_asset("template.html")).substitute(
        title=html.escape(content["title"]),
        style=_asset("page.css"),
        data=_json_in_html(content),
        script="\n".join(map(_asset, _SCRIPTS)),
    )


def _json_in_html(content: dict[str, Any]) -> str:
    """JSON without any character that could end the element that holds it, or begin a comment in it."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return (resources.files("meshemu.analysis.page") / "assets" / name).read_text(encoding="utf-8")
