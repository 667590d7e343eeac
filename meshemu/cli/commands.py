"""What every subcommand is made with: a name, a function, arguments; and what several of them share."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from meshemu.errors import InputError
from meshemu.runtime.launch import Launch

if TYPE_CHECKING:
    from meshemu.comm import Comm

__all__ = ["Command", "Commands", "Parser", "add_settings", "comm_of"]

Command = Callable[[argparse.Namespace, Launch], int]


class Parser(argparse.ArgumentParser):
    """Reports what is wrong with the arguments as bad input: one line, from one rank."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError instead of printing the usage."""
        raise InputError(f"{message} (see '{self.prog} --help')")


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


def comm_of(launch: Launch) -> "Comm":
    """All ranks of the launch."""
    if launch.size == 1:
        from meshemu.runtime.local import SingleComm

        return SingleComm()
    from meshemu.runtime.mpi import world

    return world()
