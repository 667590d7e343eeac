"""From the words of the command line to an exit code: which subcommand, on which ranks, under whose supervision.

Every import of the library is inside the subcommand that needs it, so that `meshemu --help` is instant and the fork of
the supervisor comes before threads exist. Knobs live in the configuration file, not here.
"""

import argparse
import gc
import io
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from functools import partial
from typing import Any

from meshemu.cli import drawing, looking_up, reading, running, scaling, studying, sweeping, tuning, watching
from meshemu.cli.commands import Command, Commands, Parser
from meshemu.runtime.failure import guard, guard_ranks
from meshemu.runtime.launch import Launch, detect_launch, set_launch_defaults
from meshemu.runtime.memory import keep_freed_memory
from meshemu.runtime.supervisor import supervise
from meshemu.version import __version__

__all__ = ["main", "parse_arguments"]

_BROKEN_PIPE = 141

_NEW_OBJECTS = 100_000
"""Objects that come about between two looks for garbage. Loading torch makes 260,000 and no garbage; with Python's own
700 a tenth of its time goes into looking.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: that of the process) and return its exit code."""
    gc.set_threshold(_NEW_OBJECTS)
    keep_freed_memory(os.environ)
    launch = detect_launch(os.environ)
    return supervise(partial(_main, sys.argv[1:] if argv is None else argv, launch), launch)


def _main(argv: Sequence[str], launch: Launch) -> int:
    set_launch_defaults(os.environ, launch)
    parsed: list[argparse.Namespace] = []

    def parse() -> int:
        with nullcontext() if launch.rank == 0 else redirect_stdout(io.StringIO()):
            try:
                parsed.append(parse_arguments(argv))
            except SystemExit:  # --help and --version have printed
                return 0
        return 0

    if (code := guard(parse, launch)) or not parsed:
        return code
    arguments = parsed[0]
    work = partial(_flushed, arguments.command, arguments, launch)
    if arguments.parallel:
        return guard_ranks(work, launch, _raw_world)
    return guard(work, launch) if launch.rank == 0 else 0


def _flushed(command: Command, arguments: argparse.Namespace, launch: Launch) -> int:
    """Run `command`; a reader of its output that has gone away (`| head`) is no error."""
    try:
        code = command(arguments, launch)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    return code


def _raw_world() -> Any:
    from meshemu.runtime.mpi import raw_world

    return raw_world()


def _one_value_per_set(argv: Sequence[str]) -> list[str]:
    """`--set a=1 b=2 CONFIG` as `--set=a=1 --set=b=2 CONFIG`, so that a list never swallows the positional argument."""
    spread: list[str] = []
    wanted = more = False
    for word in argv:
        if word == "--set":
            wanted = more = True
        elif wanted or (more and "=" in word and not word.startswith("-")):
            spread.append(f"--set={word}")
            wanted = False
        else:
            spread.append(word)
            more = False
    return [*spread, "--set"] if wanted else spread


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """What the words of a command line ask for; `command` is the function to call. InputError for bad ones."""
    return _parser().parse_args(_one_value_per_set(argv))


def _parser() -> argparse.ArgumentParser:
    about = "Emulate training on a wafer-scale mesh of devices."
    parser = Parser(prog="meshemu", description=about, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"meshemu {__version__}")
    commands = Commands(parser)
    for module in (running, watching, reading, drawing, studying, sweeping, scaling, tuning, looking_up):
        module.register(commands)
    return parser
