"""What may go wrong under a stored Program: at its busiest link, its busiest device, a device that it does not use."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from meshemu.errors import InputError
from meshemu.program.ir import OpKind
from meshemu.study.machine import Machine, StoredStep, TimedMachine, machine_of
from meshemu.study.parameters import with_bandwidth

__all__ = ["Event", "events"]


@dataclass(frozen=True, eq=False)
class Event:
    """A change in one place. machine: after it, None where the stored Program cannot run then; why: not."""

    name: str
    about: str
    machine: Machine | None
    why: str


def events(step: StoredStep, baseline: TimedMachine, factors: Sequence[float]) -> Iterator[Event]:
    """The busiest device and the busiest link slowed down by each of `factors`, that link dead, and a device dead.

    Messages go around what is dead.
    """
    machine = step.machine
    device = _busiest_device(step, baseline)
    place = f"{machine.mesh.place(device)}, the busiest: all its ops"
    if machine.device is not None:
        for factor in factors:
            yield Event(f"straggler x {factor:g}", place, replace(machine, slowness={device: 1 / factor}), "")
    joins = machine.mesh.link_src != machine.mesh.link_dst
    busy = np.where(joins, baseline.timing.links.busy_ps, 0)
    if busy.any():
        link = int(busy.argmax())
        yield from _at_link(step, link, factors)
    yield _dead_device(step, baseline)


def _at_link(step: StoredStep, link: int, factors: Sequence[float]) -> Iterator[Event]:
    machine, mesh, system = step.machine, step.machine.mesh, step.machine.system
    src, dst = mesh.link_src[link], mesh.link_dst[link]
    place = f"{mesh.link_name(link)}, the busiest, both ways"
    both = ((mesh.link_src == src) & (mesh.link_dst == dst)) | ((mesh.link_src == dst) & (mesh.link_dst == src))
    for factor in factors:
        yield Event(f"slow_link x {factor:g}", place, with_bandwidth(machine, both, factor), "")
    if mesh.switches is not None:
        yield Event("dead_link", place, None, "behind switches a device without its link is cut off")
        return
    ends = [[int(mesh.row[device]), int(mesh.col[device])] for device in (src, dst)]
    dead = [*(list(map(list, pair)) for pair in system.dead_links), ends]
    yield Event("dead_link", place, *_after(step, {"dead_links": dead}))


def _busiest_device(step: StoredStep, baseline: TimedMachine) -> int:
    """The device that computed longest; the first of several."""
    program, ops = step.program, baseline.timing.ops
    computes = program.kind == OpKind.COMPUTE
    busy_ps = np.zeros(program.n_devices, np.int64)
    np.add.at(busy_ps, program.device[computes], (ops.end_ps - ops.start_ps)[computes])
    return int(busy_ps.argmax())


def _dead_device(step: StoredStep, baseline: TimedMachine) -> Event:
    mesh, system = step.machine.mesh, step.machine.system
    used = np.zeros(mesh.n_devices, np.bool_)
    used[step.program.device] = True
    spare = np.flatnonzero(mesh.alive & ~used)
    name = "dead_device"
    if not len(spare):
        why = "the Program uses every device: it has to be planned anew (run with --set system.dead)"
        return Event(name, "a device that is not used", None, why)
    joins = (mesh.link_src != mesh.link_dst) & (mesh.link_src < mesh.n_devices)
    carried = np.bincount(mesh.link_src[joins], baseline.timing.links.bytes[joins], mesh.n_devices)
    device = int(spare[carried[spare].argmax()])
    dead = [*map(list, system.dead_devices()), [int(mesh.row[device]), int(mesh.col[device])]]
    return Event(name, f"{mesh.place(device)}, which only passes messages on", *_after(step, {"dead": dead}))


def _after(step: StoredStep, changes: dict[str, object]) -> tuple[Machine | None, str]:
    try:
        return machine_of(step.machine.system.override(changes)), ""
    except InputError as error:
        return None, str(error)
