"""Numbers as people read them: three significant digits."""

from __future__ import annotations

import math

_LEAST, _MOST = 1e-4, 1e5
"""Sizes between which a number is written without an exponent."""
_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")
_NUMERALS = ((1e9, "billion"), (1e6, "million"))
_TIMES = ((2 * 86400.0, 86400.0, "days"), (7200.0, 3600.0, "h"), (120.0, 60.0, "min"), (1.0, 1.0, "s"), (1e-3, 1e-3, "ms"))
"""The least seconds that are told in a unit, its seconds, and its name."""


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


def scaled(value: float, unit: str = "B") -> str:
    """A quantity of at least 0 with three significant digits and a decimal prefix: ``596 GB``, ``0 B``."""
    shown, power = float(f"{value:.3g}"), 0
    while shown >= 1000 and power < len(_PREFIXES) - 1:
        shown, power = shown / 1000, power + 1
    return f"{digits(shown) if power else counted(shown)} {_PREFIXES[power]}{unit}"


def counted(value: float) -> str:
    """A count of at least 0 with three significant digits: ``0.450``, ``8``, ``4,000``, ``70.6 million``."""
    shown = float(f"{value:.3g}")
    for size, numeral in _NUMERALS:
        if shown >= size:
            return f"{digits(shown / size)} {numeral}"
    return f"{shown:,.0f}" if shown >= 100 or shown == int(shown) else digits(shown)


def duration(seconds: float) -> str:
    """Seconds with three significant digits in the unit that suits them: ``6.98 ms``, ``13.9 h``."""
    for least, size, unit in _TIMES:
        if seconds >= least:
            return f"{digits(seconds / size)} {unit}"
    return "under 1 ms"
