"""Writes a file that appears whole or not at all, and is on the disk once it has appeared."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from meshemu.errors import RecordError

__all__ = ["UNFINISHED", "one_line", "write_atomically"]

UNFINISHED = ".unfinished"
"""What is added to the name of a file while it is made."""


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Have `write` fill a file beside `path`, bring it to the disk, and put it in the place of `path` at once.

    Raises:
        RecordError: the file cannot be written; what was at `path` is still there, and nothing is left over.
    """
    unfinished = path.with_name(f"{path.name}{UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save raises either
        with suppress(OSError):
            unfinished.unlink()
        raise RecordError(f"{path}: cannot be written: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """What went wrong, in the words of the system if it said so."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return " ".join(str(error).split()) or type(error).__name__


def _sync_folder(folder: Path) -> None:
    """Bring the new name to the disk, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
