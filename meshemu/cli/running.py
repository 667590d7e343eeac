"""Subcommands that make a results file: run, retime."""

import argparse
from pathlib import Path

from meshemu.cli.commands import Commands, add_settings, comm_of
from meshemu.runtime.launch import Launch

__all__ = ["register"]


def register(commands: Commands) -> None:
    """Add run and retime."""
    run = commands.add(
        "run", _run, "execute and time a training run (under mpirun, or alone on one rank)", parallel=True
    )
    run.add_argument("config", type=Path, metavar="CONFIG.toml")
    run.add_argument("--steps", type=int, metavar="N", help="training steps, instead of training.steps")
    run.add_argument("--save", type=Path, metavar="FILE.pt", help="write the trained state, as torch.save does")
    run.add_argument("--no-execute", action="store_true", help="time only: no tensors, no loss")
    run.add_argument("--resume", action="store_true", help="go on with the run in the results file")
    retime = commands.add("retime", _retime, "time a stored run again on changed hardware or timing", parallel=True)
    retime.add_argument("file", type=Path, metavar="RUN.h5")
    for command in (run, retime):
        command.add_argument("-o", "--output", type=Path, metavar="FILE.h5", help="the results file")
        add_settings(command)
        command.add_argument("--overwrite", action="store_true", help="replace the results file if there is one")


def _run(arguments: argparse.Namespace, launch: Launch) -> int:
    from meshemu.config import load

    overrides = list(arguments.set)
    if arguments.steps is not None:
        overrides.append(f"training.steps={arguments.steps}")
    if arguments.overwrite:
        overrides.append("output.overwrite=true")
    config = load(arguments.config, overrides)
    output = arguments.output or Path(config.output.path or f"{arguments.config.stem}.h5")

    if not arguments.resume:
        from meshemu.emulator.early import check_early

        check_early(config)

    from meshemu.emulator.running import run  # the heavy part, once the configuration is known to be good

    run(
        config,
        output,
        execute=not arguments.no_execute,
        save=arguments.save,
        resume=arguments.resume,
        comm=comm_of(launch),
    )
    return 0


def _retime(arguments: argparse.Namespace, launch: Launch) -> int:
    from meshemu.emulator.retiming import retime

    output = arguments.output or arguments.file.parent / f"{arguments.file.stem}.retimed.h5"
    retime(arguments.file, arguments.set, output, overwrite=arguments.overwrite, comm=comm_of(launch))
    return 0
