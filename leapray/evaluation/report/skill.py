"""Sections on the scores: the summary, levels and scalars, and the worst columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from leapray.climsim.schema import Targets
from leapray.errors import UserError
from leapray.evaluation.intervals import LEVEL, difference, interval
from leapray.evaluation.metrics import Score
from leapray.evaluation.plots.levels import MOST, Curve, r2_profiles, skill_profiles
from leapray.evaluation.plots.surface import scalar_bars
from leapray.evaluation.report.page import Cell, Picture, Section, Table, count, figure, score, span, text, written
from leapray.evaluation.results import Evaluation
from leapray.evaluation.summary import deciding_columns
from leapray.evaluation.worst import worst_columns

BASELINES = ("ridge", "climatology", "linear")
"""Names of predictions that are drawn beside every subject."""
_WITHIN = f"{LEVEL:.0%} interval"
_FEW_DAYS = 10


def ordered(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The subject, which comes first, then the others from the most skill down."""
    subject, *others = evaluations
    return [subject, *sorted(others, key=lambda other: other.moments.score().skill, reverse=True)]


def pictured(evaluations: Sequence[Evaluation], names: Sequence[str] | None) -> list[Evaluation]:
    """What is drawn of :func:`ordered` evaluations: the subject, and the others of these ``names``, or where they are None the best other
    model and the baselines.

    Raises UserError for an unknown name, and for more than lines can be told apart.
    """
    subject, *others = evaluations
    if names is None:
        models = [other for other in others if other.name not in BASELINES]
        chosen = {other.name for other in [*models[:1], *(other for other in others if other.name in BASELINES)]}
        return [subject, *(other for other in others if other.name in chosen)][:MOST]
    require_drawable(names, [one.name for one in evaluations])
    return [subject, *(other for other in others if other.name in names)]


def require_drawable(names: Sequence[str], known: Sequence[str]) -> None:
    """Raises UserError unless ``names`` to be drawn are among those that are ``known``, of which the first is always drawn, and few."""
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"draw: {unknown[0]!r} is none of the predictions, which are {', '.join(known)}")
    if len({known[0], *names}) > MOST:
        raise UserError(f"draw: {len({known[0], *names})} predictions cannot be told apart in one plot; give {MOST - 1} at most")


def drawn(days: int) -> str:
    """What the intervals from so many days tell."""
    few = " So few days tell little of how sure that is." if days < _FEW_DAYS else ""
    return (
        f"Intervals hold {LEVEL:.0%} and are from drawing these {days} days again, the same for both sides of a difference; they do not "
        f"tell how training again with another seed would differ.{few}"
    )


def summary(evaluations: Sequence[Evaluation]) -> Section:
    """Skill and R2 of every evaluation, with intervals and differences from the subject where days are told."""
    subject = evaluations[0]
    found, targets = subject.moments.score(), subject.targets
    learned = int(targets.learned.sum())
    words = [
        "Skill of a column is (squared error of the training mean less squared error) / variance, at least \N{MINUS SIGN}1; variance is "
        "that of these rows or of the training rows, whichever is larger. The headline is the mean over the "
        f"{learned} learned columns. The training mean has 0; a perfect emulator has {written(found.attainable)} on these rows, "
        f"the attainable skill. It is measured against {found.statistics.origin}.",
        "R² is the competition's: by column over all rows, time and place pooled, then the mean over columns.",
    ]
    if sentence := deciding_columns(found):
        words.append(sentence)
    if subject.timed and len(subject.moments.blocks) > 1:
        words.append(drawn(len(subject.moments.blocks)))
    several = len(evaluations) > 1
    header = ["", "skill", "attainable", _WITHIN, *(["less the subject", _WITHIN] if several else []), "rows", "days"]
    rows = [[*_skill(one), *(_less(one, subject) if several else ()), *_extent(one)] for one in evaluations]
    tables = [
        Table(f"Mean skill over the {learned} learned columns", header, rows, marked=1),
        Table("R² beside it", _r2_header(targets), [_r2(one) for one in evaluations], marked=1),
        _by_group("Mean skill over the learned columns of a group of variables", evaluations, lambda one: one.skill_by_column, found),
        _by_group("Mean R² over the learned columns of a group of variables", evaluations, lambda one: one.r2),
    ]
    return Section("summary", "Summary", words, tables)


def levels(evaluations: Sequence[Evaluation], names: Sequence[str] | None = None) -> Section:
    """Skill and R2 against pressure, and of the scalars, of the evaluations that are drawn, and by variable of all."""
    shown, targets = pictured(evaluations, names), evaluations[0].targets
    scores = [one.moments.score() for one in shown]
    skill = [Curve(one.name, score.skill_by_column) for one, score in zip(shown, scores, strict=True)]
    r2 = [Curve(one.name, score.r2) for one, score in zip(shown, scores, strict=True)]
    attainable, of = scores[0].attainable_by_column, ", ".join(one.name for one in shown)
    pictures = []
    if targets.profiles:
        told = f"Skill and attainable skill against pressure of the tendencies, for {of}"
        pictures.append(Picture(skill_profiles(targets, skill, attainable), told))
    if targets.scalars:
        pictures.append(Picture(scalar_bars(targets, skill, attainable), f"Skill of the surface fluxes as bars, for {of}"))
    if targets.profiles:
        pictures.append(Picture(r2_profiles(targets, r2), f"R² against pressure of the tendencies, for {of}"))
    words = [
        "Levels that the competition ablated, and those where cloud liquid is given by physics, are left out. "
        "Triangles at the edge of a plot mark values beyond it."
    ]
    if len(evaluations) > len(shown):
        words.append(f"Drawn are {of}; the tables list all {len(evaluations)}.")
    found = [(one.name, one.moments.score()) for one in evaluations]
    by_skill = [*((name, score.skill_by_variable()) for name, score in found), ("attainable", scores[0].attainable_by_variable())]
    tables = [
        _by_variable(targets, "Skill by variable, the mean over its learned columns", by_skill),
        _by_variable(targets, "R² by variable, the mean over its learned columns", [(name, score.by_variable()) for name, score in found]),
    ]
    return Section("levels", "Skill by variable and level", words, [*pictures, *tables])


def worst(subject: Evaluation) -> Section:
    """The learned columns that cost the most skill, with what the numbers say of why."""
    header = ("column", "skill", "attainable", "R²", "standard deviation", "unit", "bias² in the error", "error on the worst day", "why")
    rows = [
        (
            text(column.column),
            score(column.skill),
            score(column.attainable),
            score(column.r2),
            figure(column.std),
            text(column.units),
            _percent(column.bias_share),
            _percent(column.worst_day_share),
            text(column.reason),
        )
        for column in worst_columns(subject)
    ]
    words = ["These columns have the largest distance between attainable skill and skill, and so cost the mean the most."]
    return Section("worst", "Worst columns", words, [Table(f"Learned columns of {subject.name}, the most costly first", header, rows)])


def _skill(evaluation: Evaluation) -> list[Cell]:
    found = evaluation.moments.score()
    ends = interval(evaluation.moments) if evaluation.timed else None
    within = span(ends.low, ends.high) if ends else Cell("")
    return [text(evaluation.name), score(found.skill), score(found.attainable), within]


def _r2(evaluation: Evaluation) -> list[Cell]:
    found = evaluation.moments.score()
    means = (found.learned, found.r2_varying, found.r2_median)
    return [text(evaluation.name), *map(score, means), count(found.below_zero), score(found.scored), score(found.all)]


def _r2_header(targets: Targets) -> list[str]:
    learned, scored = (f"R² ({int(mask.sum())} {what})" for mask, what in ((targets.learned, "learned"), (targets.scored, "scored")))
    return ["", learned, "those that vary", "median", "columns below 0", scored, f"R² ({targets.width})"]


def _less(evaluation: Evaluation, subject: Evaluation) -> list[Cell]:
    """The skill less the subject's, and its interval where days are told."""
    if evaluation is subject:
        return [Cell(""), Cell("")]
    by = difference(subject.moments, evaluation.moments) if evaluation.timed else None
    value = evaluation.moments.score().skill - subject.moments.score().skill
    return [score(value, "+"), span(by.low, by.high, "+") if by else Cell("")]


def _extent(evaluation: Evaluation) -> list[Cell]:
    return [count(evaluation.rows), count(len(evaluation.moments.blocks)) if evaluation.timed else Cell("")]


def _by_group(caption: str, evaluations: Sequence[Evaluation], of: Callable[[Score], np.ndarray], attainable: Score | None = None) -> Table:
    """A row for each evaluation, and where it is given, a last one for the attainable skill."""
    rows = [[text(one.name), *map(score, one.targets.by_group(of(one.moments.score())).values())] for one in evaluations]
    if attainable is not None:
        rows.append([text("attainable"), *map(score, attainable.targets.by_group(attainable.attainable_by_column).values())])
    return Table(caption, ["", *evaluations[0].targets.groups], rows, marked=1)


def _by_variable(targets: Targets, caption: str, found: Sequence[tuple[str, Mapping[str, float]]]) -> Table:
    """A column for each of the scores that are found under their names, by variable."""
    rows = [[text(one.name), text(one.long_name), *(score(values[one.name]) for _, values in found)] for one in targets.variables]
    return Table(caption, ["", "", *(name for name, _ in found)], rows)


def _percent(share: float) -> Cell:
    return Cell(f"{share:.0%}", share) if math.isfinite(share) else Cell("")
