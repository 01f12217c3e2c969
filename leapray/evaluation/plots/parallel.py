"""What the trials of a sweep tried and what they reached, as lines through parallel axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from leapray.evaluation.plots.searched import Searched, score_axis, searched
from leapray.evaluation.plots.style import BOLD, DARK, LIGHT, MIDDLE, ON_LINES, STAR, entitle, headline, png, score_limits
from leapray.evaluation.plots.trials import FINISHED, STOPPED, UNSCORED, Tried, best_of
from leapray.recipe import Select

_COLORS = colormaps["viridis_r"]
"""Perceptually uniform; the best are the darkest, in grey too."""
_BEST = "best"
_LINES: dict[str, dict[str, Any]] = {
    _BEST: {"linestyle": "-", "linewidth": 3.4},
    FINISHED: {"linestyle": "-", "linewidth": 1.5},
    STOPPED: {"linestyle": (0, (4, 2)), "linewidth": 0.9},
    UNSCORED: {"linestyle": ":", "linewidth": 1.1},
}
_AXIS, _LEAST, _MOST, _LEFT, _RIGHT, _BAR = 1.55, 8.0, 22.0, 0.95, 1.9, 0.95
"""Inches: of each axis, of the narrowest and widest figure, beside the axes, and of the colour bar with its label."""
_BELOW, _TALL, _ABOVE, _LINE = 0.5, 4.0, 0.75, 0.16
"""Inches: below the axes, of them, above them, and of a line of their names."""


def parallel_coordinates(trials: Sequence[Tried], title: str = "", select: Select = "skill") -> bytes:
    """A PNG with one axis for each searched key and a last one for the best validation score; every trial is a line of its score's colour.

    ``select`` says which score it is. Raises ValueError when no trial has one.
    """
    return png(_figure(trials, title, select))


def _figure(trials: Sequence[Tried], title: str, select: Select = "skill") -> Figure:
    best = best_of(trials)
    limits = score_limits([trial.score for trial in trials])
    columns = [*searched(trials), score_axis(trials, limits, select)]
    width = float(np.clip(_AXIS * len(columns) + _RIGHT, _LEAST, _MOST))
    height = _BELOW + _TALL + _ABOVE + _LINE * max(column.label.count("\n") + 1 for column in columns)
    figure = Figure(figsize=(width, height), dpi=120)
    axes = figure.add_axes((_LEFT / width, _BELOW / height, 1 - (_LEFT + _RIGHT) / width, _TALL / height))
    axes.set(xlim=(0, len(columns) - 1), ylim=(0, 1))
    axes.set_axis_off()
    scale = Normalize(*limits, clip=True)
    for index in sorted(range(len(trials)), key=lambda index: (index == best, trials[index].score)):
        color = _COLORS(scale(trials[index].score)) if trials[index].state != UNSCORED else LIGHT
        kind = _BEST if index == best else trials[index].state
        axes.plot([column.heights[index] for column in columns], color=color, clip_on=False, label=kind, **_LINES[kind])
    for place, column in enumerate(columns):
        _draw_axis(axes, place, column, best)
    axes.plot(len(columns) - 1, columns[-1].heights[best], "*", color=STAR, markersize=15, markeredgecolor="black", clip_on=False, zorder=5)
    bar = figure.add_axes((1 - _BAR / width, _BELOW / height, 0.16 / width, _TALL / height))
    figure.colorbar(ScalarMappable(scale, _COLORS), cax=bar).set_label(f"{headline(select)} (validation)", fontsize=9)
    bar.tick_params(labelsize=8)
    _draw_legend(figure, {_BEST} | {trial.state for index, trial in enumerate(trials) if index != best}, width)
    entitle(figure, title, 0.35 / width)
    return figure


def _draw_axis(axes: Axes, place: int, column: Searched, best: int) -> None:
    """One axis with its ticks, and what the best trial has on it."""
    axes.plot((place, place), (0, 1), color=DARK, linewidth=1, clip_on=False, zorder=3)
    axes.text(place, 1.05, column.label, ha="center", va="bottom", fontsize=9.5, color=DARK, linespacing=1.05)
    for height, text in column.ticks:
        axes.plot((place - 0.02, place), (height, height), color=DARK, linewidth=0.8, clip_on=False, zorder=3)
        if text != column.texts[best]:
            axes.text(place - 0.035, height, text, ha="right", va="center", fontsize=8, color=MIDDLE, zorder=5, **ON_LINES)
    if column.texts[best]:
        axes.text(place + 0.07, column.heights[best], column.texts[best], va="center", fontsize=9, **BOLD)


def _draw_legend(figure: Figure, kinds: set[str], width: float) -> None:
    handles = [Line2D([], [], color=DARK, label=kind, **line) for kind, line in _LINES.items() if kind in kinds]
    figure.legend(handles=handles, frameon=False, fontsize=8.5, ncols=len(handles), loc="lower left", bbox_to_anchor=(0.35 / width, 0.0))
