"""Two evaluations of the same rows side by side: what B gains over A, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from leapray import storage
from leapray.climsim.schema import Targets
from leapray.errors import UserError
from leapray.evaluation.comparison import Comparison, compare_evaluations
from leapray.evaluation.intervals import LEVEL, Difference
from leapray.evaluation.plots.levels import Curve, difference_profiles, skill_profiles
from leapray.evaluation.plots.surface import scalar_bars
from leapray.evaluation.report.page import Cell, Picture, Section, Table, counted, figure, render, span, text, written
from leapray.evaluation.report.skill import drawn, summary
from leapray.evaluation.report.write import FILE
from leapray.evaluation.results import FILE as NUMBERS
from leapray.evaluation.results import Evaluation, read_evaluations

_HEADER = ("column", "difference", f"{LEVEL:.0%} interval", "by the interval")
_MOST_COLUMNS = 10
"""Columns that the tables of gains and losses show."""


def compare_report(directory: str, a: Sequence[Evaluation], b: Sequence[Evaluation], names: tuple[str, str]) -> str:
    """Write ``report.html`` into ``directory``, the first of ``b`` against the first of ``a``, and return its URL.

    ``names`` are what the two are called; what stands beside them is named below theirs. Raises UserError when they are not of the same
    rows, ValueError when one of them is empty.
    """
    if not (a and b):
        raise ValueError("a comparison needs an evaluation on each side")
    base, other = replace(a[0], name=names[0]), replace(b[0], name=names[1])
    found = compare_evaluations(base, other)
    beside = [replace(one, name=f"{one.name} ({name})") for evaluations, name in zip((a, b), names, strict=True) for one in evaluations[1:]]
    sections = [_differences(found), _levels(base, other, found), _columns(base.targets, found), summary([base, other, *beside])]
    lead = f"{names[1]} less {names[0]}: {_sentence(found.headlines['skill'])} in skill on {counted(found.rows, 'row')}."
    url = storage.join(directory, FILE)
    storage.write_bytes(url, render(f"{names[1]} against {names[0]}", lead, sections).encode())
    return url


def compare_reports(directory: str, evaluations: Sequence[str]) -> str:
    """:func:`compare_report` of two directories that ``leapray evaluate`` wrote. Raises UserError for others, and for more or fewer."""
    if len(evaluations) != 2:
        raise UserError(f"a report compares two evaluations, and got {len(evaluations)}: {', '.join(evaluations)}")
    base, other = storage.short_names([storage.absolute(url) for url in evaluations])
    if storage.exists(storage.join(directory, NUMBERS)):
        raise UserError(f"{directory}: holds an evaluation, whose report would be lost; choose another place")
    a, b = (read_evaluations(url) for url in evaluations)
    return compare_report(directory, a, b, (base, other))


def _sentence(by: Difference) -> str:
    within = f", {by.level:.0%} interval {written(by.low, '+')} to {written(by.high, '+')}," if np.isfinite(by.low) else ""
    return f"{written(by.value, '+')}{within}"


def _differences(found: Comparison) -> Section:
    words = [f"Each is the score of {found.other} less that of {found.base}.", drawn(found.days)]
    if not np.isfinite(found.headlines["skill"].low):
        words = [f"Each is the score of {found.other} less that of {found.base}. Rows of fewer than two days tell no intervals."]
    tables = [
        _table("Mean scores over columns", found.headlines),
        _table("Mean skill over the learned columns of a group", found.groups),
        _table("Mean skill over the learned columns of a variable", found.variables),
    ]
    return Section("differences", "Differences", words, tables)


def _table(caption: str, found: Mapping[str, Difference]) -> Table:
    rows = [[text(name), *_cells(by.value, by.low, by.high)] for name, by in found.items()]
    return Table(caption, ("", *_HEADER[1:]), rows)


def _cells(value: float, low: float, high: float) -> list[Cell]:
    if not np.isfinite([low, high]).all():
        return [figure(value, "+"), Cell(""), Cell("")]
    better = "better" if low > 0 else "worse" if high < 0 else "not told apart"
    return [figure(value, "+"), span(low, high, "+"), text(better)]


def _levels(base: Evaluation, other: Evaluation, found: Comparison) -> Section:
    scores = [evaluation.moments.score() for evaluation in (base, other)]
    curves = [Curve(one.name, score.skill_by_column) for one, score in zip((base, other), scores, strict=True)]
    attainable = scores[0].attainable_by_column
    band = np.stack([found.columns.low, found.columns.high])
    both = f"{base.name} and {other.name}"
    gained = Curve(f"{other.name} less {base.name}", found.columns.value, band)
    targets, pictures = base.targets, []
    if targets.profiles:
        told = f"Skill and attainable skill against pressure of the tendencies, for {both}"
        difference = f"Difference in skill against pressure, {gained.name}, with the band of its interval"
        pictures += [Picture(skill_profiles(targets, curves, attainable), told), Picture(difference_profiles(targets, gained), difference)]
    if targets.scalars:
        pictures.append(Picture(scalar_bars(targets, curves, attainable), f"Skill of the surface fluxes as bars, for {both}"))
    words = [f"Bands hold {LEVEL:.0%} for each level by itself: of many levels a few lie beyond by chance."]
    return Section("levels", "Skill by variable and level", words, pictures)


def _columns(targets: Targets, found: Comparison) -> Section:
    order = np.argsort(found.columns.value, kind="stable")
    gains = [index for index in order[::-1][:_MOST_COLUMNS].tolist() if found.columns.value[index] > 0]
    losses = [index for index in order[:_MOST_COLUMNS].tolist() if found.columns.value[index] < 0]
    content = [
        Table(caption, _HEADER, [_column_row(targets, found, index) for index in indices])
        for caption, indices in ((f"Most skill gained by {found.other}", gains), (f"Most skill lost by {found.other}", losses))
        if indices
    ]
    words = ["The extremes of so many columns are chance in part."] if content else ["No column differs."]
    return Section("columns", "Columns that differ most", words, content)


def _column_row(targets: Targets, found: Comparison, index: int) -> list[Cell]:
    ends = (found.columns.value[index], found.columns.low[index], found.columns.high[index])
    return [text(targets.columns[index]), *_cells(*map(float, ends))]
