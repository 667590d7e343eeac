"""Colours that the pictures and the page share; told apart with any colour vision, and in grey print.

Links are magma, devices blues: scales of even steps of lightness. Parts of time take Okabe and Ito's colours
(https://jfly.uni-koeln.de/color, 2008), the same for one part everywhere.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap, to_hex

__all__ = ["CYCLE", "PARTS", "UNUSED", "device_scale", "hex_steps", "link_scale"]

PARTS: Mapping[str, str] = MappingProxyType(
    {
        "compute": "#0072b2",
        "combine": "#e69f00",
        "latency": "#56b4e9",
        "serialisation": "#009e73",
        "waiting": "#d55e00",
        "ingest": "#cc79a7",
        "spill": "#f0e442",
        "idle": "#b8bec6",
    }
)
CYCLE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#6b4fa0", "#7f7f7f")

UNUSED = "#e9ebee"  # a link that carried nothing

_ENDS = {("magma", False): (0.94, 0.08), ("magma", True): (0.22, 0.98), ("Blues", False): (0.12, 0.95)}
_ENDS[("Blues", True)] = (0.98, 0.35)


def link_scale(*, dark: bool = False) -> ListedColormap:
    """From little to much, on white or (dark) on black paper."""
    return _scale("magma", dark)


def device_scale(*, dark: bool = False) -> ListedColormap:
    """From little to much, on white or (dark) on black paper."""
    return _scale("Blues", dark)


def hex_steps(scale: ListedColormap, count: int = 33) -> list[str]:
    """`count` colours of a scale at even distances, as "#rrggbb"."""
    return [to_hex(scale(place)) for place in np.linspace(0, 1, count)]


def _scale(name: str, dark: bool) -> ListedColormap:
    low, high = _ENDS[(name, dark)]
    return ListedColormap(colormaps[name](np.linspace(low, high, 256)))
