"""A made-up run: a small training step on a plain mesh, timed without contention, for tests of record and analysis."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meshemu.hardware import DeviceSpec, System
from meshemu.mesh import Mesh, flatten, message_ps, routes
from meshemu.network.results import LinkStats, OpTimes, Timeline
from meshemu.program.builder import ProgramBuilder
from meshemu.program.ir import CollectiveUse, Program
from meshemu.record import Head, RunWriter, StepRecord, TrainingRecord

CONFIG = '[model]\nname = "synthetic"\n\n[timing]\nrouting = "xy"\n'
ASSUMPTIONS = ("op_launch: 1 us per op (assumed)", "tile edge latency: 100 ns (assumed, not published – ±50 %)")

SPEC = DeviceSpec(
    name="test device", n_nodes=1, matrix_flops_per_s={"bf16": 10**12}, vector_flops_per_s={"fp32": 10**11},
    sram_bytes=2**20, load_bytes_per_s=10**12, store_bytes_per_s=10**12, op_launch_ps=1000, combine_ps=1000,
)


@dataclass(frozen=True, eq=False)
class Case:
    """Everything that a RunWriter is given."""

    system: System
    mesh: Mesh
    program: Program
    duration_ps: np.ndarray
    ops: OpTimes
    links: LinkStats
    time_ps: int

    def writer(self, path: Path, n_steps: int = 3, *, overwrite: bool = False, **options: object) -> RunWriter:
        """A writer for this case."""
        arguments = {"config_text": CONFIG, "assumptions": ASSUMPTIONS} | options
        head = Head(
            system_json=self.system.to_json(), mesh=self.mesh, program=self.program, n_steps=n_steps, **arguments
        )
        return RunWriter.create(path, head, overwrite=overwrite)

    def step(self, number: int, **changes: object) -> StepRecord:
        """What step `number` records; figures differ from step to step so that a mix-up shows."""
        compute = self.device_compute_ps
        values = {
            "time_ps": self.time_ps + number,
            "compute_ps": int(compute.max()),
            "exposed_comm_ps": self.time_ps + number - int(compute.max()),
            "flops": int(self.program.flops.sum()),
            "links": LinkStats(**{name: getattr(self.links, name) + number * (name == "wait_ps")
                                  for name in ("bytes", "busy_ps", "wait_ps", "packets", "max_queue")}),
            "device_compute_ps": compute,
            "device_idle_ps": self.time_ps + number - compute,
            "wall_s": 0.25,
            "training": TrainingRecord(loss=2.0 / (number + 1), parameters_sha256=f"{number:064x}"),
        }
        return StepRecord(**(values | changes))

    @property
    def device_compute_ps(self) -> np.ndarray:
        """int64[n_devices]: time of COMPUTE ops."""
        compute = self.program.kind == 0
        weights = self.duration_ps[compute]
        totals = np.bincount(self.program.device[compute], weights=weights, minlength=self.mesh.n_devices)
        return totals.astype(np.int64)

    def timeline(self, bins: int = 8) -> Timeline:
        """Busy time spread evenly over the bins."""
        return Timeline(bin_ps=1024, link_busy_ps=np.tile(self.links.busy_ps // bins, (bins, 1)))

    def write(self, path: Path, n_steps: int = 3, run: dict[str, object] | None = None, **options: object) -> Path:
        """A complete file of `n_steps` steps."""
        with self.writer(path, n_steps, **options) as writer:
            for number in range(n_steps):
                writer.append_step(self.step(number))
                if number == 0:
                    writer.write_ops(self.ops)
                    writer.write_timeline(self.timeline())
                    writer.write_peak_memory(np.arange(self.mesh.n_devices, dtype=np.int64) + 1000)
            writer.finish(run or {"ranks": 1, "hosts": "here", "events": 12, "wall_s": 0.5})
        return path


def make_case(
    rows: int = 3,
    cols: int = 4,
    *,
    device: DeviceSpec | None = SPEC,
    dead: tuple[int, ...] = (),
    message_bytes: int = 64,
    bandwidth: str = "1 GB/s",
    compute_ps: int = 1_000_000,
) -> Case:
    """Each device computes and sends its result to the first, which combines all and computes again."""
    system = System.grid(rows=rows, cols=cols, bandwidth=bandwidth, latency="10 ns", device=device)
    if dead:
        system = system.override({"dead": [list(divmod(d, cols)) for d in dead]})
    mesh = flatten(system)
    devices = np.flatnonzero(mesh.alive)
    root, others = devices[0], devices[1:]
    builder = ProgramBuilder(mesh.n_devices)
    use = CollectiveUse("reduce", "tree", tuple(map(int, devices)), (rows, cols), 1, message_bytes, "gradients 0")
    chunk = {"collective": builder.collective(use), "chunk_lo": 0, "chunk_hi": 1}
    moved = {"read_bytes": 64, "write_bytes": 32}
    fp32 = {"number_format": "fp32", **moved}
    conv = {"label": "conv1 – forward", "op_class": "conv", "number_format": "bf16", **moved}
    work = builder.compute(devices, flops=1000 + devices, **conv)
    roots = np.full(len(others), root)
    message, send, recv = builder.messages(others, roots, message_bytes, label="grad", **chunk)
    builder.depend(send, work[1:])
    add = builder.reduce(roots, label="grad", op_class="reduce_sum", flops=10, message=message, **fp32, **chunk)
    builder.depend(add, recv)
    builder.depend(add, work[0])
    last = builder.compute([root], label="step", op_class="update", flops=5, **fp32)
    builder.depend(np.full(len(add), last[0]), add)
    program = builder.build()

    route = routes(mesh, program.src, program.dst)
    transit = message_ps(mesh, route, program.size_bytes)
    serialisation = message_bytes * 10**12 // int(mesh.bandwidth_bytes_per_s[0]) if mesh.n_links else 0
    start, end = np.zeros((2, program.n_ops), np.int64)
    duration = np.zeros(program.n_ops, np.int64)
    end[work] = duration[work] = compute_ps + devices * 100
    start[send] = end[work[1:]]
    end[send] = start[send] + serialisation
    end[recv] = start[send] + transit
    clock = int(end[work[0]])
    for op, ready in sorted(zip(add, np.maximum(end[recv], clock), strict=True), key=lambda pair: pair[1]):
        start[op] = max(clock, ready)
        clock = end[op] = start[op] + 1000
        duration[op] = 1000
    start[last], end[last] = clock, clock + 500
    duration[last] = 500
    carried = np.zeros(mesh.n_links, np.int64)
    for index in route.index:
        carried[route.links(int(index))] += 1
    links = LinkStats(
        bytes=carried * message_bytes, busy_ps=carried * serialisation, wait_ps=carried * 7, packets=carried,
        max_queue=np.minimum(carried, 1),
    )
    return Case(system, mesh, program, duration, OpTimes(start, end), links, int(end.max(initial=0)))
