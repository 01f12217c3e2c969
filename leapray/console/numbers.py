"""Numbers as people read them: three significant digits everywhere."""

from __future__ import annotations

import math

_DIGITS = 3


def number(value: float | None, sign: str = "") -> str:
    """Three significant digits, in powers of ten where that is shorter: ``0.280``, ``1,230``, ``-8.63e+13``. None gives ``""``.

    ``sign`` is ``"+"`` for differences, which then carry their sign, as in format strings.
    """
    if value is None:
        return ""
    if not math.isfinite(value):
        return f"{value:{sign}}"
    if value == 0:
        return "0"
    scientific = f"{value:{sign}.{_DIGITS - 1}e}"
    # of the rounded value: 0.9996 has as many decimals as 1
    exponent = int(scientific.partition("e")[2])
    fixed = f"{float(scientific):{sign},.{max(_DIGITS - 1 - exponent, 0)}f}"
    return min(fixed, scientific, key=len)


def between(low: float | None, high: float | None, sign: str = "") -> str:
    """Both ends of an interval; ``""`` where one is not known."""
    return "" if low is None or high is None else f"{number(low, sign)}, {number(high, sign)}"
