"""The `meshemu` command: one module of subcommands per question a user has."""

from meshemu.cli.entry import main

__all__ = ["main"]
