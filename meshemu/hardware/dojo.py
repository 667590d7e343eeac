"""Published figures of Tesla Dojo, one by one, with source, grade and the choice made where sources conflict.

Bandwidths are per direction. An edge bandwidth is that of a unit's whole edge, which the device links across it share.
Figures that nobody published are graded "assumed" and say why the value was taken; sweep them.
"""

from meshemu.hardware.figure import Figure, Figures, grid_figure
from meshemu.hardware.level import Level

__all__ = ["ALTERNATIVES", "DEVICE_COSTS", "DIE", "DIES", "NODES", "SINGLE_DIE", "TILE", "TILES", "tiles"]

_CC22 = "Chips and Cheese, Hot Chips 34: Tesla's Dojo Microarchitecture, 2022"
_STH = "ServeTheHome, Tesla Dojo Custom AI Supercomputer at HC34, 2022"
_SA = "SemiAnalysis, Tesla Dojo: Unique Packaging and Chip Design, 2021"
_EET = "EE Times Europe, November 2021, pp. 38-40"
_HC34 = "Hot Chips 34 slides, Dojo: Super-Compute System Scaling for ML Training"
_TTPOE = "an attendee's transcription of the Hot Chips 2024 TTPoE talk"
_NOTES = "study notes on the Hot Chips 34 microarchitecture slides"
_MODEL = "choice of meshemu"

NODES = Level(
    unit="node", grid="nodes", link="noc",
    # Positions are unpublished. Chosen: point-symmetric, no two in one row or column, none at an edge of the die or
    # beside its middle, so that edges and bisections keep all their links.
    dead=((2, 4), (4, 12), (6, 16), (11, 3), (13, 7), (15, 15)), dead_grid=(18, 20),
)
DIES = Level(unit="die", grid="dies", link="die_edge")
TILES = Level(unit="tile", grid="tiles", link="tile_edge")

_NOC_WIDE = Figure(
    512_000_000_000, "B/s", _SA, "published",
    "512 GB/s in each direction = 256 B/clk; 20 links make the published 10 TB/s bisection of a die. "
    "Conflicts with 64 B/clk per side in notes on the Hot Chips talk: figures noc_width = narrow",
)
_NOC_NARROW = Figure(
    128_000_000_000, "B/s", _NOTES, "second-hand",
    "64 B per direction and clock, one packet in and one out on each of four sides; "
    "would make the bisection of a die 2.56 TB/s. Conflicts with 512 GB/s: figures noc_width = wide",
)

_NO_ENERGY = Figure(
    0, "fJ/bit", _MODEL, "assumed",
    "unpublished, and off until set: an energy per bit would be taken out of the static power. Links between dies in a "
    "package are quoted at 250 to 3000 fJ/bit",
)

DIE: Figures = (
    ("node.clock", Figure(2_000_000_000, "Hz", _CC22, "published")),
    ("node.matrix.bf16", Figure(512, "FLOP/clk", _CC22, "published", "one 8x8x4 product a clock")),
    ("node.matrix.cfp8", Figure(512, "FLOP/clk", _EET, "published", "same rate as bf16")),
    ("node.matrix.fp32", Figure(32, "FLOP/clk", _SA, "published", "64 GFLOP/s a node, whichever pipe computes it")),
    ("node.vector.bf16", Figure(64, "FLOP/clk", _CC22, "inferred", "512-bit SIMD pipe: 32 lanes, multiply-add")),
    ("node.vector.cfp8", Figure(64, "FLOP/clk", _CC22, "assumed", "a storage format, computed in the bf16 lanes")),
    ("node.vector.fp32", Figure(32, "FLOP/clk", _CC22, "inferred", "512-bit SIMD pipe: 16 lanes, multiply-add")),
    ("node.matrix_unit.m", Figure(8, "count", _CC22, "published", "8x8x4: rows of the result")),
    ("node.matrix_unit.n", Figure(8, "count", _CC22, "published", "8x8x4: columns of the result")),
    ("node.matrix_unit.k", Figure(4, "count", _CC22, "published", "8x8x4: terms of each sum in a clock")),
    ("node.vector_width", Figure(64, "B", _CC22, "published", "512-bit SIMD pipe")),
    ("node.sram", Figure(1_250_000, "B", _CC22, "published", "354 of them are 442.5 MB; 440 MB is quoted, rounded")),
    ("node.load_bandwidth", Figure(
        400_000_000_000, "B/s", _NOTES, "second-hand",
        "as quoted; two 64 B ports at 2 GHz would give 256 GB/s: figures sram_bandwidth = ports")),
    ("node.store_bandwidth", Figure(
        270_000_000_000, "B/s", _NOTES, "second-hand",
        "as quoted; one 64 B port at 2 GHz would give 128 GB/s: figures sram_bandwidth = ports")),
    ("node.injection_bandwidth", Figure(
        128_000_000_000, "B/s", _NOTES, "second-hand",
        "one 64 B packet read and one written a clock, each way; applies where nodes are the devices")),
    ("node.ingest_bandwidth", Figure(
        128_000_000_000, "B/s", _NOTES, "second-hand",
        "one 64 B packet written to SRAM a clock: what a node takes in of the operands that nodes share")),
    ("nodes", grid_figure(18, 20, "20 links x 512 GB/s make the published 10 TB/s", "inferred",
                          "only 354 usable nodes are published")),
    ("die.nodes", Figure(354, "count", _CC22, "published", "usable nodes; where the 6 spares are is unpublished")),
    ("noc.bandwidth", _NOC_WIDE),
    ("noc.latency", Figure(500, "ps", _SA, "published", "one clock per hop")),
    ("die_edge.bandwidth", Figure(
        2_000_000_000_000, "B/s", _NOTES, "second-hand",
        "576 lanes x 112 Gb/s = 8.06 TB/s over four edges; the 4 TB/s of 2021 counts both directions")),
    ("die_edge.latency", Figure(
        100_000, "ps", _CC22, "published", "die to die; with dies as devices the hops inside a die (about 10 ns) are "
        "taken to be part of it")),
    ("die.power", Figure(400, "W", _SA, "published", "thermal design power")),
    ("noc.energy", _NO_ENERGY),
    ("die_edge.energy", _NO_ENERGY),
)

TILE: Figures = (
    ("dies", grid_figure(5, 5, _HC34, "published")),
    ("tile_edge.bandwidth", Figure(
        4_500_000_000_000, "B/s", _CC22, "published",
        "900 GB/s out of each of 5 die edges; the 9 TB/s per edge of the slides counts both directions")),
    ("tile_edge.latency", Figure(
        200_000, "ps", _MODEL, "assumed", "unpublished; not below the 100 ns between dies. Sweep 100 to 500 ns")),
    ("tile.power", Figure(
        15_000, "W", _SA, "published", "52 V at 288 A; 25 dies make 10 kW of it, the rest goes to voltage regulators")),
    ("tile_edge.energy", _NO_ENERGY),
    ("interface.per_edge", Figure(
        5, "count", _STH, "published", "interface processors at most, along an outer edge of a tile: one to a die")),
    ("interface.pcie_bandwidth", Figure(
        32_000_000_000, "B/s", _HC34, "published", "from a host into the memory of one interface processor")),
    ("interface.host_bandwidth", Figure(
        32_000_000_000, "B/s", _MODEL, "assumed",
        "unpublished; what hosts make ready for one interface processor. Taken not to be less than its PCIe carries")),
    ("interface.memory_bandwidth", Figure(800_000_000_000, "B/s", _HC34, "published", "HBM")),
    ("interface.memory", Figure(32_000_000_000, "B", _HC34, "published", "HBM; 640 GB on the 20 of a tray")),
    ("interface.link_bandwidth", Figure(
        900_000_000_000, "B/s", _HC34, "published", "to the edge of the tile; direction not stated")),
    ("interface.link_latency", Figure(
        200_000, "ps", _MODEL, "assumed", "unpublished; taken to be that between tiles. Sweep 100 to 500 ns")),
    ("interface.ethernet_bandwidth", Figure(
        50_000_000_000, "B/s", _HC34, "published", "TTPoE, the Z-plane; each way. Used where z_plane joins them")),
    ("interface.ethernet_latency", Figure(
        1_300_000, "ps", _TTPOE, "second-hand",
        "one way; taken to be from one interface processor to another over one switch")),
)

SINGLE_DIE: Figures = (("dies", grid_figure(1, 1, "the preset", "given")),)

_LAUNCH_NOTE = (
    "unpublished; code is resident and no host launches it: a barrier over the die (38 hops up and down, 38 ns) and "
    "some 300 clocks of set-up"
)
_COMBINE_NOTE = (
    "a calibration, not a fact: covers reduction inside the device, synchronisation and scalar code. With 0.7 us the "
    "25-die batch-norm all-reduce, 8 die hops and 6 combinations in a row, takes the 5 us reported from AI Day 2022, a "
    "figure that is itself from recollection; so that figure cannot validate the model"
)
_NODE_COMBINE_NOTE = "unpublished; about 16 clocks: receive semaphore, load, add, store of one 64 B packet"
_NODE_LAUNCH_NOTE = "unpublished; about 40 clocks: loop and list set-up of one op on one node"

_ROUTER: Figures = (
    ("mesh.multicast", Figure(
        0, "flag", _MODEL, "assumed",
        "a broadcast instruction is published, and hardware broadcast was mentioned at AI Day 2022, but not how "
        "routers fork a message: off until set")),
    ("mesh.reduction", Figure(0, "flag", _MODEL, "assumed", "no source says that routers add: off until set")),
)
_LARGE: Figures = (
    ("op_launch", Figure(200_000, "ps", _MODEL, "assumed", _LAUNCH_NOTE)),
    ("combine", Figure(700_000, "ps", _MODEL, "assumed", _COMBINE_NOTE)),
    *_ROUTER,
    ("mesh.combine", Figure(
        10_000, "ps", _MODEL, "assumed",
        "unpublished; about what it takes to cross the nodes of a die, over which a contribution is spread")),
)
DEVICE_COSTS: dict[str, Figures] = {
    "node": (
        ("op_launch", Figure(20_000, "ps", _MODEL, "assumed", _NODE_LAUNCH_NOTE)),
        ("combine", Figure(8_000, "ps", _MODEL, "assumed", _NODE_COMBINE_NOTE)),
        *_ROUTER,
        ("mesh.combine", Figure(
            500, "ps", _MODEL, "assumed", "unpublished; one clock from the last head in to the head of the sum out")),
    ),
    "die": _LARGE,
    "tile": _LARGE,
}

ALTERNATIVES: dict[str, dict[str, Figures]] = {
    "noc_width": {
        "wide": (("noc.bandwidth", _NOC_WIDE),),
        "narrow": (("noc.bandwidth", _NOC_NARROW),),
    },
    "sram_bandwidth": {
        "quoted": tuple(item for item in DIE if item[0] in ("node.load_bandwidth", "node.store_bandwidth")),
        "ports": (
            ("node.load_bandwidth", Figure(
                256_000_000_000, "B/s", _CC22, "inferred", "two 64 B load ports at 2 GHz; 400 GB/s is quoted")),
            ("node.store_bandwidth", Figure(
                128_000_000_000, "B/s", _CC22, "inferred", "one 64 B store port at 2 GHz; 270 GB/s is quoted")),
        ),
    },
}


def tiles(rows: int, cols: int, source: str, grade: str, note: str = "") -> Figures:
    """The figures of a machine of rows x cols training tiles, all but the costs that depend on the granularity."""
    return (*DIE, *TILE, ("tiles", grid_figure(rows, cols, source, grade, note)))


