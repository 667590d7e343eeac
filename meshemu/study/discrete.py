"""A change of the machine under a stored Program that is made or not, unlike a parameter, which is scaled."""

from collections.abc import Mapping
from dataclasses import dataclass

from meshemu.errors import InputError
from meshemu.study.machine import Machine, StoredStep, machine_of

__all__ = ["Discrete", "changed_system"]


@dataclass(frozen=True, eq=False)
class Discrete:
    """about: in words. machine: after the change, None where there is no such machine, or the Program cannot run on it;
    why: not.
    """

    name: str
    about: str
    machine: Machine | None
    why: str = ""


def changed_system(step: StoredStep, name: str, about: str, changes: Mapping[str, object]) -> Discrete:
    """The machine of a step with `changes` of its system, as `System.override` takes them."""
    try:
        return Discrete(name, about, machine_of(step.machine.system.override(changes)))
    except InputError as error:
        return Discrete(name, about, None, str(error))
