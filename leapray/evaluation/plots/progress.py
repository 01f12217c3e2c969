"""How a sweep went: what each trial reached in the order in which they ended, and the best so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from leapray.console import digits
from leapray.evaluation.plots.style import BOLD, DARK, MIDDLE, STAR, dress, entitle, headline, png, score_limits
from leapray.evaluation.plots.trials import FINISHED, STOPPED, UNSCORED, Tried, best_of
from leapray.recipe import Select

_FAR_RIGHT = 0.85
"""Beyond this share of the trials words stand at the left of their point."""


def best_so_far(trials: Sequence[Tried], title: str = "", select: Select = "skill") -> bytes:
    """A PNG of the best validation score of every trial, in the order in which they ended, and of the best up to each.

    ``select`` says which score it is. Raises ValueError when no trial has one.
    """
    return png(_figure(trials, title, select))


def _figure(trials: Sequence[Tried], title: str, select: Select = "skill") -> Figure:
    best = best_of(trials)
    scores = np.array([trial.score for trial in trials])
    low, high = score_limits(scores.tolist())
    figure = Figure(figsize=(9, 4.6), dpi=120)
    axes = figure.add_axes((0.115, 0.12, 0.865, 0.7))
    axes.set(xlim=(0.5, len(trials) + 0.5), ylim=(low, high))
    axes.set_xlabel("trials ended")
    axes.set_ylabel(f"{headline(select)}\n(best validation)")
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    dress(axes)
    _draw_best(axes, scores, best)
    _draw_trials(axes, trials, scores)
    axes.legend(frameon=False, fontsize=9, ncols=5, columnspacing=1.4, loc="lower left", bbox_to_anchor=(-0.01, 1.0))
    entitle(figure, title, 0.02)
    return figure


def _draw_best(axes: Axes, scores: np.ndarray, best: int) -> None:
    running = np.maximum.accumulate(scores)
    known = np.isfinite(running)
    axes.step(np.flatnonzero(known) + 1, running[known], where="post", color=DARK, linewidth=2, label="best so far")
    axes.plot(best + 1, scores[best], "*", color=STAR, markersize=16, markeredgecolor="black", zorder=4)
    offset, side = ((-9, -13), "right") if best + 1 > _FAR_RIGHT * len(scores) else ((9, -13), "left")
    axes.annotate(digits(scores[best]), (best + 1, scores[best]), offset, textcoords="offset points", ha=side, fontsize=10, **BOLD)


def _draw_trials(axes: Axes, trials: Sequence[Tried], scores: np.ndarray) -> None:
    """A mark for each trial; those below the axis and those without a score stand at its foot."""
    low, high = axes.get_ylim()
    foot = np.full(len(scores), low + 0.02 * (high - low))
    states = np.array([trial.state for trial in trials])
    below = (scores < low) & (states != UNSCORED)
    for label, chosen, heights, marker, face, edge in (
        (FINISHED, (states == FINISHED) & ~below, scores, "o", DARK, DARK),
        (STOPPED, (states == STOPPED) & ~below, scores, "o", "white", MIDDLE),
        ("below the axis", below, foot, "v", MIDDLE, MIDDLE),
        (UNSCORED, states == UNSCORED, foot, "x", MIDDLE, MIDDLE),
    ):
        if chosen.any():
            look: dict[str, Any] = {"markersize": 6.5, "markerfacecolor": face, "markeredgecolor": edge, "zorder": 3}
            axes.plot(np.flatnonzero(chosen) + 1, heights[chosen], marker, label=f"{label} ({chosen.sum()})", **look)
