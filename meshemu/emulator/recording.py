"""The results file of a run: opened by rank 0 before the first step, one record per step, closed with how it ran."""

import os
import platform
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshemu.comm import Comm
from meshemu.emulator.root import on_root
from meshemu.emulator.timed_step import TimedStep
from meshemu.record.step_record import StepRecord, TrainingRecord
from meshemu.record.writer import RunWriter
from meshemu.version import __version__

__all__ = ["CAPTURED", "REMARKS", "Recorder"]

CAPTURED = "captured:"
"""How the sentence begins that says that every step has a Program of its own, of which the first is stored."""

REMARKS = ("plan:", "gathered:", CAPTURED, "formats:")
"""How sentences about the plan, the capture and number formats begin, in the list of assumptions."""


@dataclass(frozen=True, eq=False)
class Recorder:
    """Rank 0 holds the writer; the other ranks only take part in sharing its errors.

    timed: the step whose Program is in the file. peak_memory_bytes: int64[n_devices], the most of all steps so far.
    """

    writer: RunWriter | None
    timed: TimedStep
    comm: Comm
    peak_memory_bytes: NDArray[np.int64]

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        timed: TimedStep,
        comm: Comm,
        *,
        config_text: str,
        n_steps: int,
        overwrite: bool,
        remarks: Sequence[str] = (),
        loss_names: Sequence[str] = (),
        n_parameter_groups: int = 1,
    ) -> "Recorder":
        """Create the file. remarks: sentences to keep beside the assumptions that the figures rest on. loss_names,
        n_parameter_groups: as for `RunWriter`.

        Raises RecordError on every rank if it cannot be written.
        """

        def create() -> RunWriter:
            writer = RunWriter(
                path,
                system_json=timed.system.to_json(),
                mesh=timed.mesh,
                program=timed.program,
                config_text=config_text,
                n_steps=n_steps,
                timeline_bins=len(timed.timing.timeline.link_busy_ps),
                overwrite=overwrite,
                assumptions=[*(f"{a.key}: {a.sentence}" for a in timed.assumptions), *remarks],
                loss_names=loss_names,
                n_parameter_groups=n_parameter_groups,
            )
            writer.write_ops(timed.timing.ops)
            writer.write_timeline(timed.timing.timeline)
            writer.write_peak_memory(timed.peak_memory_bytes)
            return writer

        return cls(on_root(comm, create), timed, comm, timed.peak_memory_bytes.copy())

    def step(self, training: TrainingRecord, *, wall_s: float, timed: TimedStep | None = None) -> None:
        """Record one step, with what its maths gave. timed: its virtual time, None for that of the file's Program."""
        timed = timed or self.timed
        summary = timed.summary
        grown = bool((timed.peak_memory_bytes > self.peak_memory_bytes).any())
        np.maximum(timed.peak_memory_bytes, self.peak_memory_bytes, out=self.peak_memory_bytes)

        def append() -> None:
            if self.writer is not None:
                if grown:
                    self.writer.write_peak_memory(self.peak_memory_bytes)
                self.writer.append_step(
                    StepRecord(
                        time_ps=summary.time_ps,
                        compute_ps=summary.compute_ps,
                        exposed_comm_ps=summary.exposed_comm_ps,
                        flops=summary.flops,
                        links=timed.timing.links,
                        device_compute_ps=summary.device_compute_ps,
                        device_idle_ps=summary.device_idle_ps,
                        wall_s=wall_s,
                        training=training,
                    )
                )

        on_root(self.comm, append)

    def finish(self, phases_wall_s: Mapping[str, float]) -> None:
        """Note how the run was computed and mark the file complete."""
        counters = self.timed.timing.counters
        hosts = self.comm.all_gather(socket.gethostname())
        run: dict[str, int | float | str] = {
            "ranks": self.comm.size,
            "hosts": ",".join(dict.fromkeys(hosts)),
            "python": platform.python_version(),
            "meshemu_version": __version__,
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

        def close() -> None:
            if self.writer is not None:
                self.writer.finish(run)

        on_root(self.comm, close)

    def abandon(self) -> None:
        """Close the file as it is; it stays marked incomplete."""
        if self.writer is not None:
            self.writer.close()


