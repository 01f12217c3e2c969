"""The scalars at the surface: their skill as bars, and truth against prediction as joint densities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from leapray.climsim.schema import Targets
from leapray.evaluation.plots.levels import MOST, Curve
from leapray.evaluation.plots.quantity import Quantity, scalars
from leapray.evaluation.plots.style import BELOW, DARK, LIGHT, LINES, MIDDLE, ON_LINES, dress, png, score_text, shortened, svg, ticks
from leapray.evaluation.results import Joint

_HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\")
_THICK = 0.8
"""Share of a scalar's room that its bars take."""
_LONGEST_NAME = 40
_COLORS = "cividis_r"


def scalar_bars(targets: Targets, curves: Sequence[Curve], attainable: np.ndarray) -> bytes:
    """An SVG with a bar of skill for each scalar and curve, cut at -0.5, its value beside it, and a line at the attainable ``(t,)``.

    Raises ValueError for too many curves.
    """
    return svg(_bar_figure(targets, curves, attainable))


def joint_densities(targets: Targets, joint: Joint) -> bytes:
    """A PNG with a panel for each scalar: how many rows have which truth and prediction, on a logarithmic scale."""
    return png(_joint_figure(targets, joint))


def _bar_figure(targets: Targets, curves: Sequence[Curve], attainable: np.ndarray) -> Figure:
    if not 0 < len(curves) <= MOST:
        raise ValueError(f"{len(curves)} curves cannot be told apart, expected 1 to {MOST}")
    quantities = scalars(targets)
    height = 1.1 + len(quantities) * (0.2 + 0.16 * len(curves))
    figure = Figure(figsize=(10.5, height))
    room = {"left": 0.36, "right": 0.93, "bottom": 0.5 / height, "top": 1 - 0.4 / height}
    axes = figure.subplots(gridspec_kw=room)
    thick = _THICK / len(curves)
    for index, curve in enumerate(curves):
        skill = np.array([curve.values[quantity.columns][0] for quantity in quantities])
        places = np.arange(len(quantities)) + (index - (len(curves) - 1) / 2) * thick
        color = LINES[index]["color"]
        axes.barh(
            places,
            np.maximum(skill, -BELOW),
            thick,
            color=color if not index else "white",
            edgecolor=color,
            hatch=_HATCHES[index],
            label=shortened(curve.name, _LONGEST_NAME),
        )
        for place, value in zip(places, skill, strict=True):
            axes.text(max(value, 0.0) + 0.008, place, score_text(value), va="center", fontsize=7.5, color=DARK, **ON_LINES)
    most = np.array([attainable[quantity.columns][0] for quantity in quantities])
    axes.vlines(
        most, np.arange(len(quantities)) - 0.5, np.arange(len(quantities)) + 0.5, color=LIGHT, linewidth=4, label="attainable", zorder=0
    )
    axes.axvline(0, color=MIDDLE, linewidth=0.8)
    lowest = min(float(np.nanmin([curve.values[quantity.columns][0] for quantity in quantities])) for curve in curves)
    axes.set_xlim(max(min(lowest, 0.0), -BELOW), max(1.0, float(most.max())) + 0.08)
    axes.set_ylim(len(quantities) - 0.4, -0.6)
    axes.set_yticks(range(len(quantities)), [f"{quantity.words}\n({quantity.symbol})" for quantity in quantities], fontsize=8)
    axes.set_xlabel("skill", fontsize=9)
    dress(axes)
    axes.grid(visible=False, axis="y")
    handles, labels = axes.get_legend_handles_labels()
    order = [*range(1, len(handles)), 0]
    shown = {"handles": [handles[index] for index in order], "labels": [labels[index] for index in order]}
    axes.legend(**shown, loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=len(order), frameon=False, fontsize=9)
    return figure


def _joint_figure(targets: Targets, joint: Joint) -> Figure:
    shown = scalars(targets)
    figure = Figure(figsize=(13.5, 6.9), dpi=140)
    room = {"left": 0.055, "right": 0.92, "bottom": 0.08, "top": 0.95, "wspace": 0.3, "hspace": 0.32}
    panels = figure.subplots(2, -(-len(shown) // 2), squeeze=False, gridspec_kw=room).ravel()
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    scale = LogNorm(1, max(joint.counts.max(), 2))
    for axes, quantity, edges, counts in zip(panels, shown, joint.edges, joint.counts, strict=False):
        _draw_joint(axes, quantity, edges * quantity.factor, counts, scale)
    bar = figure.colorbar(ScalarMappable(scale, _COLORS), cax=figure.add_axes((0.945, 0.08, 0.012, 0.87)))
    bar.set_label("rows in a bin", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def _draw_joint(axes: Axes, quantity: Quantity, edges: np.ndarray, counts: np.ndarray, scale: LogNorm) -> None:
    even = np.allclose(np.diff(edges), edges[1] - edges[0], rtol=1e-6, atol=0)
    if not even and edges[0] <= 0:
        # a logarithmic axis has no 0: the bin of what hardly rains is as wide as the next
        edges = np.concatenate([[edges[1] ** 2 / edges[2]], edges[1:]])
    if counts.max() > 0:
        # truth, the first axis, lies along x
        axes.pcolormesh(edges, edges, np.ma.masked_equal(counts, 0).T, norm=scale, cmap=_COLORS)
    if not even:
        axes.set(xscale="log", yscale="log")
        axes.minorticks_off()
    axes.plot(edges[[0, -1]], edges[[0, -1]], color="white", linewidth=2.2)
    axes.plot(edges[[0, -1]], edges[[0, -1]], color="black", linewidth=0.9, linestyle="--")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(ticks(4) if even else LogLocator(numticks=4))
    axes.set(xlim=edges[[0, -1]], ylim=edges[[0, -1]])
    axes.set_title(quantity.words, fontsize=8, loc="left")
    axes.set_xlabel(f"{quantity.symbol}, truth ({quantity.unit})", fontsize=8.5)
    axes.set_ylabel(f"{quantity.symbol}, prediction ({quantity.unit})", fontsize=8.5)
    axes.tick_params(labelsize=8)
