"""Published figures of NVIDIA DGX A100 systems, for comparison: GPUs behind a switch, nodes behind another.

What the model leaves out, so that comparisons can be judged: the launch of a collective (6.6 us by NCCL's constants)
and the bandwidth that its protocols lose; the eight network adapters of a node, which act as one link of their total
bandwidth that one message can fill; contention inside switches (both are taken to be non-blocking); caches.
"""

from meshemu.hardware.figure import Figure, Figures, grid_figure
from meshemu.hardware.level import Level

__all__ = ["ALTERNATIVES", "DEVICE_COSTS", "LEVELS", "gpus"]

_SHEET = "NVIDIA A100 80GB data sheet"
_BOOK = "scaling-book, gpus.md: NVIDIA GPUs and their networks"
_NCCL = "NCCL source, src/graph/tuning.cc, latencies of a ring step"
_MODEL = "choice of meshemu"

LEVELS = (
    Level(unit="gpu", grid="gpus", link="nvlink", switched=True),
    Level(unit="node", grid="nodes", link="network", switched=True),
)


def _protocol(name: str, nvlink_ps: int, network_ps: int) -> Figures:
    """Latencies of one step of a ring: what NCCL expects between two GPUs of a node, and of two nodes."""
    return (
        ("nvlink.latency", Figure(
            nvlink_ps, "ps", _NCCL, "published", f"GPU to GPU by protocol {name}, the handling of a step included")),
        ("network.latency", Figure(
            network_ps - nvlink_ps, "ps", _NCCL, "inferred",
            f"{network_ps / 1e6:g} us from GPU to GPU by protocol {name}, less what their own links have of it")),
    )


_LL, _LL128, _SIMPLE = (
    _protocol("LL", 600_000, 2_700_000),
    _protocol("LL128", 1_900_000, 4_000_000),
    _protocol("Simple", 3_400_000, 14_000_000),
)

_GPU: Figures = (
    ("gpu.matrix.bf16", Figure(312_000_000_000_000, "FLOP/s", _SHEET, "published", "dense, tensor cores")),
    ("gpu.matrix.fp32", Figure(
        19_500_000_000_000, "FLOP/s", _SHEET, "published", "IEEE fp32; TF32 on tensor cores would give 156 TFLOP/s")),
    ("gpu.vector.bf16", Figure(39_000_000_000_000, "FLOP/s", _SHEET, "published", "outside the tensor cores")),
    ("gpu.vector.fp32", Figure(19_500_000_000_000, "FLOP/s", _SHEET, "published")),
    ("gpu.nodes", Figure(108, "count", _SHEET, "published", "streaming multiprocessors")),
    ("gpu.matrix_unit.m", Figure(
        32, "count", _MODEL, "inferred",
        "products of 16 x 8 x 16 on the four tensor cores of a multiprocessor, two by two")),
    ("gpu.matrix_unit.n", Figure(16, "count", _MODEL, "inferred", "as m; libraries use tiles of up to 256 x 128")),
    ("gpu.matrix_unit.k", Figure(16, "count", _MODEL, "inferred", "as m")),
    ("gpu.vector_width", Figure(256, "B", _SHEET, "published", "64 fp32 lanes of a multiprocessor")),
    ("gpu.sram", Figure(
        80_000_000_000, "B", _SHEET, "published", "its HBM, which holds what a die holds in SRAM")),
    ("gpu.load_bandwidth", Figure(
        2_000_000_000_000, "B/s", _SHEET, "published",
        "of HBM; reads and writes share it, the model grants each all: up to twice too fast where both are large")),
    ("gpu.store_bandwidth", Figure(2_000_000_000_000, "B/s", _SHEET, "published", "of HBM, as for loads")),
    ("nvlink.bandwidth", Figure(
        300_000_000_000, "B/s", _BOOK, "published", "12 links of 25 GB/s each way from a GPU to its switches")),
    ("network.bandwidth", Figure(
        200_000_000_000, "B/s", "NVIDIA DGX A100 data sheet, from memory", "recollected",
        "8 adapters of 200 Gb/s: out of a node, and into it, shared by its GPUs")),
    *_LL,
    ("gpu.power", Figure(400, "W", _SHEET, "published", "thermal design power; hosts, switches and adapters left out")),
    ("nvlink.energy", Figure(0, "fJ/bit", _MODEL, "assumed", "unpublished, off until set; part of the power")),
    ("network.energy", Figure(0, "fJ/bit", _MODEL, "assumed", "unpublished, off until set")),
    ("gpus", grid_figure(8, 1, _BOOK, "published", "8 GPUs a node, in a column")),
)

_COSTS: Figures = (
    ("op_launch", Figure(
        2_000_000, "ps", _MODEL, "assumed", "start of a kernel in a stream that is full; sweep 1 to 10 us")),
    ("combine", Figure(
        0, "ps", _MODEL, "assumed", "none: the latencies of NCCL are of a whole step, its combination included")),
)
DEVICE_COSTS: dict[str, Figures] = {"gpu": _COSTS, "node": _COSTS}

ALTERNATIVES: dict[str, dict[str, Figures]] = {"protocol": {"ll": _LL, "ll128": _LL128, "simple": _SIMPLE}}


def gpus(nodes: int) -> Figures:
    """The figures of so many DGX A100 nodes side by side, all but the costs that depend on the granularity."""
    return (*_GPU, ("nodes", grid_figure(1, nodes, "the preset", "given")))
