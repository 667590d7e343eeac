"""The results file of a run: opened by rank 0 before the first step, one record per step, closed with how it ran."""

import os
import platform
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meshemu.comm import Comm
from meshemu.emulator.root import on_root
from meshemu.emulator.timed_step import TimedStep
from meshemu.record.writer import RunWriter, StepRecord
from meshemu.version import __version__

__all__ = ["REMARKS", "Recorder"]

REMARKS = ("plan:", "gathered:")
"""How sentences about the plan begin, in the list of assumptions."""


@dataclass(frozen=True, eq=False)
class Recorder:
    """Rank 0 holds the writer; the other ranks only take part in sharing its errors."""

    writer: RunWriter | None
    timed: TimedStep
    comm: Comm

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
    ) -> "Recorder":
        """Create the file. remarks: sentences to keep beside the assumptions that the figures rest on.

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
            )
            writer.write_ops(timed.timing.ops)
            writer.write_timeline(timed.timing.timeline)
            writer.write_peak_memory(timed.peak_memory_bytes)
            return writer

        return cls(on_root(comm, create), timed, comm)

    def step(self, *, loss: float, accuracy: float, parameters_sha256: str, wall_s: float) -> None:
        """Record one step; every step has the virtual time of the Program."""
        summary = self.timed.summary

        def append() -> None:
            if self.writer is not None:
                self.writer.append_step(
                    StepRecord(
                        time_ps=summary.time_ps,
                        compute_ps=summary.compute_ps,
                        exposed_comm_ps=summary.exposed_comm_ps,
                        flops=summary.flops,
                        links=self.timed.timing.links,
                        device_compute_ps=summary.device_compute_ps,
                        device_idle_ps=summary.device_idle_ps,
                        wall_s=wall_s,
                        loss=loss,
                        accuracy=accuracy,
                        parameters_sha256=parameters_sha256,
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


