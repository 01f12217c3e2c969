"""How often it rains how much, and what rain goes with in the column's moisture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from leapray.evaluation.plots.style import LIGHT, LINES, MIDDLE, dress, shortened, svg
from leapray.evaluation.results import Precipitation

_LONGEST_NAME = 32


def precipitation(found: Sequence[tuple[str, Precipitation]]) -> bytes:
    """An SVG of two panels: density of precipitation, and mean moisture tendency of the column by true precipitation.

    The truth is the first's, for all are of the same rows. Raises ValueError without any.
    """
    if not found:
        raise ValueError("a distribution of precipitation needs at least one")
    return svg(_figure(found))


def _figure(found: Sequence[tuple[str, Precipitation]]) -> Figure:
    figure = Figure(figsize=(13.5, 4.8))
    left, right = figure.subplots(1, 2, gridspec_kw={"left": 0.065, "right": 0.985, "bottom": 0.12, "top": 0.97, "wspace": 0.17})
    first = found[0][1]
    _draw_density(left, first.edges, first.truth, "truth", color=LIGHT, linewidth=4, zorder=2)
    middles = _middles(first.edges)
    right.plot(middles, first.moistening[1:, 0], color=LIGHT, linewidth=4, label="truth", zorder=2)
    for (name, rain), line in zip(found, LINES, strict=False):
        label = shortened(name, _LONGEST_NAME)
        _draw_density(left, rain.edges, rain.prediction, label, **line)
        right.plot(middles, rain.moistening[1:, 1], label=label, **line)
    right.axhline(0, color=MIDDLE, linewidth=0.8)
    left.set(xlabel="precipitation (mm/day)", ylabel="density (share of rows per mm/day)")
    right.set(xlabel="true precipitation (mm/day)", ylabel="mean moisture tendency of the column (kg/m²/day)")
    # an axis on which nothing lies has no logarithm: no row rains, or the truth tells no masses
    if any(np.isfinite(line.get_ydata()).any() for line in left.lines):
        left.set(xscale="log", yscale="log")
    if np.isfinite(first.moistening[1:]).any():
        right.set(xscale="log")
    for axes in (left, right):
        dress(axes)
        axes.legend(frameon=False, fontsize=8.5)
    return figure


def _draw_density(axes: Axes, edges: np.ndarray, counts: np.ndarray, label: str, **line: object) -> None:
    """Rows of the first bin, which begins at 0, are told in words."""
    share = counts / max(counts.sum(), 1)
    density = np.where(counts[1:] > 0, share[1:] / np.diff(edges[1:]), np.nan)
    axes.plot(_middles(edges), density, label=f"{label}: {share[0]:.1%} below {edges[1]:g} mm/day", **line)  # type: ignore[arg-type]


def _middles(edges: np.ndarray) -> np.ndarray:
    """Geometric middles of all bins but the first."""
    return np.sqrt(edges[1:-1] * edges[2:])
