"""Published totals of whole machines: not inputs of the model but checks on it, and facts that the model leaves out."""

from dataclasses import dataclass

from meshemu.hardware.figure import Figure

__all__ = ["NOT_MODELLED", "TOTALS", "Total"]

_CC22 = "Chips and Cheese, Hot Chips 34: Tesla's Dojo Microarchitecture, 2022"
_SA = "SemiAnalysis, Tesla Dojo: Unique Packaging and Chip Design, 2021"
_EET = "EE Times Europe, November 2021, pp. 38-40"
_HC34 = "Hot Chips 34 slides, Dojo: Super-Compute System Scaling for ML Training"
_NOTES = "study notes on the Hot Chips 34 microarchitecture slides"
_STH = "ServeTheHome, Tesla Dojo Custom AI Supercomputer at HC34, 2022"
_T = 10**12


@dataclass(frozen=True)
class Total:
    """A published figure of a whole preset, and how the model arrives at the like.

    quantity: nodes, dies, matrix_<format>, sram, bisection (from the northern half of the rows to the southern) or edge
    (over one side of a tile), both in one direction. tolerance: relative difference that rounding by the source
    explains.
    """

    preset: str
    quantity: str
    figure: Figure
    tolerance: float


TOTALS = (
    Total("dojo-die", "nodes", Figure(354, "count", _CC22, "published"), 0),
    Total("dojo-die", "matrix_bf16", Figure(
        362 * _T, "FLOP/s", _CC22, "published",
        "376 TFLOP/s is in circulation too; neither 354 nor 360 nodes at 2 GHz give it"), 0.002),
    Total("dojo-die", "matrix_fp32", Figure(22_600_000_000_000, "FLOP/s", _SA, "published"), 0.003),
    Total("dojo-die", "sram", Figure(440_000_000, "B", _HC34, "published"), 0.006),
    Total("dojo-die", "bisection", Figure(10 * _T, "B/s", _EET, "published", "per direction"), 0.03),
    Total("dojo-tile", "dies", Figure(25, "count", _HC34, "published"), 0),
    Total("dojo-tile", "matrix_bf16", Figure(9_000 * _T, "FLOP/s", _HC34, "published"), 0.007),
    Total("dojo-tile", "matrix_fp32", Figure(565 * _T, "FLOP/s", _EET, "published"), 0.003),
    Total("dojo-tile", "sram", Figure(11_000_000_000, "B", _HC34, "published"), 0.006),
    Total("dojo-tile", "bisection", Figure(10 * _T, "B/s", _HC34, "published"), 0),
    Total("dojo-tray", "edge", Figure(4_500_000_000_000, "B/s", _CC22, "published", "9 TB/s both ways"), 0),
    Total("dojo-tray", "matrix_bf16", Figure(54_000 * _T, "FLOP/s", _NOTES, "second-hand"), 0.008),
    Total("dojo-tray", "bisection", Figure(13_400_000_000_000, "B/s", _NOTES, "second-hand"), 0.01),
    Total("dojo-cabinet", "nodes", Figure(106_200, "count", _SA, "published"), 0),
    Total("dojo-exapod", "dies", Figure(3_000, "count", _EET, "published"), 0),
    Total("dojo-exapod", "nodes", Figure(1_062_000, "count", _EET, "published"), 0),
    Total("dojo-exapod", "matrix_bf16", Figure(1_100_000 * _T, "FLOP/s", _EET, "published"), 0.012),
    Total("dojo-exapod", "matrix_fp32", Figure(67_800 * _T, "FLOP/s", _EET, "published"), 0.003),
    Total("dojo-exapod", "sram", Figure(1_300_000_000_000, "B", _EET, "published"), 0.03),
)

NOT_MODELLED = (
    ("interface processor memory", Figure(32_000_000_000, "B", _HC34, "published", "HBM")),
    ("interface processor memory bandwidth", Figure(800_000_000_000, "B/s", _HC34, "published")),
    ("interface processor to tile", Figure(900_000_000_000, "B/s", _HC34, "published", "direction not stated")),
    ("interface processor to host", Figure(32_000_000_000, "B/s", _HC34, "published", "PCIe")),
    ("interface processor to Ethernet", Figure(50_000_000_000, "B/s", _HC34, "published", "TTPoE, the Z plane")),
    ("interface processors per tile edge", Figure(5, "count", _STH, "published", "at most")),
    ("Ethernet one way", Figure(
        1_300_000, "ps", "an attendee's transcription of the Hot Chips 2024 TTPoE talk", "second-hand")),
)
