"""An ensemble: what its members weigh, and how their errors go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from leapray.evaluation.plots.style import DARK, LIGHT, MIDDLE, PALE, dress, entitle, png, shortened

_BARS: tuple[dict[str, Any], ...] = (
    {"facecolor": DARK},
    {"facecolor": LIGHT},
    {"facecolor": MIDDLE},
    {"facecolor": "white"},
    {"facecolor": "white", "hatch": "/////"},
)
"""Groups differ in grey too."""
_COLORS = colormaps["Greys"]
_ROW, _LABELS, _WEIGHTS, _CELL, _GAP, _BELOW, _ABOVE, _RIGHT, _LEGEND = 0.42, 1.7, 4.2, 0.6, 0.15, 1.1, 0.85, 0.35, 0.55
"""Inches: of a member's row, of its name, of the weights' axis, of a cell of the map, between the two, around them, down to the legend."""
_LEAST_SPAN = 0.1
"""Of correlations, from the lightest shade to the darkest."""
_LEAST_ROWS, _NAME, _WRITTEN = 4, 20, 14
"""Rows that the figure has room for at least; letters of a name; members beside so many of which the cells hold no numbers."""


def ensemble_overview(
    names: Sequence[str], weights: Mapping[str, Sequence[float]], correlation: Sequence[Sequence[float]] | None, title: str = ""
) -> bytes:
    """A PNG with the members' weights, a bar for each group of variables, and where it is known, the correlation of their errors."""
    return png(_figure(names, weights, correlation, title))


def _figure(
    names: Sequence[str], weights: Mapping[str, Sequence[float]], correlation: Sequence[Sequence[float]] | None, title: str
) -> Figure:
    tall = max(len(names), _LEAST_ROWS) * (_ROW if correlation is None else _CELL)
    map_width = 0.0 if correlation is None else _GAP + _LABELS + tall
    width, height = _LABELS + _WEIGHTS + map_width + _RIGHT, _BELOW + tall + _ABOVE
    figure = Figure(figsize=(width, height), dpi=120)
    shown = [shortened(name, _NAME) for name in names]
    _draw_weights(figure.add_axes((_LABELS / width, _BELOW / height, _WEIGHTS / width, tall / height)), shown, weights, tall)
    if correlation is not None:
        left = width - _RIGHT - tall
        _draw_map(figure.add_axes((left / width, _BELOW / height, tall / width, tall / height)), shown, np.asarray(correlation))
    entitle(figure, title, 0.35 / width)
    return figure


def _draw_weights(axes: Axes, names: Sequence[str], weights: Mapping[str, Sequence[float]], tall: float) -> None:
    places, thick = np.arange(len(names)), 0.8 / len(weights)
    for index, (group, values) in enumerate(weights.items()):
        shift = (index - (len(weights) - 1) / 2) * thick
        axes.barh(places + shift, values, thick * 0.92, edgecolor=DARK, linewidth=0.5, label=group, **_BARS[index % len(_BARS)])
        if len(weights) == 1:
            for place, value in zip(places, values, strict=True):
                axes.annotate(f"{value:.3f}", (value, place), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
    even = 1 / len(names)
    axes.axvline(even, color=MIDDLE, linewidth=1, linestyle=(0, (4, 2)))
    axes.annotate("plain mean", (even, 1), (3, 3), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=8, color=MIDDLE)
    most = max([even, *(value for values in weights.values() for value in values)])
    axes.set(xlim=(0, most * 1.18), yticks=places, ylim=(len(names) - 0.5, -0.5))
    axes.set_yticklabels(names, fontsize=9)
    axes.set_xlabel("weight (sum 1)", fontsize=9)
    axes.tick_params(labelsize=9)
    dress(axes)
    axes.spines["top"].set_visible(False)
    if len(weights) > 1:
        axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper left", bbox_to_anchor=(0.0, -_LEGEND / tall), borderaxespad=0.0)


def _draw_map(axes: Axes, names: Sequence[str], correlation: np.ndarray) -> None:
    places = range(len(names))
    apart = correlation[~np.eye(len(names), dtype=bool)]
    low = float(apart.min(initial=1.0))
    # the diagonal is 1 whatever the members are, so the shades are for what lies beside it
    scale = Normalize(low - _LEAST_SPAN / 4, max(float(apart.max(initial=-1.0)), low + _LEAST_SPAN) + _LEAST_SPAN / 2, clip=True)
    axes.imshow(correlation, cmap=_COLORS, norm=scale, aspect="equal")
    if len(names) <= _WRITTEN:
        for row, column in np.ndindex(correlation.shape):
            value = correlation[row, column]
            color = "white" if scale(value) > 0.5 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=color)
    axes.set(xticks=places, yticks=places)
    axes.set_xticklabels(names, fontsize=9, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticklabels(names, fontsize=9)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=PALE, linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    axes.set_title("correlation of errors", fontsize=9, loc="left")
