"""Published figures of the Cerebras WSE-2, for comparison: one fabric of small cores over a whole wafer.

The fabric does not notice the borders of blocks and dies, so all levels share its link class: where a block of 22 x 22
cores is a device, the 22 links over its edge are one link of 22 times the bandwidth, and passing it takes 22 hops.
"""

from meshemu.hardware.figure import Figure, Figures, grid_figure
from meshemu.hardware.level import Level

__all__ = ["ALTERNATIVES", "DEVICE_COSTS", "DIE", "LEVELS", "ONE_DIE", "WAFER"]

_HC34 = "Hot Chips 34 slides, Cerebras Architecture Deep Dive"
_SC24 = "Santos et al., SC24, as quoted in a collection of measured latencies"
_REDUCE = "Luczynski et al., Near-Optimal Wafer-Scale Reduce, 2024 (arXiv 2404.15888)"
_MODEL = "choice of meshemu"

LEVELS = (
    Level(unit="core", grid="cores", link="fabric"),
    Level(unit="block", grid="blocks", link="fabric"),
    Level(unit="die", grid="dies", link="fabric"),
)


def _clocked(clock_hz: int, source: str, grade: str, note: str) -> Figures:
    """What follows from the clock: a wavelet of 32 bits per cycle and direction, one cycle per hop, two to a core."""
    cycle_ps = round(10**12 / clock_hz)
    wavelet = f"one wavelet of 4 B a cycle at {clock_hz / 1e9:g} GHz"
    return (
        ("core.clock", Figure(clock_hz, "Hz", source, grade, note)),
        ("fabric.bandwidth", Figure(4 * clock_hz, "B/s", _HC34, "inferred", f"{wavelet}, over one edge of a core")),
        ("fabric.latency", Figure(cycle_ps, "ps", _HC34, "second-hand", "one cycle per hop, rounded to whole ps")),
        ("core.injection_bandwidth", Figure(4 * clock_hz, "B/s", _REDUCE, "inferred", f"{wavelet} each way")),
        ("core.injection_latency", Figure(
            2 * cycle_ps, "ps", _REDUCE, "published", "the ramp between core and router: 2 cycles each way")),
        ("core.ingest_bandwidth", Figure(
            4 * clock_hz, "B/s", _REDUCE, "inferred", f"{wavelet}: what a core takes in of operands that cores share")),
        ("core.load_bandwidth", Figure(16 * clock_hz, "B/s", _HC34, "inferred", "two reads of 64 bits a clock")),
        ("core.store_bandwidth", Figure(8 * clock_hz, "B/s", _HC34, "inferred", "one write of 64 bits a clock")),
    )


_FAST = _clocked(1_100_000_000, _HC34, "second-hand", "850 MHz in a measurement: figures clock = measured")
_MEASURED = _clocked(850_000_000, _SC24, "second-hand", "1.1 GHz on the slides: figures clock = quoted")

DIE: Figures = (
    *_FAST,
    ("core.matrix.bf16", Figure(
        8, "FLOP/clk", _HC34, "inferred",
        "two operands of 64 bits read and one written a clock: four multiply-adds of 16 bits, on the vector unit")),
    ("core.matrix.fp32", Figure(4, "FLOP/clk", _HC34, "inferred", "as bf16, two lanes")),
    ("core.vector.bf16", Figure(8, "FLOP/clk", _HC34, "inferred", "as the matrix rate: there is one unit")),
    ("core.vector.fp32", Figure(4, "FLOP/clk", _HC34, "inferred", "as bf16, two lanes")),
    ("core.matrix_unit.m", Figure(1, "count", _HC34, "inferred", "products are multiply-adds of a vector")),
    ("core.matrix_unit.n", Figure(4, "count", _HC34, "inferred", "four lanes of 16 bits")),
    ("core.matrix_unit.k", Figure(1, "count", _HC34, "inferred", "as m")),
    ("core.vector_width", Figure(8, "B", _HC34, "inferred", "operands of 64 bits")),
    ("core.sram", Figure(48_000, "B", _HC34, "published", "48 kB a core")),
    ("cores", grid_figure(22, 22, _MODEL, "given", "the coarser granularity: 22 divides both sides of a die")),
    ("blocks", grid_figure(
        7, 3, _HC34, "second-hand", "a die has 66 x 154 cores; all are taken to work, which makes 853,776 on a wafer "
        "where 850,000 are published")),
    ("die.power", Figure(
        274, "W", "reports on the CS-2 system", "inferred", "23 kW of a whole system, the upper figure of 15 to 23 kW, "
        "over 84 dies")),
    ("fabric.energy", Figure(0, "fJ/bit", _MODEL, "assumed", "unpublished, off until set; part of the power")),
)

ONE_DIE: Figures = (("dies", grid_figure(1, 1, "the preset", "given")),)
WAFER: Figures = (("dies", grid_figure(7, 12, _HC34, "second-hand", "12 x 7 dies, seamless")),)

_LAUNCH = ("op_launch", Figure(
    200_000, "ps", _MODEL, "assumed", "unpublished; that of a Dojo die, so that the two compare by their hardware"))
DEVICE_COSTS: dict[str, Figures] = {
    "core": (
        ("op_launch", Figure(
            20_000, "ps", _MODEL, "assumed", "unpublished; that of a Dojo node, so that the two compare")),
        ("combine", Figure(
            0, "ps", _MODEL, "assumed", "arriving wavelets trigger their own addition: nothing beside its arithmetic")),
    ),
    "block": (_LAUNCH, ("combine", Figure(
        100_000, "ps", _MODEL, "assumed", "unpublished; reducing inside 22 x 22 cores is 42 hops up and down, 80 ns, "
        "and its additions"))),
    "die": (_LAUNCH, ("combine", Figure(
        420_000, "ps", _MODEL, "assumed", "unpublished; reducing inside 154 x 66 cores is 218 hops up and down, "
        "400 ns, and its additions"))),
}

ALTERNATIVES: dict[str, dict[str, Figures]] = {"clock": {"quoted": _FAST, "measured": _MEASURED}}
