"""Variants and their base ranked by their test score, each with its interval and its difference from the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from leapray.console import digits
from leapray.evaluation.intervals import LEVEL
from leapray.evaluation.plots.style import DARK, LIGHT, MIDDLE, dress, entitle, headline, png, score_limits, shortened, ticks
from leapray.recipe import Select

_LONGEST_NAME = 34
_WIDTH, _NARROW, _ROW, _ABOVE, _BELOW = 13.5, 8.5, 0.34, 0.85, 0.6
"""Inches: of the figure with both panels and with one, of an entry, above and below the panels."""
_LETTER = 0.085
"""Inches that a letter of a name takes."""
_SCORES, _SCORE_TEXT, _DIGIT, _SPACE = 4.4, 0.95, 0.077, 0.25
"""Inches: of the left panel beside a right one, of the figures beside it, of a digit of those beside the right one, and around them."""
_LEAST_MARGIN = 0.001
"""Differences of less are not told apart by the right panel."""
_WIDE, _FAR = 0.5, 5
"""The right panel holds every difference up to the first; a larger one only up to so many times the median."""
_PERCENT = f"{LEVEL:.0%} interval"


@dataclass(frozen=True)
class Ranked:
    """One scored model: its headline on the test months, and where resampling days puts it.

    ``difference`` from the base is value, low, high; ``chosen`` the validation score that it was chosen by.
    """

    name: str
    score: float
    interval: tuple[float, float] | None = None
    difference: tuple[float, float, float] | None = None
    chosen: float | None = None
    is_base: bool = False


def ranking(entries: Sequence[Ranked], title: str = "", select: Select = "skill") -> bytes:
    """A PNG of the test scores that ``select`` names, the best on top, and of the differences from the base where there are any.

    A score far below the others is an arrow at the edge beside its value. Raises ValueError without entries.
    """
    if not entries:
        raise ValueError("a ranking needs at least one entry")
    return png(_figure(entries, title, select))


def _figure(entries: Sequence[Ranked], title: str, select: Select = "skill") -> Figure:
    ranked = sorted(entries, key=lambda entry: entry.score if np.isfinite(entry.score) else -np.inf, reverse=True)
    names = [shortened(entry.name, _LONGEST_NAME) for entry in ranked]
    height = _ABOVE + _BELOW + _ROW * (len(ranked) + 0.4)
    bottom, tall = _BELOW / height, 1 - (_ABOVE + _BELOW) / height
    left = 0.35 + _LETTER * max(map(len, names))
    compared = any(entry.difference for entry in ranked)
    width = _WIDTH if compared else _NARROW
    beside = _SPACE + _DIGIT * max(len(_difference_text(entry)) for entry in ranked)
    right = left + _SCORES + _SCORE_TEXT if compared else width
    figure = Figure(figsize=(width, height), dpi=120)
    scores = figure.add_axes((left / width, bottom, (right - left - _SCORE_TEXT) / width, tall))
    lowest = _draw_scores(scores, ranked, select)
    panels = [scores]
    if compared:
        panels.append(figure.add_axes((right / width, bottom, (width - right - beside) / width, tall)))
        _draw_differences(panels[1], ranked, lowest, select)
    for axes in panels:
        dress(axes)
        axes.grid(visible=False, axis="y")
        axes.set_ylim(len(ranked) - 0.3, -0.7)
        axes.set_yticks(range(len(ranked)), names if axes is scores else [])
        axes.xaxis.set_major_locator(ticks(5))
        axes.tick_params(axis="y", length=0)
    for label, entry in zip(scores.get_yticklabels(), ranked, strict=True):
        label.set_fontweight("bold" if entry.is_base else "normal")
    entitle(figure, title, 0.02)
    return figure


def _draw_scores(axes: Axes, ranked: Sequence[Ranked], select: Select) -> float:
    """Left panel; the lowest score that it shows."""
    ends = [end for entry in ranked for end in entry.interval or ()]
    chosen = [entry.chosen for entry in ranked if entry.chosen is not None]
    lowest, highest = score_limits([entry.score for entry in ranked], [*ends, *chosen])
    axes.set_xlim(lowest, highest)
    for base in (entry for entry in ranked if entry.is_base):
        _draw_band(axes, base)
    for row, entry in enumerate(ranked):
        if entry.chosen is not None and entry.chosen >= lowest:
            axes.plot(entry.chosen, row, "D", markersize=6.5, markerfacecolor="white", markeredgecolor=MIDDLE)
        _draw_dot(axes, row, entry.score, entry.interval, entry.score >= lowest, DARK)
        _write(axes, row, digits(entry.score))
    axes.set_xlabel(f"{headline(select)}, test months")
    handles = [Line2D([], [], color=DARK, marker="o", linewidth=1.8, label="test" + _of_days(ranked))]
    if chosen:
        hollow = Line2D([], [], linestyle="", marker="D", markerfacecolor="white", markeredgecolor=MIDDLE, label="validation, chosen by")
        handles.append(hollow)
    if any(entry.is_base for entry in ranked):
        handles.append(Line2D([], [], color=MIDDLE, linewidth=1, linestyle="--", label="base"))
    _legend(axes, handles)
    return lowest


def _of_days(ranked: Sequence[Ranked]) -> str:
    return f", {_PERCENT} (days resampled)" if any(entry.interval for entry in ranked) else ""


def _draw_band(axes: Axes, base: Ranked) -> None:
    """The base over all rows."""
    if base.interval:
        axes.axvspan(*base.interval, color=LIGHT, alpha=0.25, linewidth=0, zorder=0)
    axes.axvline(base.score, color=MIDDLE, linewidth=1, linestyle="--", zorder=1)


def _draw_differences(axes: Axes, ranked: Sequence[Ranked], lowest: float, select: Select) -> None:
    """Right panel; entries of a score below ``lowest`` are arrows here as at the left."""
    found = np.array([entry.difference for entry in ranked if entry.difference and entry.score >= lowest] or [(0.0, 0.0, 0.0)])
    reach = max(_WIDE, _FAR * float(np.median(np.abs(found))))
    shown = [0.0, *found[np.abs(found) <= reach]]
    margin = max(0.06 * np.ptp(shown), _LEAST_MARGIN)
    left, right = min(shown) - margin, max(shown) + margin
    axes.set_xlim(left, right)
    axes.axvline(0, color=MIDDLE, linewidth=1, linestyle="--", zorder=1)
    for row, entry in enumerate(ranked):
        if entry.difference:
            value, low, high = entry.difference
            color = LIGHT if low <= 0 <= high else DARK
            if value > right and entry.score >= lowest:
                axes.plot(0.988, row, ">", color=color, markersize=8, transform=axes.get_yaxis_transform(), clip_on=False)
            else:
                _draw_dot(axes, row, value, (low, high), entry.score >= lowest and value >= left, color)
        _write(axes, row, _difference_text(entry))
    axes.set_xlabel(f"difference in {'skill' if select == 'skill' else 'R²'} from the base")
    labels = {LIGHT: f"{_PERCENT} (same days for both) holds 0", DARK: "does not"}
    _legend(axes, [Line2D([], [], color=color, marker="o", linewidth=1.8, label=label) for color, label in labels.items()])


def _difference_text(entry: Ranked) -> str:
    """A difference and its interval, as they stand beside the right panel."""
    if entry.difference:
        value, low, high = (digits(number, "+") for number in entry.difference)
        return f"{value}  [{low}, {high}]"
    return "base" if entry.is_base else ""


def _draw_dot(axes: Axes, row: int, value: float, ends: tuple[float, float] | None, seen: bool, color: str) -> None:
    """A value with its interval, or an arrow where it lies left of the panel."""
    if not seen:
        axes.plot(0.012, row, "<", color=color, markersize=8, transform=axes.get_yaxis_transform(), clip_on=False)
        return
    if ends:
        axes.plot(ends, (row, row), color=color, linewidth=1.8, solid_capstyle="butt", zorder=3)
        axes.plot(ends, (row, row), "|", color=color, markersize=7, zorder=3)
    axes.plot(value, row, "o", color=color, markersize=6, zorder=4)


def _write(axes: Axes, row: int, text: str) -> None:
    axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9, family="monospace", color=DARK)


def _legend(axes: Axes, handles: Sequence[Line2D]) -> None:
    """Above the panel, at its left edge."""
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        borderaxespad=0.2,
        frameon=False,
        fontsize=8.5,
        ncols=len(handles),
        columnspacing=1.2,
        handletextpad=0.5,
    )
