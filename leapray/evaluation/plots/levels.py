"""What differs from level to level: R2 and bias of the six tendencies against pressure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from leapray.climsim.grid import REFERENCE_PRESSURE, pressure
from leapray.climsim.schema import LEARNED, LEVELS
from leapray.console import digits
from leapray.evaluation.plots.quantity import PROFILES, Quantity
from leapray.evaluation.plots.style import BELOW, DARK, LIGHT, LINES, MIDDLE, dress, shortened, svg, ticks

MOST = len(LINES)
"""So many lines of one panel can be told apart, in grey too."""
_LONGEST_NAME = 40
_SHOWN, _LEAST_REACH = 0.95, 1e-4
"""Share of levels that an axis of differences holds at least, and the least that it reaches to either side."""
_MARKS = (1, 10, 50, 100, 200, 300, 500, 700, 850, 1000)
"""Pressures in hPa that stand at the axis."""
_TRUTH: dict[str, Any] = {"color": LIGHT, "linewidth": 4}
_SUBPLOTS = {"left": 0.055, "right": 0.99, "wspace": 0.13}


@dataclass(frozen=True)
class Curve:
    """Values of all targets ``(368,)`` under a name, and the band ``(2, 368)`` in which they lie, where it is known."""

    name: str
    values: np.ndarray
    band: np.ndarray | None = None


def skill_profiles(curves: Sequence[Curve]) -> bytes:
    """An SVG of R2 against pressure, one panel for each tendency; columns that are not learned are left out.

    The axis ends at -0.5: how many levels of the first curve lie below is written. Raises ValueError for more curves than lines.
    """
    return svg(_skill_figure(curves))


def bias_profiles(truth: np.ndarray, biases: Sequence[Curve]) -> bytes:
    """An SVG in two rows: mean tendencies of truth ``(368,)`` and of the first prediction, and beneath them the biases, less the truth.

    All in the units of :mod:`leapray.evaluation.plots.quantity`. Raises ValueError for more curves than lines.
    """
    return svg(_bias_figure(truth, biases))


def difference_profiles(difference: Curve) -> bytes:
    """An SVG of a difference in R2 against pressure with its band, one panel for each tendency; to the right is better."""
    return svg(_difference_figure(difference))


def _skill_figure(curves: Sequence[Curve]) -> Figure:
    figure, panels = _panels(1, curves)
    for axes, quantity in zip(panels[0], PROFILES, strict=True):
        shown = np.concatenate([_profile(curve.values, quantity) for curve in curves])
        lowest = float(np.nanmin(shown, initial=1.0))
        axes.set_xlim(max(min(lowest - 0.03, 0.0), -BELOW), 1.02)
        for index, (curve, line) in enumerate(zip(curves, LINES, strict=False)):
            _draw(axes, curve, quantity, line, cut=True)
            below = np.flatnonzero(_profile(curve.values, quantity) < -BELOW)
            # side by side, for the curves may lie outside on the same levels
            place = np.full(len(below), 0.02 + 0.04 * index)
            axes.plot(place, below, "<", color=line["color"], markersize=5, transform=axes.get_yaxis_transform())
        values = _profile(curves[0].values, quantity)
        if count := int((values < -BELOW).sum()):
            told = f"{count} below {-BELOW:g}, down to {digits(float(np.nanmin(values)))}"
            axes.text(0.03, 0.985, told, transform=axes.transAxes, va="top", fontsize=7.5, color=DARK)
        _entitle(axes, quantity, f"R² of {quantity.symbol}")
    return figure


def _difference_figure(difference: Curve) -> Figure:
    figure, panels = _panels(1, [difference])
    for axes, quantity in zip(panels[0], PROFILES, strict=True):
        _draw(axes, difference, quantity, LINES[0])
        axes.axvline(0, color=MIDDLE, linewidth=0.8, zorder=1)
        # one level that is far worse must not flatten the others
        shown = np.abs(_profile(difference.values if difference.band is None else difference.band, quantity))
        reach = float(np.nanquantile(shown, _SHOWN)) if np.isfinite(shown).any() else 0.0
        axes.set_xlim(*(1.2 * max(reach, _LEAST_REACH) * np.array([-1, 1])))
        _entitle(axes, quantity, f"difference in R² of {quantity.symbol}")
    return figure


def _draw(axes: Axes, curve: Curve, quantity: Quantity, line: dict[str, Any], cut: bool = False) -> None:
    if curve.band is not None:
        low, high = (_profile(end, quantity) for end in curve.band)
        axes.fill_betweenx(np.arange(LEVELS), low, high, color=line["color"], alpha=0.25, linewidth=0)
    values = _profile(curve.values, quantity)
    # a line to a value beyond the axis would run along levels that it does not belong to
    axes.plot(np.where(values < axes.get_xlim()[0], np.nan, values) if cut else values, np.arange(LEVELS), **line)


def _bias_figure(truth: np.ndarray, biases: Sequence[Curve]) -> Figure:
    figure, panels = _panels(2, biases)
    for column, quantity in enumerate(PROFILES):
        mean = truth[quantity.columns] * quantity.factor
        above, below = panels[0, column], panels[1, column]
        above.plot(mean, np.arange(LEVELS), **_TRUTH)
        above.plot(mean + biases[0].values[quantity.columns] * quantity.factor, np.arange(LEVELS), color=DARK, linewidth=1.2)
        for curve, line in zip(biases, LINES, strict=False):
            below.plot(curve.values[quantity.columns] * quantity.factor, np.arange(LEVELS), **line)
        for axes, what in ((above, "mean"), (below, "bias")):
            axes.axvline(0, color=MIDDLE, linewidth=0.8, zorder=1)
            _entitle(axes, quantity, f"{what} {quantity.symbol} ({quantity.unit})")
    return figure


def _panels(rows: int, curves: Sequence[Curve]) -> tuple[Figure, np.ndarray]:
    """Panels in rows of six, which share their pressure axis, beneath the names of the curves. Raises ValueError for too many."""
    if not 0 < len(curves) <= MOST:
        raise ValueError(f"{len(curves)} curves cannot be told apart, expected 1 to {MOST}")
    height = 0.4 + 4.2 * rows
    figure = Figure(figsize=(14, height))
    room = {"bottom": 0.55 / height, "top": 1 - 0.58 / height, "hspace": 0.28}
    panels = figure.subplots(rows, len(PROFILES), sharey=True, squeeze=False, gridspec_kw=_SUBPLOTS | room)
    handles = [Line2D([], [], label=shortened(curve.name, _LONGEST_NAME), **line) for curve, line in zip(curves, LINES, strict=False)]
    if rows > 1:
        handles.append(Line2D([], [], label="truth", **_TRUTH))
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.05, 1), ncols=len(handles), frameon=False, fontsize=9)
    for row in panels:
        pressure_axis(row[0])
    return figure, panels


def pressure_axis(axes: Axes) -> None:
    """Levels equally spaced from the top down, for each is one column of the score, with pressures in hPa at a surface of 1000 hPa."""
    levels = np.interp(_MARKS, pressure(np.array([REFERENCE_PRESSURE]))[0] / 100, np.arange(LEVELS))
    axes.set_yticks(levels, [str(mark) for mark in _MARKS])
    axes.set_ylim(LEVELS - 0.5, -0.5)
    axes.set_ylabel("pressure (hPa), levels equally spaced", fontsize=9)


def _profile(values: np.ndarray, quantity: Quantity) -> np.ndarray:
    """One tendency's values by level, NaN where it is not learned."""
    return np.where(LEARNED, values, np.nan)[..., quantity.columns]


def _entitle(axes: Axes, quantity: Quantity, label: str) -> None:
    dress(axes)
    axes.set_title(quantity.words, fontsize=9.5, loc="left")
    axes.set_xlabel(label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(ticks(4))
