"""In which number format every value of a step is stored: what its bytes are counted in, in memory and on links.

A value that is only read to be rounded is stored rounded: an operator rounds what it writes. What merely moves or
selects numbers keeps their format; sums have that of the tensor's dtype until they are rounded.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from meshemu.cost.number_formats import bits_of
from meshemu.hardware.number_formats import FORMATS
from meshemu.workload.dtypes import number_format
from meshemu.workload.formats.places import SELECTING
from meshemu.workload.formats.storing import ROUNDED
from meshemu.workload.spmd import Collective, Compute, Fetch, Instruction, Spmd, Value, inputs_of

__all__ = ["Storage", "storage_of"]


@dataclass(frozen=True)
class Storage:
    """names: value id -> number format, for values that are not stored in that of their dtype."""

    names: Mapping[int, str]

    def itemsize(self, value: Value) -> int:
        """Bytes of an element."""
        return FORMATS[self.names[value.id]].size_bytes if value.id in self.names else value.dtype.itemsize

    def number_format(self, value: Value) -> str:
        """Name of the number format."""
        return self.names.get(value.id) or number_format(value.dtype)

    def mixed(self, collective: Collective) -> bool:
        """Whether the sources have elements of several sizes: then only bytes can be counted."""
        return len({self.itemsize(value) for value in collective.sources}) > 1

    def carried(self, collective: Collective) -> tuple[int, str]:
        """(bytes of an element, number format) of what a collective sends."""
        if collective.carried is not None:
            sent = collective.carried.role.number_format
            return sent.size_bytes, sent.name
        return self.itemsize(collective.sources[0]), self.number_format(collective.sources[0])

    def computed_in(self, values: tuple[Value, ...], default: str) -> str:
        """The format whose rate an operator runs at: the widest of tensors of two or more dims, if any is rounded."""
        tensors = [v for v in values if len(v.shape) > 1 and v.dtype.is_floating_point]
        if not any(v.id in self.names for v in tensors):
            return default
        return max(map(self.number_format, tensors), key=bits_of)


def storage_of(spmd: Spmd) -> Storage:
    """The formats of all values of a step."""
    names: dict[int, str] = {}
    uses = Counter(value.id for instruction in spmd.instructions for value in inputs_of(instruction))
    lasting = {value.id for value in (*spmd.inputs.values(), *spmd.constants.values(), *spmd.results)}
    for instruction in spmd.instructions:
        _note(instruction, names)
        if isinstance(instruction, Compute) and instruction.op_class == ROUNDED:
            (source,) = instruction.inputs
            if uses[source.id] == 1 and source.id not in lasting:
                names[source.id] = instruction.attributes["number_format"]
    return Storage(names)


def _note(instruction: Instruction, names: dict[int, str]) -> None:
    """Add the formats of what an instruction makes."""
    match instruction:
        case Compute() if "number_format" in instruction.attributes:
            names.update((v.id, instruction.attributes["number_format"]) for v in instruction.outputs)
        case Compute() if instruction.op_class in SELECTING:
            found = {names.get(v.id) for v in instruction.inputs if v.dtype.is_floating_point}
            name = next(iter(found), None)
            if len(found) == 1 and name is not None:
                names.update((v.id, name) for v in instruction.outputs if v.dtype.is_floating_point)
        case Fetch(source=source, output=output) if source.id in names:
            names[output.id] = names[source.id]
        case Collective(kind="all_gather"):
            pairs = zip(instruction.sources, instruction.outputs, strict=True)
            names.update((output.id, names[source.id]) for source, output in pairs if source.id in names)
