"""What a sweep searched, as axes from 0 to 1: numbers evenly or by powers of ten, and categories evenly spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator

from leapray.console import digits
from leapray.evaluation.plots.style import shortened, ticks
from leapray.evaluation.plots.trials import UNSCORED, Tried
from leapray.recipe import Select

_LOG_SPAN = 20
"""Positive values that span more than this factor stand on a logarithmic axis."""
_FEW = 5
"""Up to so many different numbers each get a tick."""
_TICK_GAP = 0.045
_SMALL, _LARGE = 1e-3, 1e6
"""Numbers between these are written out, others in powers of ten."""
_LONGEST_TEXT, _LINE = 15, 16
"""Letters of a category, and of a line of an axis's name."""
_ABSENT: Any = object()
"""The value of a key that a trial does not have."""


@dataclass(frozen=True)
class Searched:
    """One axis: its name, each trial's height from 0 to 1 (NaN where it has none) and value in words, and ticks by height."""

    label: str
    heights: Sequence[float]
    texts: Sequence[str]
    ticks: Sequence[tuple[float, str]]


def searched(trials: Sequence[Tried]) -> list[Searched]:
    """An axis for each key of any trial, in the order in which they first stand."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.values))
    labels = short_names(keys)
    return [_axis(labels[key], [trial.values.get(key, _ABSENT) for trial in trials]) for key in keys]


def score_axis(trials: Sequence[Tried], limits: tuple[float, float], select: Select = "skill") -> Searched:
    """The last axis, the score between limits; scores below stand at its foot, trials without one nowhere."""
    low, high = limits
    heights = [math.nan if trial.state == UNSCORED else max((trial.score - low) / (high - low), 0.0) for trial in trials]
    marks = [tick for tick in ticks(6).tick_values(low, high) if low <= tick <= high]
    decimals = max(len(f"{mark:g}".partition(".")[2]) for mark in marks)
    marked = [((mark - low) / (high - low), f"{mark:.{decimals}f}") for mark in marks]
    texts = [digits(trial.score) for trial in trials]
    below = any(trial.state != UNSCORED and trial.score < low for trial in trials)
    name = "validation\nskill" if select == "skill" else "validation\nR²"
    return Searched(name, heights, texts, [(0.0, "below"), *_apart(marked, after=0.0)] if below else marked)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Last dotted part of each key, or as many as tell it from the others and say more than ``name``, broken into lines."""
    names = {}
    for key in keys:
        parts = key.split(".")
        tails = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        names[key] = _broken(next((tail for tail in tails if tail != "name" and sum(_ends(other, tail) for other in keys) == 1), key))
    return names


def _ends(key: str, tail: str) -> bool:
    return f".{key}".endswith(f".{tail}")


def _broken(name: str) -> str:
    """A long name over several lines, broken after dots and underscores."""
    lines = [""]
    for part in name.replace(".", ".\0").replace("_", "_\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > _LINE:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _axis(label: str, values: Sequence[Any]) -> Searched:
    present = [value for value in values if value is not _ABSENT]
    numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in present)
    places, marked = (_numbers if numeric else _categories)(present)
    heights = [math.nan if value is _ABSENT else places[value if numeric else str(value)] for value in values]
    texts = ["" if value is _ABSENT else _text(value) for value in values]
    return Searched(label, heights, texts, marked)


def _numbers(values: Sequence[float]) -> tuple[dict[Any, float], list[tuple[float, str]]]:
    """Height of each number, and ticks."""
    low, high = min(values), max(values)
    logarithmic = low > 0 and high / low > _LOG_SPAN
    start, stop = (math.log(low), math.log(high)) if logarithmic else (low, high)

    def height(value: float) -> float:
        return ((math.log(value) if logarithmic else value) - start) / (stop - start) if stop > start else 0.5

    distinct = sorted(set(values))
    marks = distinct if len(distinct) <= _FEW else _round_numbers(low, high, logarithmic)
    return {value: height(value) for value in distinct}, _apart([(height(mark), _text(mark)) for mark in marks])


def _round_numbers(low: float, high: float, logarithmic: bool) -> list[float]:
    if not logarithmic:
        found = ticks(5).tick_values(low, high)
    else:
        found = LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,)).tick_values(low, high)
    return [float(tick) for tick in found if low <= tick <= high]


def _categories(values: Sequence[Any]) -> tuple[dict[Any, float], list[tuple[float, str]]]:
    """Height of each category by its text, evenly spread in their order, and ticks."""
    names = sorted({str(value): _text(value) for value in values}.items())
    heights = np.linspace(0, 1, len(names)).tolist() if len(names) > 1 else [0.5]
    places = {name: height for (name, _), height in zip(names, heights, strict=True)}
    return places, _apart([(places[name], text) for name, text in names])


def _apart(marks: Sequence[tuple[float, str]], after: float = -math.inf) -> list[tuple[float, str]]:
    """Ticks without those that stand too near the one before."""
    kept: list[tuple[float, str]] = []
    for height, text in marks:
        if height - after >= _TICK_GAP:
            kept.append((height, text))
            after = height
    return kept


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else "none"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) < _LARGE):
        return f"{value:,.0f}"
    if not isinstance(value, float):
        return shortened(str(value), _LONGEST_TEXT)
    if _SMALL <= abs(value) < _LARGE:
        return f"{value:.3g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
