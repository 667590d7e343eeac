"""An estimate of the energy of a step: static power by published figures, and what links take of it if assumed.

Nobody publishes the energy of operations or of bits on links of these machines, but the power of whole dies and tiles
is known. So energy = power x time of the step, as if all drew its rated power all the time: an upper estimate.
Where the user sets `<link class>.energy` (fJ/bit), the energy of all bits over these links is given besides; the rated
power holds it already, so it is a part and not an addition.
"""

from dataclasses import dataclass

import numpy as np

from meshemu.hardware import System
from meshemu.record import Run

__all__ = ["Energy", "step_energy"]


@dataclass(frozen=True)
class Energy:
    """Estimated energy of one step of the whole system, and what it rests on.

    total_j: None where the system has no figure of power; power_w, basis: that power, and in words where it comes from.
    links_j: of the bits on links by link class, for classes with an energy per bit that is not zero.
    """

    total_j: float | None
    power_w: int | None
    basis: str
    links_j: dict[str, float]


def step_energy(run: Run, step: int = -1) -> Energy:
    """The estimate for a step; devices that a plan leaves idle or that are dead count too."""
    system = System.from_json(run.system_json)
    time_s = int(run.steps.iloc[step]["time_ps"]) / 1e12
    links_j = _links_j(run, system, step)
    rated = system.power_w
    if rated is None:
        return Energy(None, None, "no figure of power", links_j)
    key, watts, count = rated
    figure = system.figure(key)
    basis = f"{key} = {figure.text()} x {count:,} ({figure.grade}), drawn all the time"
    return Energy(watts * count * time_s, watts * count, basis, links_j)


def _links_j(run: Run, system: System, step: int) -> dict[str, float]:
    mesh = run.mesh()
    carried = run.links(step)["bytes"].to_numpy()
    per_class = np.zeros(len(mesh.class_names), np.int64)
    np.add.at(per_class, mesh.link_class, carried)
    energies = [system.optional(f"{name}.energy") for name in mesh.class_names]
    return {
        name: int(size_bytes) * 8 * fj_per_bit / 1e15
        for name, size_bytes, fj_per_bit in zip(mesh.class_names, per_class, energies, strict=True)
        if fj_per_bit
    }
