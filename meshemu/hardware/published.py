"""Published totals of whole machines: not inputs of the model but checks on it, and facts that the model leaves out."""

from dataclasses import dataclass

from meshemu.hardware.figure import Figure

__all__ = ["EXACT", "INFERRED", "NOT_MODELLED", "RESULTS", "TOTALS", "Total", "wafer_chain_reduce"]

_CC22 = "Chips and Cheese, Hot Chips 34: Tesla's Dojo Microarchitecture, 2022"
_SA = "SemiAnalysis, Tesla Dojo: Unique Packaging and Chip Design, 2021"
_EET = "EE Times Europe, November 2021, pp. 38-40"
_HC34 = "Hot Chips 34 slides, Dojo: Super-Compute System Scaling for ML Training"
_NOTES = "study notes on the Hot Chips 34 microarchitecture slides"
_STH = "ServeTheHome, Tesla Dojo Custom AI Supercomputer at HC34, 2022"
_JH = "J. Hamilton, Tesla Project Dojo Overview, 2021"
_CS34 = "Hot Chips 34 slides, Cerebras Architecture Deep Dive"
_CS2 = "reports on the launch of the Cerebras WSE-2, 2021"
_A100 = "NVIDIA A100 80GB data sheet"
_DAY = "Tesla AI Day 2022, in no source that was read"
_TTPOE = "an attendee's transcription of the Hot Chips 2024 TTPoE talk"
_LATENCIES = "a collection of measured latencies with citations"
_T = 10**12


EXACT = "exact by construction"
INFERRED = "inferred"


@dataclass(frozen=True)
class Total:
    """A published figure of a whole preset, and how the model arrives at the like.

    quantity: what `study.quantities` computes: nodes, dies, cores, matrix_<format>, sram, bisection, edge, power ...
    tolerance: relative difference that rounding by the source explains. kind: EXACT where the model's value is a sum or
    product of published inputs, which must agree; INFERRED where inputs were chosen with this figure in view.
    """

    preset: str
    quantity: str
    figure: Figure
    tolerance: float
    kind: str = EXACT


TOTALS = (
    Total("dojo-die", "nodes", Figure(354, "count", _CC22, "published"), 0),
    Total("dojo-die", "matrix_bf16", Figure(
        362 * _T, "FLOP/s", _CC22, "published",
        "376 TFLOP/s is in circulation too; neither 354 nor 360 nodes at 2 GHz give it"), 0.002),
    Total("dojo-die", "matrix_fp32", Figure(22_600_000_000_000, "FLOP/s", _SA, "published"), 0.003),
    Total("dojo-die", "sram", Figure(440_000_000, "B", _HC34, "published"), 0.006),
    Total("dojo-die", "bisection", Figure(
        10 * _T, "B/s", _EET, "published", "per direction; the grid of 18 x 20 was inferred from it"), 0.03, INFERRED),
    Total("dojo-die", "link noc", Figure(512 * 10**9, "B/s", _SA, "published", "in each direction"), 0),
    Total("dojo-die", "link injection", Figure(128 * 10**9, "B/s", _NOTES, "second-hand"), 0),
    Total("dojo-die", "hop noc", Figure(500, "ps", _SA, "published", "one clock"), 0),
    Total("dojo-die", "power", Figure(400, "W", _SA, "published"), 0),
    Total("dojo-tile", "dies", Figure(25, "count", _HC34, "published"), 0),
    Total("dojo-tile", "matrix_bf16", Figure(9_000 * _T, "FLOP/s", _HC34, "published"), 0.007),
    Total("dojo-tile", "matrix_fp32", Figure(565 * _T, "FLOP/s", _EET, "published"), 0.003),
    Total("dojo-tile", "sram", Figure(11_000_000_000, "B", _HC34, "published"), 0.006),
    Total("dojo-tile", "bisection", Figure(10 * _T, "B/s", _HC34, "published"), 0),
    Total("dojo-tile", "link die_edge", Figure(2 * _T, "B/s", _NOTES, "second-hand", "4 TB/s both ways"), 0),
    Total("dojo-tile", "hop die_edge", Figure(100_000, "ps", _CC22, "published"), 0),
    Total("dojo-tile", "power", Figure(15_000, "W", _SA, "published"), 0),
    Total("dojo-tray", "edge", Figure(4_500_000_000_000, "B/s", _CC22, "published", "9 TB/s both ways"), 0),
    Total("dojo-tray", "link tile_edge", Figure(900 * 10**9, "B/s", _CC22, "published", "of a die"), 0),
    Total("dojo-tray", "off tile", Figure(
        36 * _T, "B/s", _HC34, "published", "all four edges of a tile, both ways"), 0),
    Total("dojo-tray", "matrix_bf16", Figure(54_000 * _T, "FLOP/s", _NOTES, "second-hand"), 0.008),
    Total("dojo-tray", "bisection", Figure(13_400_000_000_000, "B/s", _NOTES, "second-hand"), 0.01),
    Total("dojo-cabinet", "nodes", Figure(106_200, "count", _SA, "published"), 0),
    Total("dojo-exapod", "dies", Figure(3_000, "count", _EET, "published"), 0),
    Total("dojo-exapod", "nodes", Figure(1_062_000, "count", _EET, "published"), 0),
    Total("dojo-exapod", "matrix_bf16", Figure(1_100_000 * _T, "FLOP/s", _EET, "published"), 0.012),
    Total("dojo-exapod", "matrix_fp32", Figure(67_800 * _T, "FLOP/s", _EET, "published"), 0.003),
    Total("dojo-exapod", "sram", Figure(1_300_000_000_000, "B", _EET, "published"), 0.03),
    Total("dojo-exapod", "power", Figure(1_800_000, "W", _JH, "second-hand", "120 x 15 kW; 2 MW elsewhere"), 0),
    Total("wse2-wafer", "cores", Figure(
        850_000, "count", _CS2, "published", "usable ones; the model has all of 84 dies of 66 x 154"), 0.005, INFERRED),
    Total("wse2-wafer", "sram", Figure(40 * 10**9, "B", _CS2, "published"), 0.03, INFERRED),
    Total("wse2-wafer", "load_store", Figure(
        20_000 * _T, "B/s", _CS2, "published", "24 B a clock and core; 1.1 GHz would give 22"), 0.13, INFERRED),
    Total("wse2-wafer", "fabric", Figure(
        27_500 * _T, "B/s", _CS2, "published", "220 Pb/s; taken to count every link at both its ends"), 0.1, INFERRED),
    Total("wse2-wafer", "power", Figure(23_000, "W", _CS2, "second-hand", "15 to 23 kW"), 0.001, INFERRED),
    Total("a100-8", "matrix_bf16", Figure(2_496 * _T, "FLOP/s", _A100, "published", "8 x 312 TFLOP/s, dense"), 0),
    Total("a100-8", "sram", Figure(640 * 10**9, "B", _A100, "published", "8 x 80 GB of HBM"), 0),
    Total("a100-8", "link nvlink", Figure(300 * 10**9, "B/s", _A100, "published", "600 GB/s both ways"), 0),
)

RESULTS = {
    "all-reduce dojo-tile": Figure(5_000_000, "ps", _DAY, "recollected", "batch norm over 25 dies"),
    "all-reduce a100-24": Figure(150_000_000, "ps", _DAY, "recollected", "batch norm over 24 GPUs, software included"),
    "all-reduce a100-8 best": Figure(
        5_000_000, "ps", _LATENCIES, "second-hand", "best kernel on 8 A100, small buffer (MSCCL++)"),
    "all-reduce a100-8 NCCL": Figure(
        20_600_000, "ps", _LATENCIES, "second-hand", "stock NCCL on 8 A100, small buffer"),
    "one way nvlink": Figure(2_300_000, "ps", _TTPOE, "second-hand", "software included"),
    "across wse2-wafer": Figure(1_000_000, "ps", _LATENCIES, "second-hand", "edge to edge, about (Santos, SC24)"),
}
"""Published results of experiments."""

WAFER_REDUCE_SOURCE = "Luczynski et al., Near-Optimal Wafer-Scale Reduce, 2024 (arXiv 2404.15888)"
WAFER_RAMP_CYCLES = 2


def wafer_chain_reduce(n_cores: int, n_wavelets: int) -> Figure:
    """Cycles of a chain of cores that reduces a vector to one end, by the published model.

    T = max(C, E/N + L) + (2 T_R + 1) D with contention C = B, energy E = B (P - 1), links N, distance L and depth D all
    P - 1, ramp latency T_R = 2: B + (2 T_R + 2) (P - 1). The paper finds hardware within 4 % of it.
    """
    cycles = n_wavelets + (2 * WAFER_RAMP_CYCLES + 2) * (n_cores - 1)
    return Figure(cycles, "count", WAFER_REDUCE_SOURCE, "published", "B + (2 T_R + 2)(P - 1), hardware within 4 %")

NOT_MODELLED = (
    ("interface processor memory", Figure(32_000_000_000, "B", _HC34, "published", "HBM")),
)
