"""The intermediate representation that everything on the machine becomes."""

from meshemu.program.arrays import arrays, equal, from_arrays, tables
from meshemu.program.builder import ProgramBuilder
from meshemu.program.ir import CollectiveUse, OpKind, Program
from meshemu.program.loads import link_bytes, lower_bound_ps
from meshemu.program.order import describe_op
from meshemu.program.text import from_text, to_text
from meshemu.program.verify import verify

__all__ = [
    "CollectiveUse",
    "OpKind",
    "Program",
    "ProgramBuilder",
    "arrays",
    "describe_op",
    "equal",
    "from_arrays",
    "from_text",
    "link_bytes",
    "lower_bound_ps",
    "tables",
    "to_text",
    "verify",
]
