"""Subcommands that read results files: report, compare."""

import argparse
import json
import sys
from pathlib import Path

from meshemu.cli.commands import Commands, add_settings
from meshemu.errors import InputError
from meshemu.runtime.launch import Launch

__all__ = ["register"]


def register(commands: Commands) -> None:
    """Add report and compare."""
    report = commands.add("report", _report, "say what bounds a run, with tables and a picture of the links")
    report.add_argument("file", type=Path, metavar="RUN.h5")
    report.add_argument("--json", action="store_true", help="as JSON; no picture unless --png asks for one")
    both = "time the step again with unbounded FIFOs and with routers, and compare"
    report.add_argument("--both-modes", action="store_true", help=both)
    add_settings(report, "change settings, such as network.router.buffer_flits=8, before timing both modes")
    report.add_argument("--html", type=Path, metavar="FILE.html", help="a page with everything, for any browser")
    trace = "a trace of the step for ui.perfetto.dev; compressed if named .gz"
    report.add_argument("--perfetto", type=Path, metavar="FILE.json", help=trace)
    picture = report.add_mutually_exclusive_group()
    picture.add_argument("--png", type=Path, metavar="FILE.png", help="the picture (default: RUN.png beside the run)")
    picture.add_argument("--no-png", action="store_true", help="no picture")

    compare = commands.add(
        "compare", _compare, "compare the results of two runs bit for bit; exit code 1 if they differ"
    )
    compare.add_argument("a", type=Path, metavar="A.h5")
    compare.add_argument("b", type=Path, metavar="B.h5")


def _report(arguments: argparse.Namespace, _launch: Launch) -> int:
    from meshemu.analysis import report
    from meshemu.record.reader import open_run

    run = open_run(arguments.file)
    both, section = None, ""
    if arguments.both_modes:
        from meshemu.analysis import modes

        both = modes.both_modes(run, arguments.set)
        section = modes.render(both)
    elif arguments.set:
        raise InputError(f"--set {arguments.set[0]}: a report is of stored times; give --both-modes, or use retime")
    if arguments.json:
        print(json.dumps(report.as_dict(run) | ({"both_modes": both} if both else {}), indent=2))
    else:
        print(report.render(run, section))
    picture = arguments.png
    if picture is None and not arguments.json and not arguments.no_png:
        picture = arguments.file.with_suffix(".png")
    if picture is not None:
        from meshemu.analysis import heatmap  # loads the plotting library

        try:
            heatmap.save(run, picture)
        except OSError as error:
            raise InputError(f"{picture}: cannot be written: {error.strerror or error}") from error
        print(f"links: {picture}", file=sys.stderr)
    if arguments.html is not None:
        from meshemu.analysis import page

        page.save(run, arguments.html)
        print(f"page: {arguments.html}", file=sys.stderr)
    if arguments.perfetto is not None:
        from meshemu.analysis import perfetto

        perfetto.save(run, arguments.perfetto)
        print(f"trace: {arguments.perfetto}", file=sys.stderr)
    return 0


def _compare(arguments: argparse.Namespace, _launch: Launch) -> int:
    from meshemu.record.compare import compare

    difference = compare(arguments.a, arguments.b)
    print("identical" if difference is None else difference)
    return 0 if difference is None else 1
