"""``scores.json``: an evaluation's figures in plain values, each under its name, for people and programs that do not read arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from leapray.climsim.schema import Targets
from leapray.console import digits
from leapray.evaluation.climsim import unit
from leapray.evaluation.intervals import difference, interval
from leapray.evaluation.metrics import Score
from leapray.evaluation.results import ClimSim, Evaluation
from leapray.evaluation.worst import worst_columns

FILE = "scores.json"
_NAMED = 6
"""Columns that a sentence names."""
_NEAR, _FEW = 0.5, 0.2
"""How far below the median the mean R2 may be until columns decide it, and the share of the columns that can be said to."""


def deciding_columns(score: Score) -> str:
    """A sentence on the learned columns that decide the mean R2, or else on those that hardly vary in these rows; empty without any."""
    ruling, silent = _ruling(score), score.silent
    names = ruling or silent
    if not names:
        return ""
    shown = len(names) if len(names) <= _NAMED + 2 else _NAMED
    listed = ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
    hardly = sum(name in silent for name in names)
    columns = "1 column" if len(names) == 1 else f"{len(names)} columns"
    which = "varies" if len(names) == 1 else "vary"
    if hardly == len(names):
        columns += f" that hardly {which} in these rows"
    elif hardly:
        columns += f", of which {hardly} hardly vary in these rows"
    skill = f"Skill is {digits(score.skill)} of an attainable {digits(score.attainable)}."
    return f"R² {'is dominated by' if ruling else 'counts'} {columns}: {listed}. {skill}"


def _ruling(score: Score) -> list[str]:
    """The fewest learned columns of the lowest R2 without which the mean is near the median, where they are few."""
    places = np.flatnonzero(score.targets.learned)
    order = places[np.argsort(score.r2[places], kind="stable")]
    low = score.r2_median - _NEAR
    for count in range(int(_FEW * len(order))):
        if score.r2[order[count:]].mean() >= low:
            return [score.targets.columns[place] for place in order[:count]]
    return []


def scores(evaluations: Sequence[Evaluation], sources: Mapping[str, str]) -> dict[str, Any]:
    """Figures of the first evaluation, and of the others ``beside`` it, each with its ``difference``: its skill less the first's.

    ``sources`` are the files by what they are. What is not known, or no number, is None.
    """
    subject, *others = evaluations
    score = subject.moments.score()
    by_column = {
        column: {"skill": skill, "attainable": attainable, "r2": r2}
        for column, skill, attainable, r2 in zip(
            score.targets.columns,
            *(values.tolist() for values in (score.skill_by_column, score.attainable_by_column, score.r2)),
            strict=True,
        )
    }
    beside = {other.name: _figures(other) | {"difference": _difference(subject, other)} for other in others}
    found = {
        "name": subject.name,
        "sources": dict(sources),
        **_figures(subject),
        "statistics": score.statistics.origin,
        "silent": score.silent,
        "by_column": by_column,
        "worst": [asdict(column) for column in worst_columns(subject)],
        "lacking": list(subject.lacking),
        "beside": beside,
    }
    plain: dict[str, Any] = _plain(found)
    return plain


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    score = evaluation.moments.score()
    within = interval(evaluation.moments)
    return {
        "rows": evaluation.rows,
        "days": len(evaluation.moments.blocks) if evaluation.timed else None,
        **score.summary(),
        "interval": None if within is None else asdict(within),
        "skill_by_group": score.targets.by_group(score.skill_by_column),
        "skill_by_variable": score.skill_by_variable(),
        "r2_by_group": score.targets.by_group(score.r2),
        "r2_by_variable": score.by_variable(),
        "climsim": None if evaluation.climsim is None else _climsim(evaluation.climsim, score.targets),
        "crps": None if evaluation.crps is None else _crps(evaluation),
    }


def _climsim(metrics: ClimSim, targets: Targets) -> dict[str, Any]:
    return {"units": {one.name: unit(one) for one in targets.variables}, "by_variable": metrics.by_variable(targets)}


def _crps(evaluation: Evaluation) -> dict[str, Any]:
    """In physical units, mean over the levels of each variable."""
    assert evaluation.crps is not None
    return {
        variable.name: {"value": float(evaluation.crps[evaluation.targets[variable.name]].mean()), "units": variable.units}
        for variable in evaluation.targets.variables
    }


def _difference(subject: Evaluation, other: Evaluation) -> dict[str, Any] | None:
    found = difference(subject.moments, other.moments)
    return None if found is None else asdict(found)


def _plain(value: Any) -> Any:
    """Nested plain values with None for what is no finite number, since json knows none."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
