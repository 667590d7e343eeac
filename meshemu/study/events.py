"""What may go wrong under a stored Program: at its busiest link, its busiest device, a device that it does not use."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from meshemu.program.ir import OpKind
from meshemu.study.discrete import Discrete, changed_system
from meshemu.study.machine import StoredStep, TimedMachine
from meshemu.study.parameters import with_bandwidth

__all__ = ["events"]

_NO_DEAD_PLANE = "links of the Z-plane are there or not (z_plane = false); none of them dies by itself"


def events(step: StoredStep, baseline: TimedMachine, factors: Sequence[float]) -> Iterator[Discrete]:
    """The busiest device and the busiest link slowed down by each of `factors`, that link dead, and a device dead.

    Messages go around what is dead.
    """
    machine = step.machine
    device = _busiest_device(step, baseline)
    place = f"{machine.mesh.place(device)}, the busiest: all its ops"
    if machine.device is not None:
        for factor in factors:
            yield Discrete(f"straggler x {factor:g}", place, replace(machine, slowness={device: 1 / factor}))
    joins = machine.mesh.link_src != machine.mesh.link_dst
    busy = np.where(joins, baseline.timing.links.busy_ps, 0)
    if busy.any():
        link = int(busy.argmax())
        yield from _at_link(step, link, factors)
    yield _dead_device(step, baseline)


def _at_link(step: StoredStep, link: int, factors: Sequence[float]) -> Iterator[Discrete]:
    machine, mesh, system = step.machine, step.machine.mesh, step.machine.system
    src, dst = mesh.link_src[link], mesh.link_dst[link]
    place = f"{mesh.link_name(link)}, the busiest, both ways"
    both = ((mesh.link_src == src) & (mesh.link_dst == dst)) | ((mesh.link_src == dst) & (mesh.link_dst == src))
    for factor in factors:
        yield Discrete(f"slow_link x {factor:g}", place, with_bandwidth(machine, both, factor))
    if mesh.switches is not None or not mesh.on_grid[link]:
        why = "behind switches a device without its link is cut off" if mesh.switches is not None else _NO_DEAD_PLANE
        yield Discrete("dead_link", place, None, why)
        return
    ends = [[int(mesh.row[device]), int(mesh.col[device])] for device in (src, dst)]
    dead = [*(list(map(list, pair)) for pair in system.dead_links), ends]
    yield changed_system(step, "dead_link", place, {"dead_links": dead})


def _busiest_device(step: StoredStep, baseline: TimedMachine) -> int:
    """The device that computed longest; the first of several."""
    program, ops = step.program, baseline.timing.ops
    computes = program.kind == OpKind.COMPUTE
    busy_ps = np.zeros(program.n_devices, np.int64)
    np.add.at(busy_ps, program.device[computes], (ops.end_ps - ops.start_ps)[computes])
    return int(busy_ps.argmax())


def _dead_device(step: StoredStep, baseline: TimedMachine) -> Discrete:
    mesh, system = step.machine.mesh, step.machine.system
    used = np.zeros(mesh.n_devices, np.bool_)
    used[step.program.device] = True
    spare = np.flatnonzero(mesh.alive & ~used)
    name = "dead_device"
    if not len(spare):
        why = "the Program uses every device: it has to be planned anew (run with --set system.dead)"
        return Discrete(name, "a device that is not used", None, why)
    joins = (mesh.link_src != mesh.link_dst) & (mesh.link_src < mesh.n_devices)
    carried = np.bincount(mesh.link_src[joins], baseline.timing.links.bytes[joins], mesh.n_devices)
    device = int(spare[carried[spare].argmax()])
    dead = [*map(list, system.dead_devices()), [int(mesh.row[device]), int(mesh.col[device])]]
    return changed_system(step, name, f"{mesh.place(device)}, which only passes messages on", {"dead": dead})
