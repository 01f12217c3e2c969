"""Sections on the competition's R2: the summary, levels and scalars, and the worst columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

from leapray.climsim.schema import LEARNED, SCORED, TARGETS
from leapray.evaluation.groups import GROUPS, by_group
from leapray.evaluation.intervals import LEVEL, difference, interval
from leapray.evaluation.plots.levels import MOST, Curve, skill_profiles
from leapray.evaluation.plots.surface import scalar_bars
from leapray.evaluation.report.page import Cell, Picture, Section, Table, count, figure, span, text
from leapray.evaluation.results import Evaluation
from leapray.evaluation.worst import worst_columns

_MEANS = (("learned", int(LEARNED.sum())), ("scored", int(SCORED.sum())), ("all", TARGETS.width))
"""Attributes of a score and the numbers of columns that they are means over."""
_FEW_DAYS = 10


def ordered(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The subject, which comes first, then the others from the best headline down."""
    subject, *others = evaluations
    return [subject, *sorted(others, key=lambda other: other.moments.score().skill, reverse=True)]


def drawn(days: int) -> str:
    """What the intervals from so many days tell."""
    few = " So few days tell little of how sure that is." if days < _FEW_DAYS else ""
    return (
        f"Intervals hold {LEVEL:.0%} and are from drawing these {days} days again, the same for both sides of a difference; they do not "
        f"tell how training again with another seed would differ.{few}"
    )


def summary(evaluations: Sequence[Evaluation]) -> Section:
    """R2 of every evaluation, with intervals and differences from the subject where days are told."""
    subject = evaluations[0]
    learned, percent = int(LEARNED.sum()), f"{LEVEL:.0%}"
    words = [
        "R² is the competition's: by column over all rows, time and place pooled, then the mean over columns. The headline is over the "
        f"{learned} columns that are learned; the others that count are given by physics."
    ]
    if subject.timed and len(subject.moments.blocks) > 1:
        words.append(drawn(len(subject.moments.blocks)))
    header = ["", f"R² ({learned})", f"{percent} within", *(f"R² ({number})" for _, number in _MEANS[1:])]
    header += ["less the subject", f"{percent} within"] if len(evaluations) > 1 else []
    rows = [[*_scores(one), *(_less(one, subject) if len(evaluations) > 1 else ()), *_extent(one)] for one in evaluations]
    headlines = Table("Mean R² over columns", [*header, "rows", "days"], rows, marked=1)
    rows = [[text(one.name), *map(figure, by_group(one.moments.score().r2).values())] for one in evaluations]
    groups = Table("Mean R² over the learned columns of a group of variables", ["", *GROUPS], rows, marked=1)
    return Section("summary", "Summary", words, [headlines, groups])


def levels(evaluations: Sequence[Evaluation]) -> Section:
    """R2 against pressure, and of the scalars, of the subject and the best of the others."""
    curves = [Curve(evaluation.name, evaluation.moments.score().r2) for evaluation in evaluations[:MOST]]
    names = ", ".join(curve.name for curve in curves)
    pictures = [
        Picture(skill_profiles(curves), f"R² against pressure of the six tendencies, for {names}"),
        Picture(scalar_bars(curves), f"R² of the eight surface fluxes as bars, for {names}"),
    ]
    words = ["Levels that the competition ablated, and those where cloud liquid is given by physics, are left out."]
    if len(evaluations) > MOST:
        words.append(f"Drawn are {curves[0].name} and the best {MOST - 1} of the others.")
    return Section("levels", "Skill by variable and level", words, [*pictures, _variable_table(evaluations)])


def worst(subject: Evaluation) -> Section:
    """The learned columns of the lowest R2, with what the numbers say of why."""
    header = ("column", "R²", "standard deviation", "unit", "bias² in the error", "error on the worst day", "what the numbers say")
    rows = [
        (
            text(column.column),
            figure(column.r2),
            figure(column.std),
            text(column.units),
            _percent(column.bias_share),
            _percent(column.worst_day_share),
            text(column.reason),
        )
        for column in worst_columns(subject)
    ]
    words = [
        "The mean over columns lets each count alike: a few that vary hardly, or on few days only, can cost more than all others give."
    ]
    return Section("worst", "Worst columns", words, [Table(f"Learned columns of {subject.name}, the lowest R² first", header, rows)])


def _scores(evaluation: Evaluation) -> list[Cell]:
    found = evaluation.moments.score()
    ends = interval(evaluation.moments) if evaluation.timed else None
    within = span(ends.low, ends.high) if ends else Cell("")
    return [text(evaluation.name), figure(found.learned), within, *(figure(getattr(found, mean)) for mean, _ in _MEANS[1:])]


def _less(evaluation: Evaluation, subject: Evaluation) -> list[Cell]:
    """The headline less the subject's, and its interval where days are told."""
    if evaluation is subject:
        return [Cell(""), Cell("")]
    by = difference(subject.moments, evaluation.moments) if evaluation.timed else None
    value = evaluation.moments.score().skill - subject.moments.score().skill
    return [figure(value, "+"), span(by.low, by.high, "+") if by else Cell("")]


def _extent(evaluation: Evaluation) -> list[Cell]:
    return [count(evaluation.rows), count(len(evaluation.moments.blocks)) if evaluation.timed else Cell("")]


def _variable_table(evaluations: Sequence[Evaluation]) -> Table:
    found = [evaluation.moments.score().by_variable() for evaluation in evaluations]
    rows = [[text(variable.name), text(variable.long_name), *(figure(r2[variable.name]) for r2 in found)] for variable in TARGETS.variables]
    return Table("R² by variable, the mean over its learned columns", ["", "", *(evaluation.name for evaluation in evaluations)], rows)


def _percent(share: float) -> Cell:
    return Cell(f"{share:.0%}", share) if math.isfinite(share) else Cell("")
