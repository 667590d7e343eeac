"""The results file of a run: opened by rank 0 before the first step, one record per step, closed with how it ran."""

import os
import platform
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from meshemu.comm import Comm
from meshemu.emulator.bulk import ALL_BUT_MESSAGES, Bulk, BulkOptions
from meshemu.emulator.root import on_root
from meshemu.emulator.timed_step import TimedStep
from meshemu.errors import RecordError
from meshemu.mesh import Order
from meshemu.program.ir import Program
from meshemu.record.head import Head
from meshemu.record.reader import open_run
from meshemu.record.step_record import StepRecord, TrainingRecord
from meshemu.record.writer import RunWriter
from meshemu.version import __version__

__all__ = ["CAPTURED", "REMARKS", "Layout", "Recorder"]

CAPTURED = "captured:"
"""How the sentence begins that says that every step has a Program of its own, of which the first is stored."""

REMARKS = ("plan:", "gathered:", CAPTURED, "memory:", "formats:")
"""How sentences about the plan, the capture and number formats begin, in the list of assumptions."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """What a file is made for, beside the step. remarks: sentences to keep beside the assumptions that the figures rest
    on. order: in which messages are routed. bulk: what is recorded of the first step. Others: as in `Head`.
    """

    config_text: str
    n_steps: int
    remarks: Sequence[str] = ()
    loss_names: Sequence[str] = ()
    n_parameter_groups: int = 1
    order: Order = "xy"
    bulk: BulkOptions = ALL_BUT_MESSAGES


@dataclass(eq=False)
class Recorder:
    """Rank 0 holds the writer; the other ranks only take part in sharing its errors.

    timed: the step whose Program is in the file. n_recorded: steps that were in the file when it was opened; what they
    give when they are run again is compared with what is there. left_out: what the budget had no room for, one sentence
    each. peak_memory_bytes: int64[n_devices], the most of all steps so far.
    """

    writer: RunWriter | None
    timed: TimedStep
    comm: Comm
    n_recorded: int = 0
    left_out: tuple[str, ...] = ()
    peak_memory_bytes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], timed: TimedStep, comm: Comm, layout: Layout, *, overwrite: bool
    ) -> "Recorder":
        """Create the file. Raises RecordError on every rank if it cannot be written."""
        bulk = Bulk.within(timed, layout.bulk)
        notes = (f"{a.key}: {a.sentence}" for a in timed.assumptions)
        head = Head(
            system_json=timed.system.to_json(),
            mesh=timed.mesh,
            program=timed.program,
            config_text=layout.config_text,
            n_steps=layout.n_steps,
            assumptions=[*notes, *layout.remarks, *bulk.left_out],
            loss_names=layout.loss_names,
            n_parameter_groups=layout.n_parameter_groups,
            memory=timed.memory,
        )

        def create() -> RunWriter:
            writer = RunWriter.create(path, head, overwrite=overwrite)
            try:
                bulk.write(writer, timed, layout.order)
                writer.write_peak_memory(timed.peak_memory_bytes)
                writer.publish()
            except BaseException:
                writer.discard()
                raise
            return writer

        return cls(on_root(comm, create), timed, comm, 0, bulk.left_out, timed.peak_memory_bytes.copy())

    @classmethod
    def resume(cls, path: str | os.PathLike[str], timed: TimedStep, comm: Comm, *, n_steps: int) -> "Recorder":
        """Open the file of a run that was cut off, or is to be longer, and go on with it up to `n_steps` steps.

        Raises RecordError on every rank if it holds another Program, is in use, or cannot be written.
        """

        def reopen() -> RunWriter:
            stored = open_run(path)
            different = _first_difference(stored.program(), timed.program)
            if stored.system_json != timed.system.to_json():
                different = "the system"
            if different:
                raise RecordError(
                    f"cannot continue {path}: {different} is not what meshemu {stored.meshemu_version} recorded in it"
                )
            return RunWriter.resume(path, n_steps)

        writer = on_root(comm, reopen)
        found = None if writer is None else (writer.n_steps, writer.peak_memory_bytes())
        n_recorded, peak = comm.broadcast(found)
        return cls(writer, timed, comm, n_recorded, (), peak)

    def step(self, step: int, training: TrainingRecord, *, wall_s: float, timed: TimedStep | None = None) -> None:
        """Record a step, with what its maths gave. timed: its virtual time, None for that of the file's Program.

        Raises on every rank:
            RecordError: it cannot be written.
            CheckError: it is in the file already, and differs.
        """
        timed = timed or self.timed
        summary = timed.summary
        peak = np.maximum(timed.peak_memory_bytes, self.peak_memory_bytes)
        grown = bool((peak > self.peak_memory_bytes).any())
        self.peak_memory_bytes = peak
        record = StepRecord(
            time_ps=summary.time_ps,
            compute_ps=summary.compute_ps,
            exposed_comm_ps=summary.exposed_comm_ps,
            ingest_ps=summary.ingest_ps,
            flops=summary.flops,
            links=timed.timing.links,
            device_compute_ps=summary.device_compute_ps,
            device_idle_ps=summary.device_idle_ps,
            wall_s=wall_s,
            training=training,
        )

        def write() -> None:
            if self.writer is None:
                return
            if step < self.n_recorded:
                self.writer.check_step(step, record)
                return
            if grown:
                self.writer.write_peak_memory(peak)
            self.writer.append_step(record)

        on_root(self.comm, write)

    def sync(self) -> None:
        """Bring what was recorded to the disk. Raises RecordError on every rank."""
        on_root(self.comm, lambda: None if self.writer is None else self.writer.sync())

    def finish(self, phases_wall_s: Mapping[str, float]) -> None:
        """Note how the run was computed and mark the file complete."""
        counters = self.timed.timing.counters
        hosts = self.comm.all_gather(socket.gethostname())
        run: dict[str, int | float | str] = {
            "ranks": self.comm.size,
            "hosts": ",".join(dict.fromkeys(hosts)),
            "python": platform.python_version(),
            "meshemu_version": __version__,
            "resumed_with_steps": self.n_recorded,
            "events": counters.events,
            "packet_hops": counters.packet_hops,
            "windows": counters.windows,
            "imbalance": counters.imbalance,
            "events_of_ranks": ",".join(str(rank.events) for rank in counters.ranks),
            "events_sent_of_ranks": ",".join(str(rank.sent) for rank in counters.ranks),
            "busy_s_of_ranks": ",".join(f"{rank.busy_s:.6f}" for rank in counters.ranks),
            "timing_wall_s": counters.wall_s,
            **{f"{name}_wall_s": seconds for name, seconds in phases_wall_s.items()},
        }
        on_root(self.comm, lambda: None if self.writer is None else self.writer.finish(run))

    def close(self) -> None:
        """Close the file as it is; it stays marked incomplete. Raises RecordError on every rank."""
        on_root(self.comm, lambda: None if self.writer is None else self.writer.close())

    def abandon(self) -> None:
        """Close the file as it is after an error, which other ranks may not share."""
        if self.writer is not None:
            self.writer.discard()


def _first_difference(stored: Program, made: Program) -> str:
    """In what two Programs differ, in words; "" if they are equal."""
    for each in fields(Program):
        a, b = getattr(stored, each.name), getattr(made, each.name)
        same = np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b
        if not same:
            return f"the Program ({each.name})"
    return ""
