"""What every subcommand is made with: a name, a function, arguments; and what several of them share."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from meshemu.errors import InputError
from meshemu.runtime.launch import Launch

if TYPE_CHECKING:
    from meshemu.comm import Comm

__all__ = [
    "Command",
    "Commands",
    "Parser",
    "Rendering",
    "add_jobs",
    "add_outputs",
    "add_settings",
    "comm_of",
    "write_study",
]

Command = Callable[[argparse.Namespace, Launch], int]


class Parser(argparse.ArgumentParser):
    """Reports what is wrong with the arguments as bad input: one line, from one rank."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError instead of printing the usage."""
        raise InputError(f"{message} (see '{self.prog} --help')")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """None are unknown: argparse would leave those of a subcommand to its parser, which names the wrong help."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, []


class Commands:
    """The subcommands of a parser."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parsers: Any = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(self, name: str, command: Command, summary: str, *, parallel: bool = False) -> argparse.ArgumentParser:
        """A subcommand that runs `command`, on every rank if it is parallel, else on rank 0 alone."""
        about = f"{summary[0].upper()}{summary[1:]}."
        added: argparse.ArgumentParser = self._parsers.add_parser(
            name, help=summary, description=about, allow_abbrev=False
        )
        added.set_defaults(command=command, parallel=parallel)
        return added


def add_settings(parser: argparse._ActionsContainer, about: str = "change settings") -> None:
    """The option --set KEY=VALUE ..., a list of texts in `set`."""
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE ...", help=about)


class Rendering(Protocol):
    """A module that turns what a study found into texts, and into files of a folder, whose paths it returns."""

    @property
    def render(self) -> Callable[[Any], str]:
        """For people."""

    @property
    def to_json(self) -> Callable[[Any], str]:
        """As JSON."""

    @property
    def to_csv(self) -> Callable[[Any], str]:
        """As CSV."""

    @property
    def save(self) -> Callable[[Any, Path], list[Path]]:
        """All of them and a picture, in a folder."""


def add_outputs(parser: argparse.ArgumentParser, files: str) -> None:
    """The options of a study: -o FOLDER for `files`, --json or --csv instead of tables."""
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help=f"write {files} there")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON")
    form.add_argument("--csv", action="store_true", help="as CSV")


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """The option --jobs."""
    parser.add_argument("--jobs", type=int, metavar="N", help="processes that share the work")


def write_study(arguments: argparse.Namespace, found: Any, rendering: Rendering) -> None:
    """Print what a study found and write its files, as `add_outputs` lets the user choose."""
    form = rendering.to_json if arguments.json else rendering.to_csv if arguments.csv else rendering.render
    print(form(found))
    if arguments.output is not None:
        for path in rendering.save(found, arguments.output):
            print(f"written: {path}", file=sys.stderr)


def comm_of(launch: Launch) -> "Comm":
    """All ranks of the launch."""
    if launch.size == 1:
        from meshemu.runtime.local import SingleComm

        return SingleComm()
    from meshemu.runtime.mpi import world

    return world()
