"""The subcommand that draws pictures of a run: plot."""

import argparse
import sys
from pathlib import Path

from meshemu.cli.commands import Commands
from meshemu.runtime.launch import Launch

__all__ = ["register"]


def register(commands: Commands) -> None:
    """Add plot."""
    plot = commands.add("plot", _plot, "draw a picture of a run")
    kinds = "links, timeline, utilisation, roofline, path, loss or memory"
    plot.add_argument("kind", metavar="KIND", help=kinds)
    plot.add_argument("file", type=Path, metavar="RUN.h5")
    name = "FILE.png or FILE.svg (default: RUN.KIND.png beside the run)"
    plot.add_argument("-o", "--output", type=Path, metavar="FILE", help=name)
    devices = "devices to show in a timeline (default: the busiest, median and idlest)"
    plot.add_argument("--devices", type=int, nargs="+", default=[], metavar="ID", help=devices)


def _plot(arguments: argparse.Namespace, _launch: Launch) -> int:
    from meshemu.analysis import plots  # loads the plotting library
    from meshemu.record.reader import open_run

    output = arguments.output or arguments.file.parent / f"{arguments.file.stem}.{arguments.kind}.png"
    plots.save(open_run(arguments.file), arguments.kind, output, arguments.devices)
    print(f"{arguments.kind}: {output}", file=sys.stderr)
    return 0
