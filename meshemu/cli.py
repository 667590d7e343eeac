"""The `meshemu` command: arguments to calls of the library, results to text, failures to exit codes.

Every import of the library is inside the command that needs it, so that `meshemu --help` is instant and the fork of
the supervisor comes before threads exist. Knobs live in the configuration file, not here.
"""

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from meshemu.errors import InputError
from meshemu.runtime.failure import guard, guard_ranks
from meshemu.runtime.launch import Launch, detect_launch, set_launch_defaults
from meshemu.runtime.supervisor import supervise
from meshemu.version import __version__

if TYPE_CHECKING:
    from meshemu.comm import Comm

__all__ = ["main"]

_BROKEN_PIPE = 141
_Command = Callable[[argparse.Namespace, Launch], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: that of the process) and return its exit code."""
    launch = detect_launch(os.environ)
    return supervise(partial(_main, sys.argv[1:] if argv is None else argv, launch), launch)


def _main(argv: Sequence[str], launch: Launch) -> int:
    set_launch_defaults(os.environ, launch)
    parsed: list[argparse.Namespace] = []

    def parse() -> int:
        with nullcontext() if launch.rank == 0 else redirect_stdout(io.StringIO()):
            try:
                parsed.append(_parser().parse_args(_one_value_per_set(argv)))
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


def _flushed(command: _Command, arguments: argparse.Namespace, launch: Launch) -> int:
    """Run `command`; a reader of its output that has gone away (`| head`) is no error."""
    try:
        code = command(arguments, launch)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    return code


def _run(arguments: argparse.Namespace, launch: Launch) -> int:
    from meshemu.config import load

    overrides = list(arguments.set)
    if arguments.steps is not None:
        overrides.append(f"training.steps={arguments.steps}")
    if arguments.overwrite:
        overrides.append("output.overwrite=true")
    config = load(arguments.config, overrides)
    output = arguments.output or Path(config.output.path or f"{arguments.config.stem}.h5")

    from meshemu.emulator.running import run  # the heavy part, once the configuration is known to be good

    run(config, output, execute=not arguments.no_execute, save=arguments.save, comm=_comm(launch))
    return 0


def _retime(arguments: argparse.Namespace, launch: Launch) -> int:
    from meshemu.emulator.retiming import retime

    output = arguments.output or arguments.file.with_suffix(".retimed.h5")
    retime(arguments.file, arguments.set, output, overwrite=arguments.overwrite, comm=_comm(launch))
    return 0


def _collectives(arguments: argparse.Namespace, launch: Launch) -> int:
    from meshemu.emulator.collective_times import collectives_table
    from meshemu.units import size_bytes

    size = size_bytes(arguments.size, key="--size")
    table = collectives_table(arguments.system, size, overrides=arguments.set, comm=_comm(launch))
    if launch.rank == 0:
        print(table)
    return 0


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
    return 0


def _compare(arguments: argparse.Namespace, _launch: Launch) -> int:
    from meshemu.record.compare import compare

    difference = compare(arguments.a, arguments.b)
    print("identical" if difference is None else difference)
    return 0 if difference is None else 1


def _systems(arguments: argparse.Namespace, _launch: Launch) -> int:
    from meshemu.hardware import describe_system, list_systems

    print(list_systems() if arguments.name is None else describe_system(arguments.name))
    return 0


def _validate(arguments: argparse.Namespace, _launch: Launch) -> int:
    from meshemu.study import validate

    rows = validate.validate(arguments.set)
    print(validate.to_json(rows) if arguments.json else validate.render(rows))
    return 1 if any(row.agrees is False for row in rows) else 0


def _compare_systems(arguments: argparse.Namespace, _launch: Launch) -> int:
    from meshemu.study import compare_systems

    plan = None if arguments.plan == "config" else arguments.plan
    rows = compare_systems.compare_systems(arguments.config, arguments.systems, overrides=arguments.set, plan=plan)
    if arguments.json or arguments.csv:
        print(compare_systems.to_json(rows) if arguments.json else compare_systems.to_csv(rows))
    else:
        print(compare_systems.render(rows, str(arguments.config)))
    return 0


def _models(_arguments: argparse.Namespace, _launch: Launch) -> int:
    from meshemu.workload.models import MODELS

    width = max(len(name) for name in MODELS)
    for name, build in sorted(MODELS.items()):
        print(f"{name:<{width}}  {(build.__doc__ or '').strip().partition(chr(10))[0]}")
    return 0


def _raw_world() -> Any:
    from meshemu.runtime.mpi import raw_world

    return raw_world()


def _comm(launch: Launch) -> "Comm":
    if launch.size == 1:
        from meshemu.runtime.local import SingleComm

        return SingleComm()
    from meshemu.runtime.mpi import world

    return world()


class _Parser(argparse.ArgumentParser):
    """Reports what is wrong with the arguments as bad input: one line, from one rank."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see '{self.prog} --help')")


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


def _parser() -> argparse.ArgumentParser:
    about = "Emulate training on a wafer-scale mesh of devices."
    parser = _Parser(prog="meshemu", description=about, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"meshemu {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, command: _Command, summary: str, *, parallel: bool = False) -> argparse.ArgumentParser:
        about = f"{summary[0].upper()}{summary[1:]}."
        added = commands.add_parser(name, help=summary, description=about, allow_abbrev=False)
        added.set_defaults(command=command, parallel=parallel)
        return added

    run = add("run", _run, "execute and time a training run (under mpirun, or alone on one rank)", parallel=True)
    run.add_argument("config", type=Path, metavar="CONFIG.toml")
    run.add_argument("--steps", type=int, metavar="N", help="training steps, instead of training.steps")
    run.add_argument("--save", type=Path, metavar="FILE.pt", help="write the trained state, as torch.save does")
    run.add_argument("--no-execute", action="store_true", help="time only: no tensors, no loss")
    retime = add("retime", _retime, "time a stored run again on changed hardware or timing", parallel=True)
    retime.add_argument("file", type=Path, metavar="RUN.h5")
    for command in (run, retime):
        command.add_argument("-o", "--output", type=Path, metavar="FILE.h5", help="the results file")
        command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE ...", help="change settings")
        command.add_argument("--overwrite", action="store_true", help="replace the results file if there is one")

    collectives = add("collectives", _collectives, "list collective algorithms with their times", parallel=True)
    collectives.add_argument("--system", default="dojo-tile", metavar="NAME", help="a preset (default: %(default)s)")
    collectives.add_argument("--size", default="1 MiB", help="size of the buffer (default: %(default)s)")
    changed = "change the system or its routers"
    collectives.add_argument("--set", action="append", default=[], metavar="KEY=VALUE ...", help=changed)

    report = add("report", _report, "say what bounds a run, with tables and a picture of the links")
    report.add_argument("file", type=Path, metavar="RUN.h5")
    report.add_argument("--json", action="store_true", help="as JSON; no picture unless --png asks for one")
    both = "time the step again with unbounded FIFOs and with routers, and compare"
    report.add_argument("--both-modes", action="store_true", help=both)
    changed = "change settings, such as network.router.buffer_flits=8, before timing both modes"
    report.add_argument("--set", action="append", default=[], metavar="KEY=VALUE ...", help=changed)
    picture = report.add_mutually_exclusive_group()
    picture.add_argument("--png", type=Path, metavar="FILE.png", help="the picture (default: RUN.png beside the run)")
    picture.add_argument("--no-png", action="store_true", help="no picture")

    compare = add("compare", _compare, "compare the results of two runs bit for bit; exit code 1 if they differ")
    compare.add_argument("a", type=Path, metavar="A.h5")
    compare.add_argument("b", type=Path, metavar="B.h5")

    systems = add("systems", _systems, "list the systems, or every figure of one with its source")
    systems.add_argument("name", nargs="?", metavar="NAME")
    about = "print published figures beside the model's; exit code 1 if exact ones differ"
    published = add("validate", _validate, about)
    published.add_argument("--json", action="store_true", help="as JSON")
    changed = "change a figure of every system that has it, as system.KEY=VALUE"
    published.add_argument("--set", action="append", default=[], metavar="KEY=VALUE ...", help=changed)
    machines = add("compare-systems", _compare_systems, "time one step of a model on several systems, in one table")
    machines.add_argument("config", type=Path, metavar="CONFIG.toml")
    machines.add_argument("--systems", nargs="+", required=True, metavar="NAME", help="presets (meshemu systems)")
    plans = "the plan on every system, or config for that of the file (default: %(default)s)"
    machines.add_argument("--plan", default="auto", metavar="NAME", help=plans)
    machines.add_argument("--set", action="append", default=[], metavar="KEY=VALUE ...", help="change settings")
    form = machines.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON")
    form.add_argument("--csv", action="store_true", help="as CSV")
    add("models", _models, "list the built-in models")
    return parser
