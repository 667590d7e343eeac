"""The subcommand tune: a faster plan for a configuration."""

import argparse
from pathlib import Path

from meshemu.cli.commands import Commands, add_outputs, add_settings, write_study
from meshemu.runtime.launch import Launch

__all__ = ["register"]


def register(commands: Commands) -> None:
    """Add tune."""
    about = "search for the plan, its placement, collectives and overlap with which a step is fastest within the memory"
    tune = commands.add("tune", _tune, about)
    tune.add_argument("config", type=Path, metavar="CONFIG.toml")
    trials = "how many choices are timed at most (default: %(default)s)"
    tune.add_argument("--trials", type=int, default=60, metavar="N", help=trials)
    add_settings(tune)
    add_outputs(tune, "tuned.toml (for meshemu run), tune.txt, .json, .csv and .png")


def _tune(arguments: argparse.Namespace, _launch: Launch) -> int:
    from meshemu.study import tune, tune_report

    found = tune.tune(arguments.config, overrides=arguments.set, trials=arguments.trials)
    write_study(arguments, found, tune_report)
    return 0
