"""The subcommand scale: more devices of the emulated system, or more ranks of the emulator."""

import argparse
from pathlib import Path

from meshemu.cli.commands import Commands, add_outputs, add_settings, write_study
from meshemu.errors import InputError
from meshemu.runtime.launch import Launch

__all__ = ["register"]


def register(commands: Commands) -> None:
    """Add scale."""
    about = "time one step on more and more devices, and say where its time goes and by what law"
    scale = commands.add("scale", _scale, about)
    scale.add_argument("config", type=Path, metavar="CONFIG.toml")
    scale.add_argument("--devices", type=int, nargs="+", metavar="N", help="numbers of devices")
    mode = scale.add_mutually_exclusive_group()
    mode.add_argument("--strong", action="store_true", help="only strong scaling: the batch stays")
    mode.add_argument("--weak", action="store_true", help="only weak scaling: the batch grows with the devices")
    mode.add_argument("--both", action="store_true", help="strong and weak scaling (the default)")
    mode.add_argument("--emulator", action="store_true", help="instead: the emulator itself over MPI ranks")
    scale.add_argument("--ranks", type=int, nargs="+", metavar="N", help="with --emulator: numbers of MPI ranks")
    scale.add_argument("--no-execute", action="store_true", help="with --emulator: time only, no maths")
    add_settings(scale)
    add_outputs(scale, "scale.txt, .json, .csv and .png")


def _scale(arguments: argparse.Namespace, _launch: Launch) -> int:
    if arguments.emulator:
        if arguments.devices or not arguments.ranks:
            raise InputError("--emulator takes --ranks N ..., and no --devices")
        from meshemu.study import emulator_scaling

        wanted = {"overrides": arguments.set, "execute": not arguments.no_execute}
        measured = emulator_scaling.emulator_scaling(arguments.config, arguments.ranks, **wanted)
        write_study(arguments, measured, emulator_scaling)
        return 0
    if not arguments.devices or arguments.ranks or arguments.no_execute:
        raise InputError("scale takes --devices N ...; --ranks and --no-execute go with --emulator")
    from meshemu.study import scale, scale_report

    modes = ["strong"] if arguments.strong else ["weak"] if arguments.weak else scale.MODES
    found = scale.scale(arguments.config, arguments.devices, modes=modes, overrides=arguments.set)
    write_study(arguments, found, scale_report)
    return 0
