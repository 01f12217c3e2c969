"""What the plots share: colours, limits, words. Figures are drawn without pyplot, so that no state is shared and no display is needed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from leapray.console import digits
from leapray.recipe import Select

DARK, MIDDLE, LIGHT, PALE, STAR = "#12263f", "#5b6b80", "#9aa0a8", "#dddddd", "#ffc20a"
ON_LINES: dict[str, Any] = {"bbox": {"boxstyle": "square,pad=0.12", "facecolor": "white", "alpha": 0.85, "linewidth": 0}}
"""Words that stand on lines."""
BOLD: dict[str, Any] = {"fontweight": "bold", "color": DARK, "zorder": 6, **ON_LINES}
"""The words of the best."""
LINES: tuple[dict[str, Any], ...] = (
    {"color": DARK, "linestyle": "-", "linewidth": 1.8, "zorder": 4},
    {"color": "#d55e00", "linestyle": (0, (5, 1.5)), "linewidth": 1.3, "zorder": 3},
    {"color": "#0072b2", "linestyle": "-.", "linewidth": 1.3, "zorder": 3},
    {"color": "#009e73", "linestyle": ":", "linewidth": 1.6, "zorder": 3},
    {"color": "#b07aa1", "linestyle": (0, (3, 1, 1, 1, 1, 1)), "linewidth": 1.3, "zorder": 3},
)
"""Lines of a subject and of what stands beside it: colours that colour-blind readers tell apart, and dashes for those who print in grey."""
BELOW = 0.5
"""How far below the best score, or 0, an axis reaches: one bad column can take R2 to minus a million."""
_REACH = 4
"""An axis reaches down by this many times the distance from the best to the median, so that one poor result does not flatten the others."""
_NOTHING = 1e-9
"""Scores below this are rounding."""
_LEAST_REACH, _LEAST_MARGIN = 0.02, 0.004


def score_text(value: float, sign: str = "") -> str:
    """Skill or R2 in three digits; 0 for what is nothing but rounding, such as the skill of the training mean."""
    return digits(value if abs(value) >= _NOTHING else 0.0, sign)


def headline(select: Select) -> str:
    """The score that chooses, as an axis names it."""
    return f"{'skill' if select == 'skill' else 'R²'} over the learned columns"


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def svg(figure: Figure) -> bytes:
    """The figure as an SVG file, for lines and words; the same figure gives the same bytes."""
    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "leapray"}):
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    return content.getvalue()


def entitle(figure: Figure, title: str, left: float) -> None:
    """A title at the top, beginning at ``left`` as a share of the width."""
    if title:
        inch = 1 / figure.get_figheight()
        figure.suptitle(plain(title), x=left, y=1 - 0.12 * inch, va="top", ha="left", fontsize=12, fontweight="bold")


def dress(axes: Axes) -> None:
    """Grid behind, no frame at the right."""
    axes.grid(color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines["right"].set_visible(False)


def score_limits(scores: Sequence[float], around: Sequence[float] = ()) -> tuple[float, float]:
    """Lowest and highest score of an axis on which the best half of the scores can be told apart; those far below it stay outside.

    ``around`` are other values to be seen, such as ends of intervals: they widen the axis at most to twice its depth.
    """
    finite = np.array([score for score in scores if np.isfinite(score)] or [0.0])
    best, median = finite.max(), float(np.median(finite))
    floor = max(min(best, 0.0) - BELOW, median - max(_REACH * (best - median), _LEAST_REACH))
    shown = np.array([*finite[finite >= floor], *(value for value in around if value >= 2 * floor - best)])
    margin = max(0.05 * np.ptp(shown), _LEAST_MARGIN)
    return float(shown.min() - margin), float(shown.max() + margin)


def mark_outside(axes: Axes, places: Sequence[float], values: Sequence[float], color: str, written: int = 3) -> None:
    """Triangles at the lower and upper edge where values lie beyond the axis, and beside the first ``written`` of them the value."""
    low, high = axes.get_ylim()
    for place, value in zip(places, values, strict=True):
        if low <= value <= high or not np.isfinite(value):
            continue
        edge, marker, offset, side = (0.0, "v", 5, "bottom") if value < low else (1.0, "^", -5, "top")
        across = axes.get_xaxis_transform()
        axes.plot(place, edge, marker, color=color, markersize=7, markeredgecolor="white", transform=across, clip_on=False, zorder=5)
        if written > 0:
            look: dict[str, Any] = {"va": side, "fontsize": 8, "color": color, "zorder": 6} | ON_LINES
            axes.annotate(digits(value), (place, edge), (6, offset), xycoords=across, textcoords="offset points", **look)
        written -= 1


def ticks(count: int) -> MaxNLocator:
    """At most so many intervals between round numbers."""
    return MaxNLocator(count, steps=(1, 2, 2.5, 5, 10))


def plain(text: str) -> str:
    """The text as matplotlib shows it letter by letter, without formulas."""
    return text.replace("$", r"\$")


def shortened(text: str, length: int) -> str:
    """The text, its middle left out where it is longer, as matplotlib shows it letter by letter: no formula, and no name that it hides."""
    half = (length - 1) // 2
    short = text if len(text) <= length else f"{text[:half]}…{text[-half:]}"
    # a legend leaves out what begins with an underscore
    return plain(short).replace("_", "\N{ZERO WIDTH SPACE}_", int(short.startswith("_")))
