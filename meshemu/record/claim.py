"""The right to write a results file: a lock that ends with its process, and a name that appears once the file is whole.

A new file grows under a name of its own and is moved to its path when everything that precedes the first step is in it,
so that whatever lies at the path can be read. The lock (flock) is on the file itself and goes with it when it moves.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from meshemu.errors import RecordError
from meshemu.record.atomic import UNFINISHED

__all__ = ["Claim", "check_free"]

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class Claim:
    """An open, locked file. working_path: where it lies until it is published at `path`. descriptor: of the open file,
    negative once it is given up.
    """

    def __init__(self, path: Path, working_path: Path, descriptor: int, *, overwrite: bool) -> None:
        self.path = path
        self.working_path = working_path
        self.descriptor = descriptor
        self._overwrite = overwrite

    @classmethod
    def new(cls, path: Path, *, overwrite: bool) -> "Claim":
        """For a file that is to be made at `path`; with `overwrite`, in the place of the results file that is there.

        Raises:
            RecordError: there is a file, it is none of ours, or another process is writing it.
        """
        check_free(path, overwrite=overwrite)
        working = path.with_name(f"{path.name}{UNFINISHED}")
        while os.fstat(descriptor := _locked(working, os.O_CREAT, path)).st_nlink > 1:
            working.unlink()  # a run was killed while it published: this is a second name of its results file
            os.close(descriptor)
        os.ftruncate(descriptor, 0)
        return cls(path, working, descriptor, overwrite=overwrite)

    @classmethod
    def existing(cls, path: Path) -> "Claim":
        """For a file that is there and is to be continued.

        Raises:
            RecordError: another process is writing it.
        """
        return cls(path, path, _locked(path, 0, path), overwrite=False)

    @property
    def published(self) -> bool:
        """Whether the file lies at its path."""
        return self.working_path == self.path

    def publish(self) -> None:
        """Give the file its name; from now on it is there for others.

        Raises:
            RecordError: a file has come to lie there meanwhile.
        """
        if self.published:
            return
        if self._overwrite:
            check_free(self.path, overwrite=self._overwrite)
        else:
            try:
                os.link(self.working_path, self.path)
            except FileExistsError:
                raise RecordError(f"cannot write {self.path}: another run has made it meanwhile") from None
            except OSError:  # a file system without hard links
                check_free(self.path, overwrite=self._overwrite)
        self.working_path.replace(self.path)
        # Of two names of one file, replace leaves both.
        with suppress(FileNotFoundError):
            self.working_path.unlink()
        self.working_path = self.path

    def check_in_place(self, n_steps: int) -> None:
        """Raise RecordError if the file was removed or replaced; what goes into it now nobody would see."""
        try:
            found = os.stat(self.working_path)
        except FileNotFoundError:
            found = None
        if found is None or not os.path.samestat(found, os.fstat(self.descriptor)):
            lost = f"; the {n_steps} steps in it are lost" if n_steps else ""
            raise RecordError(f"cannot write {self.path}: it was removed or replaced while the run went on{lost}")

    def reserve(self, offset: int, size_bytes: int) -> None:
        """Have the file system set space aside from `offset` on, so that no write into it can fail for want of it.

        Raises:
            OSError: there is not enough.
        """
        os.posix_fallocate(self.descriptor, offset, size_bytes)

    def sync(self) -> None:
        """Bring the file to the disk, so that it outlives a loss of power."""
        os.fsync(self.descriptor)

    def release(self, size_bytes: int) -> None:
        """Give up the lock, and what was set aside beyond `size_bytes`."""
        if os.fstat(self.descriptor).st_size > size_bytes:
            os.ftruncate(self.descriptor, size_bytes)
        self.drop()

    def drop(self) -> None:
        """Give up the lock, and a file that was never published; what is given up already stays so."""
        if self.descriptor < 0:
            return
        if not self.published:
            with suppress(OSError):
                self.working_path.unlink()
        os.close(self.descriptor)
        self.descriptor = -1


def check_free(path: Path, *, overwrite: bool) -> None:
    """Raise RecordError for a path that must not be written."""
    if not path.parent.is_dir():
        raise RecordError(f"cannot write {path}: directory {path.parent} does not exist")
    if path.is_dir():
        raise RecordError(f"cannot write {path}: it is a directory")
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise RecordError(f"cannot write {path}: it exists already (use --overwrite, --resume or another path)")
    with path.open("rb") as file:
        head = file.read(len(_HDF5_SIGNATURE))
        if head.strip(b"\0") and head != _HDF5_SIGNATURE:
            raise RecordError(f"cannot overwrite {path}: it is not a results file")
        _lock(file.fileno(), f"cannot overwrite {path}")


def _locked(file: Path, flags: int, path: Path) -> int:
    """A descriptor of the file that `file` names, with its lock."""
    while True:
        descriptor = os.open(file, os.O_RDWR | flags, 0o666)
        try:
            _lock(descriptor, f"cannot write {path}")
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(file), os.fstat(descriptor)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # another process has moved or removed it between opening and locking


def _lock(descriptor: int, what: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RecordError(f"{what}: another process is using it") from None
    except OSError:
        pass  # a file system without locks
