"""What one device of the mesh can do, after everything below the device granularity has been added up."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DeviceSpec"]


@dataclass(frozen=True)
class DeviceSpec:
    """Aggregate figures of one device.

    n_nodes: live nodes in it. matrix_flops_per_s and vector_flops_per_s by number format ("bf16", "cfp8", "fp32", ...).
    sram_bytes; load_bytes_per_s and store_bytes_per_s of all its SRAM together. op_launch_ps: fixed cost of one op.
    combine_ps: fixed cost of one combination of a received piece with the device's own (on-device reduction and
    synchronisation included).
    How shapes fit a node, where that is known: matrix_unit (m, n, k), the products of which its matrix unit computes
    whole ones; vector_bytes, the width of its vector pipe; ingest_bytes_per_s, what it takes in from the other nodes
    (0: no limit). Without a matrix unit, arithmetic runs at the peak rate whatever its shape.
    """

    name: str
    n_nodes: int
    matrix_flops_per_s: Mapping[str, int]
    vector_flops_per_s: Mapping[str, int]
    sram_bytes: int
    load_bytes_per_s: int
    store_bytes_per_s: int
    op_launch_ps: int
    combine_ps: int
    matrix_unit: tuple[int, int, int] | None = None
    vector_bytes: int = 0
    ingest_bytes_per_s: int = 0
