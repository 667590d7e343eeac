"""Subcommands that say what there is: collectives, systems, models."""

import argparse

from meshemu.cli.commands import Commands, add_outputs, add_settings, comm_of, write_study
from meshemu.errors import InputError
from meshemu.runtime.launch import Launch

__all__ = ["register"]


def register(commands: Commands) -> None:
    """Add collectives, systems and models."""
    about = "list collective algorithms with their times"
    collectives = commands.add("collectives", _collectives, about, parallel=True)
    collectives.add_argument("--system", default="dojo-tile", metavar="NAME", help="a preset (default: %(default)s)")
    collectives.add_argument("--size", default="1 MiB", help="size of the buffer (default: %(default)s)")
    sizes = "sizes of the buffer: a study with bounds, one table per collective"
    collectives.add_argument("--sizes", nargs="+", metavar="SIZE", help=sizes)
    collectives.add_argument("--kinds", nargs="+", metavar="KIND", help="with --sizes: only these collectives")
    add_outputs(collectives, "collectives.txt, .json, .csv and .png")
    add_settings(collectives, "change the system or its routers")
    systems = commands.add("systems", _systems, "list the systems, or every figure of one with its source")
    systems.add_argument("name", nargs="?", metavar="NAME")
    commands.add("models", _models, "list the built-in models")


def _collectives(arguments: argparse.Namespace, launch: Launch) -> int:
    from meshemu.units import size_bytes

    if arguments.sizes is not None:
        return _study_collectives(arguments, launch)
    for option in ("kinds", "output", "json", "csv"):
        if getattr(arguments, option):
            raise InputError(f"--{option} goes with --sizes")
    from meshemu.emulator.collective_times import collectives_table

    size = size_bytes(arguments.size, key="--size")
    table = collectives_table(arguments.system, size, overrides=arguments.set, comm=comm_of(launch))
    if launch.rank == 0:
        print(table)
    return 0


def _study_collectives(arguments: argparse.Namespace, launch: Launch) -> int:
    from meshemu.study import collectives_report
    from meshemu.units import size_bytes

    sizes = [size_bytes(text, key="--sizes") for text in arguments.sizes]
    found = collectives_report.study_collectives(
        arguments.system, sizes, kinds=arguments.kinds, overrides=arguments.set, comm=comm_of(launch)
    )
    if launch.rank == 0:
        write_study(arguments, found, collectives_report)
    return 0


def _systems(arguments: argparse.Namespace, _launch: Launch) -> int:
    from meshemu.hardware import describe_system, list_systems

    print(list_systems() if arguments.name is None else describe_system(arguments.name))
    return 0


def _models(_arguments: argparse.Namespace, _launch: Launch) -> int:
    from meshemu.workload.models import MODELS

    width = max(len(name) for name in MODELS)
    for name, build in sorted(MODELS.items()):
        print(f"{name:<{width}}  {(build.__doc__ or '').strip().partition(chr(10))[0]}")
    return 0
