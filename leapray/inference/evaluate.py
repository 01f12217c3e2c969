"""``leapray evaluate``: predictions, others beside them and an ensemble's members against the truth, as numbers and as a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

import leapray
from leapray import storage
from leapray.data.flat import Selection
from leapray.data.transform import Transform
from leapray.errors import UserError
from leapray.evaluation.metrics import TargetStatistics
from leapray.evaluation.report import REPORT, Material, require_drawable, write_report
from leapray.evaluation.results import Evaluation, write_evaluations
from leapray.evaluation.sample import read_sample
from leapray.evaluation.summary import FILE, scores
from leapray.inference.parts import MEMBERS, read_statistics
from leapray.inference.streams import Sources, evaluate_files
from leapray.inference.truth import TruthFiles
from leapray.inference.weights import read_weights
from leapray.models.directory import INFO_FILE, load_info
from leapray.training.comparison import VARIANTS, read_variants
from leapray.training.run import Run

ENSEMBLE = "ensemble"
"""What predictions with members are called."""
_WEIGHTED = 1e6
"""Times the spread of a column that weighted values have and physical ones do not: the old weights are 1 over a standard deviation."""


def evaluate(
    predictions: str,
    truth: str,
    destination: str,
    *,
    selection: Selection | None = None,
    kind: str | None = None,
    bad_rows: Literal["refuse", "drop"] = "refuse",
    beside: Mapping[str, str] | None = None,
    members: bool | None = None,
    grid: str | None = None,
    sample_submission: str | None = None,
    runs: Mapping[str, str] | None = None,
    variants: Sequence[str] = (),
    ensemble: str | None = None,
    report: bool = True,
    draw: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> list[Evaluation]:
    """Evaluate predictions, then those ``beside`` them by name, then the members; write numbers, ``scores.json`` and a report.

    ``selection`` are the rows of the truth that count, ``kind`` is what they are taken for where no column says so; with ``bad_rows``
    ``drop`` those that hold NaN, Inf or fill values are left out, and predictions of them. Members lie in
    the predictions' ``_members``; None takes them if they are there. With a ``sample_submission``, predictions and those beside them are
    submissions with its weights. ``grid`` is a netCDF file with the lat, lon and area of the columns, which high-res needs. The report also
    shows ``runs`` by name, the ``variants`` of finetunings (their directories or ``variants.json``) and the ``ensemble.json``; its plots
    show the predictions, and those beside them that ``draw`` names (see :func:`write_report` for the default). ``progress`` is called with
    rows done and rows in all. Raises UserError for rows that are missing, unknown or there twice, for numbers that are not
    finite, for what is to be shown and not there, and for a destination with scores that are no evaluation's.
    """
    replaced = _require_evaluation(destination)
    material = _material(runs or {}, variants, ensemble)
    own = _members(predictions, members)
    subject = ENSEMBLE if own else storage.short_names([storage.absolute(predictions)])[0]
    statistics = _statistics(predictions, list((runs or {}).values()))
    weights = None if sample_submission is None else read_sample(sample_submission, statistics.targets).weights
    sources = Sources({subject: predictions, **(beside or {})}, own, weights, statistics)
    _require_names([subject, *(beside or {}), *own])
    require_drawable(draw or (), [subject, *(beside or {}), *own])
    files = TruthFiles(truth, statistics.targets, selection, grid, notice, kind=kind, bad_rows=bad_rows)
    evaluations = evaluate_files(sources, files, progress, notice)
    named = {"predictions": predictions, "truth": f"{truth}{selection or ''}"} | {
        f"beside {name}": url for name, url in (beside or {}).items()
    }
    if weights is None and notice is not None and _weighted(evaluations[0]):
        notice(f"{predictions}: looks like a submission with weights; give --sample-submission")
    if replaced is not None and replaced != named and notice is not None:
        notice(f"{destination}: the evaluation of {replaced.get('predictions')} that lay there is replaced")
    # one of an earlier evaluation must not lie beside these numbers
    storage.remove(storage.join(destination, REPORT))
    write_evaluations(destination, evaluations)
    storage.write_json(storage.join(destination, FILE), scores(evaluations, named))
    if report:
        provenance = named | {"leapray": leapray.__version__}
        write_report(destination, evaluations, Material(f"Evaluation of {subject}", provenance=provenance, **material), draw)
    return evaluations


def _statistics(predictions: str, runs: Sequence[str]) -> TargetStatistics:
    """What skill is measured against: the rows that the first run, or the predictions' model, was trained on, else the competition's."""
    for run in runs:
        model = Run(run).model
        if storage.exists(storage.join(model, INFO_FILE)):
            return Transform.from_dict(load_info(model).transform, f"{model}: transform").statistics
    return read_statistics(predictions) or TargetStatistics.of_competition()


def _weighted(evaluation: Evaluation) -> bool:
    """Whether most columns are predicted beyond all spread, as the values of a weighted submission are."""
    moments, learned = evaluation.moments.total(), evaluation.targets.learned
    spread = np.maximum(moments.deviation / moments.count, evaluation.moments.statistics.variance)[learned]
    return bool(np.median(moments.error[learned] / moments.count / np.where(spread > 0, spread, np.inf)) > _WEIGHTED)


def _require_evaluation(destination: str) -> dict[str, str] | None:
    """What an evaluation that lies in a directory is of; None if there is none. Raises UserError for other scores or another report."""
    storage.require_folder(destination)
    url, report = storage.join(destination, FILE), storage.join(destination, REPORT)
    if not storage.exists(url):
        if storage.exists(report):
            raise UserError(f"{report}: is no evaluation's, expected an empty place for one")
        return None
    found = storage.read_json(url)
    if not (isinstance(found, dict) and isinstance(found.get("sources"), dict)):
        raise UserError(f"{url}: is no evaluation's, expected an empty place for one")
    sources: dict[str, str] = found["sources"]
    return sources


def _members(predictions: str, wanted: bool | None) -> dict[str, str]:
    """URL of each member's predictions by name; none where they are not wanted, or not there and not asked for."""
    folder = storage.join(predictions, MEMBERS)
    if wanted is False or not storage.exists(folder):
        if wanted:
            raise UserError(f"{predictions}: has no members' predictions, expected the folder {MEMBERS} that predict --members writes")
        return {}
    return {url.rstrip("/").rpartition("/")[2]: url for url in sorted(storage.list_folder(folder)[1])}


def _require_names(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{name} names two of the predictions, expected another name for each")


def _material(runs: Mapping[str, str], variants: Sequence[str], ensemble: str | None) -> dict[str, Any]:
    """What the report shows beside evaluations. Raises UserError for what is not there, or not what it should be."""
    records = {name: Run(url).records() for name, url in runs.items()}
    if lacking := [name for name, found in records.items() if not found]:
        raise UserError(f"{runs[lacking[0]]}: not a run, expected a directory with metrics.jsonl")
    return {
        "runs": records,
        "variants": _together([_variants(url) for url in variants]),
        "ensemble": None if ensemble is None else read_weights(ensemble).model_dump(mode="json"),
    }


def _variants(url: str) -> dict[str, Any]:
    return read_variants(url if url.endswith(".json") else storage.join(url, VARIANTS))


def _together(finetunings: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The variants of several finetunings as of one, each under the name of its own."""
    if len(finetunings) < 2:
        return finetunings[0] if finetunings else None
    entries = [entry | {"name": f"{one['name']} {entry['name']}"} for one in finetunings for entry in one["variants"]]
    return {"name": " and ".join(one["name"] for one in finetunings), "variants": entries}
