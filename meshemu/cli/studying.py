"""Subcommands that compare: validate (published figures), compare-systems."""

import argparse
from pathlib import Path

from meshemu.cli.commands import Commands, add_settings
from meshemu.runtime.launch import Launch

__all__ = ["register"]


def register(commands: Commands) -> None:
    """Add validate and compare-systems."""
    about = "print published figures beside the model's; exit code 1 if exact ones differ"
    published = commands.add("validate", _validate, about)
    published.add_argument("--json", action="store_true", help="as JSON")
    add_settings(published, "change a figure of every system that has it, as system.KEY=VALUE")
    about = "time one step of a model on several systems, in one table"
    machines = commands.add("compare-systems", _compare_systems, about)
    machines.add_argument("config", type=Path, metavar="CONFIG.toml")
    machines.add_argument("--systems", nargs="+", required=True, metavar="NAME", help="presets (meshemu systems)")
    plans = "the plan on every system, or config for that of the file (default: %(default)s)"
    machines.add_argument("--plan", default="auto", metavar="NAME", help=plans)
    add_settings(machines)
    form = machines.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON")
    form.add_argument("--csv", action="store_true", help="as CSV")


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
