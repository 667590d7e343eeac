"""Changes a results file by hand as if it had been written so: its checksums are made to fit."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from meshemu.record.checksums import column_checksum, row_checksums
from meshemu.record.putting import seal_head, seal_run
from meshemu.record.schema import CHECKSUMS, COMMIT_INDEXES, WHOLE_COLUMN, checked_paths

__all__ = ["changed"]


@contextmanager
def changed(path: Path) -> Iterator[h5py.File]:
    """The file, open for changes."""
    with h5py.File(path, "r+") as file:
        yield file
        for dim in COMMIT_INDEXES:
            for place, name in enumerate(checked_paths(dim)):
                file[f"{CHECKSUMS}/{dim}_crc32"][:, place] = row_checksums(name, 0, file[name][...])
        for place, name in enumerate(checked_paths(WHOLE_COLUMN)):
            file[f"{CHECKSUMS}/{WHOLE_COLUMN}_crc32"][place] = column_checksum(name, file[name][()])
        seal_head(file)
        if file.attrs["complete"]:
            seal_run(file)
