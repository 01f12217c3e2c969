"""Predictions, those beside them and an ensemble's members against the truth, in one pass over all files.

Values are held a batch at a time where predictions are in the truth's order; ids and row keys are held of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from leapray.climsim.schema import Targets
from leapray.evaluation.accumulate import Batch, Prediction, Truth
from leapray.evaluation.distributions import fair_crps
from leapray.evaluation.matching import Matched
from leapray.evaluation.metrics import TargetStatistics
from leapray.evaluation.results import Evaluation
from leapray.inference.truth import Rows, TruthFiles
from leapray.models.emulator import Physics

Streams = Sequence[tuple[Matched, Prediction]]


@dataclass(frozen=True)
class Sources:
    """URLs of parquet or csv by name: predictions ``given``, the first of them the one that is judged, and its ``members``, before the
    physics. Given ones are in physical units, or submissions with ``weights (t,)``."""

    given: Mapping[str, str]
    members: Mapping[str, str] = field(default_factory=dict)
    weights: np.ndarray | None = None
    statistics: TargetStatistics = field(default_factory=TargetStatistics.of_competition)
    """What skill is measured against."""


def evaluate_files(
    sources: Sources,
    truth: TruthFiles,
    progress: Callable[[int, int], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> list[Evaluation]:
    """An evaluation of each of the given predictions, and of each member, to which the physics is applied here.

    Rows are matched by ``sample_id``, or by row keys where ids begin anew in every file; predictions in another order than the truth are
    held in memory. ``progress`` is called with rows done and rows in all, ``notice`` with one sentence for files of the given
    predictions that are passed over. Raises UserError for rows that are missing, unknown or there twice, and for numbers that are not
    finite.
    """
    targets = sources.statistics.targets
    accumulated = Truth(targets, timed=truth.timed, weighed=truth.has_inputs, grid=truth.grid)
    weights = np.ones(targets.width) if sources.weights is None else sources.weights
    scored = weights > 0
    against = sources.statistics
    given = [
        (Matched(url, truth.keys, targets, truth.whole, notice), Prediction(name, accumulated, against, scored=scored))
        for name, url in sources.given.items()
    ]
    members = [
        (Matched(url, truth.keys, targets, truth.whole), Prediction(name, accumulated, against, whole=False))
        for name, url in sources.members.items()
    ]
    physics, done = Physics(truth.states), 0
    for rows in truth.blocks(states=bool(members)):
        accumulated.take(rows.batch)
        for matched, prediction in given:
            values = matched.take(len(rows.batch))
            prediction.take(rows.batch, values if sources.weights is None else values / np.where(scored, weights, 1.0))
        _take_members(rows, members, given[0][1], physics)
        done += len(rows.batch)
        if progress is not None:
            progress(done, len(truth.keys.ids))
    lacking = (*truth.lacking, *_lacking_of_members(members, truth))
    return [prediction.result(lacking) for _, prediction in (*given, *members)]


def _take_members(rows: Rows, members: Streams, ensemble: Prediction, physics: Physics) -> None:
    """Take in each member's rows, with the physics where the truth tells the states, and the ensemble's CRPS."""
    if not members:
        return
    values = np.stack([_with_physics(physics, matched.take(len(rows.batch)), rows.inputs).T for matched, _ in members])
    for (_, prediction), member in zip(members, values, strict=True):
        prediction.take(rows.batch, member.T)
    if len(members) > 1:
        ensemble.take_crps(rows.batch, _crps(ensemble.targets, rows.batch, values))


@torch.inference_mode()
def _with_physics(physics: Physics, prediction: np.ndarray, inputs: np.ndarray | None) -> np.ndarray:
    if inputs is None:
        return prediction
    corrected: np.ndarray = physics(torch.from_numpy(inputs), torch.from_numpy(prediction)).numpy()
    return corrected


def _crps(targets: Targets, batch: Batch, members: np.ndarray) -> np.ndarray:
    """CRPS ``(n, t)`` of members ``(M, t, n)``, a variable at a time."""
    places = (targets[name] for name in targets.names)
    return np.concatenate([fair_crps(batch.targets.T[place], members[:, place]) for place in places]).T


def _lacking_of_members(members: Streams, truth: TruthFiles) -> list[str]:
    lacking = []
    if members and not truth.has_inputs:
        lacking.append(f"{truth.source} has no inputs: members are scored as they are, without the physics.")
    if len(members) == 1:
        lacking.append("The CRPS needs two members or more.")
    return lacking
