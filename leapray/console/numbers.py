"""Numbers as people read them: three significant digits."""

from __future__ import annotations

import math

_LEAST, _MOST = 1e-4, 1e5
"""Sizes between which a number is written without an exponent."""


def digits(value: float | None, sign: str = "") -> str:
    """A number with three significant digits, ``-8.63e+13`` where it is large; nothing for None and NaN. ``sign`` as in formats."""
    if value is None or math.isnan(value):
        return ""
    size = abs(value)
    if value == 0:
        return "0"
    if math.isinf(value):
        return f"{value:{sign}.0f}"
    rounded = float(f"{size:.2e}")
    if not _LEAST <= rounded < _MOST:
        return f"{value:{sign}.2e}"
    return f"{value:{sign}.{max(2 - math.floor(math.log10(rounded)), 0)}f}"
