"""The intermediate representation that everything on the machine becomes."""

from meshemu.program.arrays import arrays, equal, from_arrays, tables
from meshemu.program.builder import ProgramBuilder
from meshemu.program.interfaces import INTERFACE_CLASSES, from_host, ingest_ops, to_device, to_memory
from meshemu.program.ir import CollectiveUse, OpKind, Program
from meshemu.program.loads import link_bytes, lower_bound_ps
from meshemu.program.order import describe_op
from meshemu.program.text import from_text, to_text
from meshemu.program.trees import MessageTrees, check_trees, message_trees, routed_trees
from meshemu.program.verify import verify

__all__ = [
    "INTERFACE_CLASSES",
    "CollectiveUse",
    "MessageTrees",
    "OpKind",
    "Program",
    "ProgramBuilder",
    "arrays",
    "check_trees",
    "describe_op",
    "equal",
    "from_arrays",
    "from_host",
    "from_text",
    "ingest_ops",
    "link_bytes",
    "lower_bound_ps",
    "message_trees",
    "routed_trees",
    "tables",
    "to_device",
    "to_memory",
    "to_text",
    "verify",
]
