"""The learning curve of a training: losses and validation skill over its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from leapray.console import digits
from leapray.evaluation.plots.style import (
    BELOW,
    DARK,
    LIGHT,
    MIDDLE,
    STAR,
    dress,
    headline,
    mark_outside,
    png,
    shortened,
)

Record = Mapping[str, Any]

_GROUP_LINES = (
    ("#d55e00", "-"),
    ("#0072b2", "-"),
    ("#56b4e9", "--"),
    ("#009e73", "-."),
    ("#b07aa1", ":"),
    ("#7a4b94", (0, (5, 1))),
    ("#6b6b6b", (0, (3, 1, 1, 1))),
)
"""Colours that colour-blind readers tell apart, and dashes for those who print in grey."""
_LOG_SPAN = 10
"""A loss that spans more than this factor is drawn on a logarithmic axis."""

_SHOWN_LOSSES, _FAR, _MARGIN = 0.995, 3, 1.05
"""Share of training losses that is usual; factor above the usual from which a loss lies outside of the axis; room around all."""
_LONGEST_TITLE = 80


def learning_curve(history: Sequence[Record], title: str = "") -> bytes:
    """A PNG of losses and of validation skill over optimizer steps, from a run's ``validation`` records; others are left out.

    Raises ValueError when there is no validation to draw.
    """
    validations = [record for record in history if "val_loss" in record]
    if not validations:
        raise ValueError("a learning curve needs at least one validation record")
    return png(_figure(validations, title))


def _figure(validations: Sequence[Record], title: str) -> Figure:
    figure = Figure(figsize=(12, 4.8), dpi=120)
    # fixed, for a layout that is fitted is drawn several times
    losses, scores = figure.subplots(1, 2, gridspec_kw={"left": 0.06, "right": 0.8, "bottom": 0.12, "top": 0.82, "wspace": 0.2})
    _draw_losses(losses, validations)
    _draw_scores(scores, validations)
    for axes in (losses, scores):
        _dress(axes, validations)
    if title:
        figure.suptitle(shortened(title, _LONGEST_TITLE), x=0.06, ha="left", fontsize=12, fontweight="bold")
    return figure


def _draw_losses(axes: Axes, validations: Sequence[Record]) -> None:
    steps, losses = _training_curve(validations)
    validated = [record["val_loss"] for record in validations]
    axes.plot(steps, losses, color=LIGHT, linewidth=0.9, label="training")
    axes.plot(_steps(validations), validated, color=DARK, linewidth=2, marker="o", markersize=4, label="validation")
    low, high = _loss_limits(losses, validated)
    if low > 0 and high / low > _LOG_SPAN:
        axes.set_yscale("log")
        axes.set_ylim(low / _MARGIN, high * _MARGIN)
    else:
        axes.set_ylim(low - (_MARGIN - 1) * (high - low), high + (_MARGIN - 1) * (high - low))
    mark_outside(axes, _steps(validations), validated, DARK)
    if above := int((losses > high).sum()):
        axes.text(
            0.02, 0.98, f"{above} training losses above, up to {digits(losses.max())}", transform=axes.transAxes, va="top", fontsize=8
        )
    axes.set_ylabel("loss (of scaled targets)")
    axes.legend(frameon=False)


def _loss_limits(training: np.ndarray, validated: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest loss on the axis: without the few highest of training, and without validations far above all others."""
    finite = training[np.isfinite(training)]
    most, usual = (float(np.quantile(finite, share)) if finite.size else 0.0 for share in (1.0, _SHOWN_LOSSES))
    high = most if most <= _FAR * usual else usual
    far = _FAR * max(high, float(np.median(validated)))
    shown = [high, *(value for value in validated if value <= far)]
    low = min([*shown, *finite.tolist()])
    top = max(shown)
    return low, top if top > low else low + max(abs(low), 1.0)


def _training_curve(validations: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and training losses: each record's curve is of equal parts of the steps since the one before, drawn at their middles."""
    bounds = [0, *_steps(validations)]
    steps = []
    for (start, stop), record in zip(pairwise(bounds), validations, strict=True):
        edges = np.linspace(start, stop, len(record["loss_curve"]) + 1)
        steps.append((edges[:-1] + edges[1:]) / 2)
    return np.concatenate(steps), np.concatenate([record["loss_curve"] for record in validations])


def _draw_scores(axes: Axes, validations: Sequence[Record]) -> None:
    steps, skill = _steps(validations), [record["skill"] for record in validations]
    groups = _groups(validations)
    best = int(np.argmax([record["score"] for record in validations]))
    attainable = validations[best]["attainable"]
    axes.set_ylim(*_score_limits([skill, *groups.values(), [attainable]]))
    axes.axhline(attainable, color=LIGHT, linewidth=4, zorder=1, label=f"{digits(attainable)}  attainable")
    axes.plot(steps, skill, color=DARK, linewidth=2.4, marker="o", markersize=4, zorder=3, label=f"{digits(skill[best])}  all learned")
    mark_outside(axes, steps, skill, DARK)
    for (name, values), (color, dashes) in zip(groups.items(), _GROUP_LINES, strict=False):
        marker = "." if len(steps) == 1 else None
        axes.plot(steps, values, color=color, linewidth=1.1, linestyle=dashes, marker=marker, label=f"{digits(values[best])}  {name}")
        mark_outside(axes, steps, values, color, written=0)
    axes.plot(steps[best], skill[best], "*", color=STAR, markersize=16, markeredgecolor="black", zorder=4)
    axes.set_ylabel(f"{headline('skill')} (validation)")
    title = f"Skill at the best step, {steps[best]:,}"
    axes.legend(title=title, alignment="left", frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    axes.text(1.03, 0.0, _beside(validations[best]), transform=axes.transAxes, fontsize=8.5, color=MIDDLE, va="bottom")


def _beside(record: Record) -> str:
    """R2 of a validation in words."""
    lines = [f"R² there: {digits(record['r2'])}"]
    if record.get("r2_varying") is not None:
        lines.append(f"{digits(record['r2_varying'])} over columns that vary")
    lines += [f"{digits(record['r2_median'])} median", f"{record['r2_below_zero']} columns below 0"]
    if record["r2_silent"]:
        lines.append(f"{record['r2_silent']} columns hardly vary")
    return "\n".join(lines)


def _score_limits(curves: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Lowest and highest skill on the axis: down to ``BELOW`` 0, or the best of the middle curve where that is negative."""
    low, high = min(map(min, curves)), max(map(max, curves))
    low = max(low, min(float(np.median([max(curve) for curve in curves])), 0.0) - BELOW)
    margin = 0.05 * max(high - low, 0.1)
    return low - margin, high + margin


def _groups(validations: Sequence[Record]) -> dict[str, list[float]]:
    """Skill of every tendency, and of all surface fluxes together, over the validations."""
    names = list(validations[0]["skill_by_variable"])
    fluxes = [name for name in names if not name.startswith("ptend_")]
    members = {name: [name] for name in names if name not in fluxes} | ({"surface fluxes": fluxes} if fluxes else {})
    return {
        group: [float(np.mean([record["skill_by_variable"][name] for name in names])) for record in validations]
        for group, names in members.items()
    }


def _dress(axes: Axes, validations: Sequence[Record]) -> None:
    """What both panels share: steps below, epochs above."""
    axes.set_xlabel("optimizer steps")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    dress(axes)
    if validations[-1]["epoch"] > 1:
        # the last validation of an epoch is at its end; the one that runs may have come to none yet
        length = max(record["step"] / record["epoch"] for record in validations)
        epochs = axes.secondary_xaxis("top", functions=(lambda step: step / length, lambda epoch: epoch * length))
        epochs.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        epochs.set_xlabel("epochs")


def _steps(validations: Sequence[Record]) -> list[int]:
    return [record["step"] for record in validations]
