"""Writes one run to one HDF5 file, step by step, so that it can be watched and survives a kill at any moment.

Everything is created before the first step, under another name (`record.claim`). A step's columns are written and
flushed, then its number is appended to /results/steps/step and flushed: a reader that trusts that index sees whole
steps only. What a flush writes reaches the disk in an order that a kill may interrupt anywhere (`record.ordered_file`).
Space for a step is set aside before any of it is written, so that a full disk is met while the file is whole; a write
that fails nevertheless leaves the file as a kill would. Rank 0 alone writes.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from meshemu.errors import RecordError
from meshemu.record.access import check_layout, identify
from meshemu.record.atomic import one_line
from meshemu.record.attributes import put_attribute
from meshemu.record.claim import Claim
from meshemu.record.growing import GrowingColumns
from meshemu.record.head import Head, write_head
from meshemu.record.ordered_file import OrderedFile
from meshemu.record.putting import replace_column, seal_head, seal_run
from meshemu.record.rows import check_rows, step_rows
from meshemu.record.schema import COLUMNS, LOSS_NAMES, SCHEMA_VERSION
from meshemu.record.step_record import MessageRecord, StepRecord

if TYPE_CHECKING:  # the network package compiles kernels when imported; only its result types are needed here
    from meshemu.network.results import OpTimes, Timeline

__all__ = ["RunWriter"]

_NODES_BYTES = 16_384  # of the index of a dataset's chunks that one more chunk may add, with room to spare


class RunWriter:
    """An open results file. Also a context manager: leaving it closes the file, complete only after `finish`.

    n_steps: steps that are committed.
    """

    def __init__(self, claim: Claim, disk: OrderedFile, file: h5py.File) -> None:
        self.path = claim.path
        self._claim = claim
        self._disk = disk
        self._file = file
        self._steps = GrowingColumns(file, "step")
        self.n_steps = self._steps.committed
        self._n_links = file["/results/links/bytes"].shape[1]
        self._n_devices = file["/results/devices/compute_ps"].shape[1]
        self._n_ops = file["/results/ops/start_ps"].shape[1]
        self._n_messages = file["/results/messages/hops"].shape[1]
        self._loss_names = tuple(name.decode() for name in file[LOSS_NAMES][:])
        self._n_parameter_groups = file["/results/steps/learning_rate"].shape[1]
        self._growth_bytes = _growth_bytes(file)

    @classmethod
    def create(cls, path: str | os.PathLike[str], head: Head, *, overwrite: bool = False) -> "RunWriter":
        """Make a file with everything that is known before the first step; `publish` gives it its name.

        Raises:
            RecordError: the path exists (without `overwrite`), is no results file, is in use, or cannot be written.
        """
        with _writing(Path(path)):
            return _opened(cls, Claim.new(Path(path), overwrite=overwrite), "w", lambda file: write_head(file, head))

    @classmethod
    def resume(cls, path: str | os.PathLike[str], n_steps: int) -> "RunWriter":
        """Open a file in order to append to it, up to `n_steps` steps in all; from now on it is incomplete.

        Raises:
            RecordError: it is no results file of this layout, is in use, or cannot be written.
        """

        def mark(file: h5py.File) -> None:
            head, _ = identify(Path(path), file)
            if (version := int(head["schema_version"])) != SCHEMA_VERSION:
                raise RecordError(
                    f"cannot continue {path}: its schema_version is {version}, this meshemu writes {SCHEMA_VERSION}"
                )
            check_layout(file)
            file.attrs["complete"] = np.int8(0)
            if int(head["n_steps_planned"]) != n_steps:
                file.attrs["n_steps_planned"] = np.int64(n_steps)
                seal_head(file)
            file.flush()

        with _writing(Path(path)):
            return _opened(cls, Claim.existing(Path(path)), "r+", mark)

    @property
    def size_bytes(self) -> int:
        """Length of the file, without the space that is set aside beyond it."""
        return self._disk.size_bytes

    def publish(self) -> None:
        """Let the file appear at its path; steps do so themselves.

        Raises:
            RecordError: another run has made a file there meanwhile.
        """
        if self._claim.published:
            return
        with self._failing_whole():
            self._file.flush()
            self._disk.order()
            self._claim.publish()

    def append_step(self, record: StepRecord) -> None:
        """Write the next step and commit it.

        Raises:
            RecordError: an array has the wrong length, a loss has a name that the file was not made for, or the file
                cannot be written or is no longer there; what was committed before stays.
        """
        rows = self._rows(record)
        self.publish()
        self._claim.check_in_place(self.n_steps)
        step = self.n_steps
        self._reserve()
        with self._failing_whole():
            self._steps.put(step, {path: [value] for path, value in rows.items()}, [step])
        self._reserve()
        with self._failing_whole():
            self._steps.commit(step, [step])
        self.n_steps = step + 1

    def check_step(self, step: int, record: StepRecord) -> None:
        """Compare what a committed step gives when it is run again with what is in the file, but for its wall time.

        Raises:
            CheckError: it is not the same, bit for bit.
        """
        rows = self._rows(record)
        with _writing(self.path):
            stored = {path: self._file[path][step] for path in rows if not path.startswith("/run/")}
        check_rows(step, stored, rows, str(self.path))

    def write_ops(self, ops: "OpTimes", step: int = 0) -> None:
        """Record start and end of every op in `step`."""
        self._check_length("ops", len(ops.start_ps), self._n_ops)
        rows = {"/results/ops/start_ps": ops.start_ps[None], "/results/ops/end_ps": ops.end_ps[None]}
        self._append("recorded_step", rows, [step])

    def write_messages(self, messages: MessageRecord, step: int = 0) -> None:
        """Record when every message of `step` departed and arrived, and over how many links."""
        self._check_length("messages", len(messages.depart_ps), self._n_messages)
        self._append("message_step", {f"/results/messages/{k}": v[None] for k, v in vars(messages).items()}, [step])

    def write_timeline(self, timeline: "Timeline") -> None:
        """Record link activity over the first recorded step (once)."""
        bins = np.arange(len(timeline.link_busy_ps))
        rows = {
            "/results/timeline/bin_start_ps": bins.astype(np.int64) * timeline.bin_ps,
            "/results/timeline/link_busy_ps": timeline.link_busy_ps,
        }
        self._append("bin", rows, bins)

    def write_peak_memory(self, peak_memory_bytes: NDArray[np.int64]) -> None:
        """Record the most memory that each device needs, int64[n_devices]."""
        self._check_length("peak_memory_bytes", len(peak_memory_bytes), self._n_devices)
        with self._failing_whole():
            replace_column(self._file, "/results/devices/peak_memory_bytes", peak_memory_bytes)

    def peak_memory_bytes(self) -> NDArray[np.int64]:
        """What was recorded of it, int64[n_devices]."""
        with _writing(self.path):
            return np.asarray(self._file["/results/devices/peak_memory_bytes"][:])

    def sync(self) -> None:
        """Bring all committed steps to the disk, so that they outlive a loss of power."""
        with self._failing_whole():
            self._file.flush()
            self._claim.sync()

    def finish(self, run: Mapping[str, int | float | str]) -> None:
        """Note how the run was computed (ranks, hosts, versions, engine counters), mark it complete and close."""
        self.publish()
        self._claim.check_in_place(self.n_steps)
        self._reserve()
        with self._failing_whole():
            for key, value in run.items():
                put_attribute(self._file["/run"], key, value)
            seal_run(self._file)
            self._file.flush()
            self._file.attrs["complete"] = np.int8(1)
            self._file.flush()
        self.close()

    def close(self) -> None:
        """Close the file as it is. Without `finish` before, it stays marked incomplete."""
        if not self._file:
            return
        with self._failing_whole():
            self._claim.publish()
            self._file.close()
            self._disk.flush()
            self._disk.sever()  # the number of its descriptor may soon be another file's
            self._claim.release(self._disk.size_bytes)

    def discard(self) -> None:
        """Let go of the file after an error, which must not be hidden by another: as it is, or not at all."""
        with suppress(OSError, RuntimeError, ValueError, RecordError):
            if self._file and not self._claim.published:
                _sever(self._disk, self._file)
                self._claim.drop()
            self.close()

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close; an error on the way out must not hide the one that ended the block."""
        if kind is None:
            self.close()
        else:
            self.discard()

    def _append(self, dim: str, rows: Mapping[str, NDArray[Any]], numbers: Any) -> None:
        """Append rows along `dim`, what its scale holds for them being `numbers`, and commit them."""
        with self._failing_whole():
            columns = GrowingColumns(self._file, dim)
            first = columns.committed
            columns.put(first, rows, numbers)
            columns.commit(first, numbers)

    def _rows(self, record: StepRecord) -> dict[str, Any]:
        self._check_length("links", len(record.links.bytes), self._n_links)
        self._check_length("device_compute_ps", len(record.device_compute_ps), self._n_devices)
        self._check_length("device_idle_ps", len(record.device_idle_ps), self._n_devices)
        try:
            return step_rows(record, self._loss_names, self._n_parameter_groups)
        except RecordError as error:
            raise RecordError(f"{self.path}: {error}") from None

    def _check_length(self, what: str, length: int, expected: int) -> None:
        if length != expected:
            raise RecordError(f"{self.path}: {what} has {length} entries where the file holds {expected}")

    def _reserve(self) -> None:
        """Have space for one more step, or fail with the file untouched."""
        with _writing(self.path, self._kept()):
            self._claim.reserve(self._disk.size_bytes, self._growth_bytes)

    @contextmanager
    def _failing_whole(self) -> Iterator[None]:
        """A write that fails leaves the file as it is now: HDF5 must not try to tidy up what it cannot write."""
        try:
            with _writing(self.path, self._kept()):
                yield
        except RecordError:
            _sever(self._disk, self._file)
            self._claim.drop()
            raise

    def _kept(self) -> str:
        return f"; the {self.n_steps} steps before are kept" if self._claim.published and self.n_steps else ""


def _opened(kind: type[RunWriter], claim: Claim, mode: str, begin: Callable[[h5py.File], None]) -> RunWriter:
    """A writer of the claimed file, in which `begin` has been done; what fails gives up the claim."""
    disk = OrderedFile(claim.descriptor)
    if mode != "w":
        disk.order()
    try:
        file = h5py.File(disk, mode)
        try:
            begin(file)
            return kind(claim, disk, file)
        except BaseException:
            _sever(disk, file)
            raise
    except BaseException:
        claim.drop()
        raise


def _growth_bytes(file: h5py.File) -> int:
    """More than a step can add: a chunk of every column, as large as it is without compression, and their index."""
    growing = {column.path for column in COLUMNS if column.dims[:1] == ("step",)}
    growing |= {f"{column.group}/step" for column in COLUMNS if "step" in column.dims}
    total = 0
    for path in growing:
        dataset = file[path]
        per_row = -(-int(np.prod(dataset.shape[1:])) // max(int(np.prod(dataset.chunks[1:])), 1))
        total += per_row * (int(np.prod(dataset.chunks)) * dataset.dtype.itemsize + _NODES_BYTES)
    return total


def _sever(disk: OrderedFile, file: h5py.File) -> None:
    """Close without writing anything more."""
    disk.sever()
    with suppress(OSError, RuntimeError, ValueError):
        file.close()


@contextmanager
def _writing(path: Path, kept: str = "") -> Iterator[None]:
    """Turn what the system or HDF5 raises into one line."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise RecordError(f"cannot write {path}: {one_line(error)}{kept}") from None
