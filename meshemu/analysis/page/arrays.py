"""Arrays and other values as JSON that a page reads back: long arrays of numbers as base64, little-endian."""

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["packed", "plain"]

_TYPES = {"u1", "u2", "i4", "f4", "f8"}


def packed(values: NDArray[Any], dtype: str = "f8") -> dict[str, Any]:
    """An array as {"dtype", "shape", "base64"}; dtype: u1, u2, i4, f4 or f8 (exact for integers up to 2**53)."""
    assert dtype in _TYPES, dtype
    data = np.ascontiguousarray(values, f"<{dtype}")
    return {"dtype": dtype, "shape": list(data.shape), "base64": base64.b64encode(data.tobytes()).decode()}


def plain(value: Any) -> Any:
    """The same value as JSON has it: NumPy scalars as Python's, and None for NaN and infinities."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
