"""What differs from level to level: skill, R2 and bias of the tendencies against pressure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from leapray.climsim.grid import REFERENCE_PRESSURE, pressure
from leapray.climsim.schema import LEVELS, Targets
from leapray.console import digits
from leapray.evaluation.plots.quantity import Quantity, profiles
from leapray.evaluation.plots.style import BELOW, DARK, LIGHT, LINES, MIDDLE, dress, shortened, svg, ticks

MOST = len(LINES)
"""So many lines of one panel can be told apart, in grey too."""
_LONGEST_NAME = 40
_SHOWN, _LEAST_REACH = 0.95, 1e-4
"""Share of levels that an axis of differences holds at least, and the least that it reaches to either side."""
_MARKS = (1, 10, 50, 100, 200, 300, 500, 700, 850, 1000)
"""Pressures in hPa that stand at the axis."""
_MOST = 1.3
"""Where an axis of skill ends at the latest: the training mean may be far from these rows' own, and more than 1 attainable."""
_TRUTH: dict[str, Any] = {"color": LIGHT, "linewidth": 4}
_PANEL, _LEFT, _RIGHT, _FEWEST = 14 / 6, 0.77, 0.14, 3
"""Inches of a panel with its space, and beside them; panels for which there is room at least, so that a single one is no wider."""


@dataclass(frozen=True)
class Curve:
    """Values of all targets ``(t,)`` under a name, and the band ``(2, t)`` in which they lie, where it is known."""

    name: str
    values: np.ndarray
    band: np.ndarray | None = None


def skill_profiles(targets: Targets, curves: Sequence[Curve], attainable: np.ndarray) -> bytes:
    """An SVG of skill against pressure beside the attainable skill ``(t,)``, one panel for each tendency.

    Columns that are not learned are left out. The axis ends at -0.5: what lies below is marked, and of the first curve counted.

    Raises ValueError for more curves than lines.
    """
    return svg(_score_figure(targets, curves, "skill", attainable))


def r2_profiles(targets: Targets, curves: Sequence[Curve]) -> bytes:
    """An SVG of R2 against pressure as :func:`skill_profiles` has it of skill."""
    return svg(_score_figure(targets, curves, "R²"))


def bias_profiles(targets: Targets, truth: np.ndarray, biases: Sequence[Curve]) -> bytes:
    """An SVG in two rows: mean tendencies of truth ``(t,)`` and of the first prediction, and beneath them the biases, less the truth.

    All in the units of :mod:`leapray.evaluation.plots.quantity`. Raises ValueError for more curves than lines.
    """
    return svg(_bias_figure(targets, truth, biases))


def difference_profiles(targets: Targets, difference: Curve) -> bytes:
    """An SVG of a difference in skill against pressure with its band, one panel for each tendency; to the right is better."""
    return svg(_difference_figure(targets, difference))


def _score_figure(targets: Targets, curves: Sequence[Curve], score: str, attainable: np.ndarray | None = None) -> Figure:
    figure, panels = _panels(1, profiles(targets), curves, "" if attainable is None else "attainable")
    for axes, quantity in zip(panels[0], profiles(targets), strict=True):
        shown = np.concatenate([quantity.of_learned(curve.values) for curve in curves])
        lowest = float(np.nanmin(shown, initial=1.0))
        most = 1.0 if attainable is None else float(np.nanmax(quantity.of_learned(attainable), initial=1.0))
        axes.set_xlim(max(min(lowest - 0.03, 0.0), -BELOW), min(most, _MOST) + 0.02)
        if attainable is not None:
            axes.plot(quantity.of_learned(attainable), np.arange(LEVELS), **_TRUTH)
        for index, (curve, line) in enumerate(zip(curves, LINES, strict=False)):
            _draw(axes, curve, quantity, line, cut=True)
            below = np.flatnonzero(quantity.of_learned(curve.values) < -BELOW)
            # side by side, for the curves may lie outside on the same levels
            place = np.full(len(below), 0.02 + 0.04 * index)
            axes.plot(place, below, "<", color=line["color"], markersize=5, transform=axes.get_yaxis_transform())
        values = quantity.of_learned(curves[0].values)
        if count := int((values < -BELOW).sum()):
            told = f"{count} below {-BELOW:g}, down to {digits(float(np.nanmin(values)))}"
            axes.text(0.03, 0.985, told, transform=axes.transAxes, va="top", fontsize=7.5, color=DARK)
        _entitle(axes, quantity, f"{score} of {quantity.symbol}")
    return figure


def _difference_figure(targets: Targets, difference: Curve) -> Figure:
    figure, panels = _panels(1, profiles(targets), [difference])
    for axes, quantity in zip(panels[0], profiles(targets), strict=True):
        _draw(axes, difference, quantity, LINES[0])
        axes.axvline(0, color=MIDDLE, linewidth=0.8, zorder=1)
        # one level that is far worse must not flatten the others
        shown = np.abs(quantity.of_learned(difference.values if difference.band is None else difference.band))
        reach = 1.2 * max(float(np.nanquantile(shown, _SHOWN)) if np.isfinite(shown).any() else 0.0, _LEAST_REACH)
        axes.set_xlim(-reach, reach)
        values = quantity.of_learned(difference.values)
        for marker, place, outside in (("<", 0.02, values < -reach), (">", 0.98, values > reach)):
            levels = np.flatnonzero(outside)
            axes.plot(np.full(len(levels), place), levels, marker, color=DARK, markersize=5, transform=axes.get_yaxis_transform())
        _entitle(axes, quantity, f"difference in skill of {quantity.symbol}")
    return figure


def _draw(axes: Axes, curve: Curve, quantity: Quantity, line: dict[str, Any], cut: bool = False) -> None:
    if curve.band is not None:
        low, high = (quantity.of_learned(end) for end in curve.band)
        axes.fill_betweenx(np.arange(LEVELS), low, high, color=line["color"], alpha=0.25, linewidth=0)
    values = quantity.of_learned(curve.values)
    # a line to a value beyond the axis would run along levels that it does not belong to
    axes.plot(np.where(values < axes.get_xlim()[0], np.nan, values) if cut else values, np.arange(LEVELS), **line)


def _bias_figure(targets: Targets, truth: np.ndarray, biases: Sequence[Curve]) -> Figure:
    figure, panels = _panels(2, profiles(targets), biases, "truth")
    for column, quantity in enumerate(profiles(targets)):
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


def _panels(rows: int, quantities: Sequence[Quantity], curves: Sequence[Curve], reference: str = "") -> tuple[Figure, np.ndarray]:
    """Panels in rows, one for each quantity, which share their pressure axis, beneath the names of the curves and of what they are beside.

    Raises ValueError for too many.
    """
    if not 0 < len(curves) <= MOST:
        raise ValueError(f"{len(curves)} curves cannot be told apart, expected 1 to {MOST}")
    height = 0.4 + 4.2 * rows
    columns = max(len(quantities), _FEWEST)
    width = _PANEL * columns
    figure = Figure(figsize=(width, height))
    room = {"bottom": 0.55 / height, "top": 1 - 0.58 / height, "hspace": 0.28}
    room |= {"left": _LEFT / width, "right": 1 - _RIGHT / width, "wspace": 0.13}
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False, gridspec_kw=room)
    for axes in panels[:, len(quantities) :].flat:
        axes.set_axis_off()
    panels = panels[:, : len(quantities)]
    handles = [Line2D([], [], label=shortened(curve.name, _LONGEST_NAME), **line) for curve, line in zip(curves, LINES, strict=False)]
    if reference:
        handles.append(Line2D([], [], label=reference, **_TRUTH))
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.7 / width, 1), ncols=len(handles), frameon=False, fontsize=9)
    for row in panels:
        pressure_axis(row[0])
    return figure, panels


def pressure_axis(axes: Axes) -> None:
    """Levels equally spaced from the top down, for each is one column of the score, with pressures in hPa at a surface of 1000 hPa."""
    levels = np.interp(_MARKS, pressure(np.array([REFERENCE_PRESSURE]))[0] / 100, np.arange(LEVELS))
    axes.set_yticks(levels, [str(mark) for mark in _MARKS])
    axes.set_ylim(LEVELS - 0.5, -0.5)
    axes.set_ylabel("pressure (hPa), levels equally spaced", fontsize=9)


def _entitle(axes: Axes, quantity: Quantity, label: str) -> None:
    dress(axes)
    axes.set_title(quantity.words, fontsize=9.5, loc="left")
    axes.set_xlabel(label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(ticks(4))
