"""The `meshemu` command: one module of subcommands per question a user has."""

from meshemu.cli.entry import main, parse_arguments

__all__ = ["main", "parse_arguments"]
