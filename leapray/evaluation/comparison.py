"""Two evaluations of the same rows, one less the other, with 95 % intervals by days."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leapray.climsim.calendar import STEPS_PER_DAY, Moment
from leapray.errors import UserError
from leapray.evaluation.intervals import Difference, differences
from leapray.evaluation.metrics import ByColumn
from leapray.evaluation.results import Evaluation


@dataclass(frozen=True)
class ColumnDifferences:
    """Differences of skill by column and the ends of their intervals, each ``(t,)``; ends are NaN where days cannot tell."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """Scores of one evaluation less those of its base: ``headlines``, skill over the learned columns and R2 over the learned, the scored
    and all; skill over the learned columns of ``groups`` of variables and of ``variables``, and of ``columns``.

    Ends of intervals are NaN where days cannot tell.
    """

    base: str
    other: str
    rows: int
    days: int
    headlines: dict[str, Difference]
    groups: dict[str, Difference]
    variables: dict[str, Difference]
    columns: ColumnDifferences


def compare_evaluations(base: Evaluation, other: Evaluation) -> Comparison:
    """``other`` less ``base``, paired: the same days are drawn for both. Raises UserError when they are not of the same rows."""
    targets = base.targets
    learned, everything = targets.learned, np.ones(targets.width, dtype=bool)
    headlines = {"skill": learned, "R² (learned)": learned, "R² (scored)": targets.scored, "R² (all)": everything}
    groups = {group: targets.group(group) for group in targets.groups}
    variables = {name: targets.mask([name]) & learned for name in targets.names}
    by_skill = [headlines["skill"], *groups.values(), *variables.values()]
    by_r2 = [mask for name, mask in headlines.items() if name != "skill"]

    def figures(scores: ByColumn) -> np.ndarray:
        skill, *others = (scores.skill[..., mask].mean(axis=-1) for mask in by_skill)
        means = [skill, *(scores.r2[..., mask].mean(axis=-1) for mask in by_r2), *others]
        return np.concatenate([np.stack(means, axis=-1), scores.skill], axis=-1)

    if base.timed and other.timed and base.moments.blocks.keys() != other.moments.blocks.keys():
        raise UserError(f"{_days(base)} and {_days(other)} are not evaluations of the same rows")
    try:
        found = differences(base.moments, other.moments, figures)
    except ValueError as error:
        raise UserError(f"{base.name} and {other.name} are not evaluations of the same rows: {error}") from error
    named, columns = iter(found), found[len(by_skill) + len(by_r2) :]
    return Comparison(
        base=base.name,
        other=other.name,
        rows=base.rows,
        days=len(base.moments.blocks),
        headlines={name: next(named) for name in headlines},
        groups={name: next(named) for name in groups},
        variables={name: next(named) for name in variables},
        columns=ColumnDifferences(*(np.array([getattr(one, end) for one in columns]) for end in ("value", "low", "high"))),
    )


def _days(evaluation: Evaluation) -> str:
    """The evaluation and the days that it is of, for people."""
    days = sorted(evaluation.moments.blocks)
    first, last = (Moment.of_step(day * STEPS_PER_DAY) for day in (days[0], days[-1]))
    return f"{evaluation.name} (of {len(days)} days from {first.date} to {last.date})"
