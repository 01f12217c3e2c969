"""Sections on how predictions were made: learning curves, variants, the ensemble, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leapray.evaluation.intervals import LEVEL
from leapray.evaluation.plots import Ranked, ensemble_overview, learning_curve, ranking
from leapray.evaluation.report.material import Material, Record
from leapray.evaluation.report.page import Cell, Picture, Section, Table, count, figure, span, text, written
from leapray.evaluation.results import Evaluation

_MOST_RUNS = 12
"""Runs whose curves are drawn, so that the page stays small."""
_METHODS = {"solved": "solved for on the {split} months", "mean": "equal", "fixed": "given by the recipe"}


def training(runs: Mapping[str, Sequence[Record]]) -> Section | None:
    """Learning curves of runs that have been validated."""
    validated = {name: found for name, records in runs.items() if (found := [record for record in records if "val_loss" in record])}
    if not validated:
        return None
    rows = [
        [
            text(name),
            figure(max(record["r2"] for record in records)),
            count(records[-1]["epoch"]),
            count(records[-1]["step"]),
            figure(sum(record.get("seconds", 0.0) + record.get("val_seconds", 0.0) for record in records)),
        ]
        for name, records in validated.items()
    ]
    table = Table("Runs", ("", "best validation R²", "epochs", "steps", "seconds"), rows)
    drawn = list(validated.items())[:_MOST_RUNS]
    pictures = [
        Picture(learning_curve(records, name), f"Learning curve of {name}: losses and validation R² by step") for name, records in drawn
    ]
    words = [f"The curves of the first {_MOST_RUNS} runs are drawn."] if len(validated) > _MOST_RUNS else []
    return Section("training", "Learning curves", words, [table, *pictures])


def variants(found: Mapping[str, Any] | None) -> Section | None:
    """Variants beside their base, as ``variants.json`` tells."""
    if not found or not found.get("variants"):
        return None
    entries = found["variants"]
    tested = [_ranked(entry) for entry in entries if entry.get("test_r2") is not None]
    pictures = [Picture(ranking(tested), "Variants and their base ranked by test R², with differences from the base")] if tested else []
    header = ("", "state", "validation R²", "test R²", "less the base", f"{LEVEL:.0%} within", "epochs", "seconds")
    table = Table(f"Variants of {found.get('name', 'the base')}", header, [_variant_row(entry) for entry in entries])
    causes = [f"{entry['name']}: {entry['cause']}" for entry in entries if entry.get("cause")]
    return Section("variants", "Variants", (), [*pictures, table], causes)


def ensemble(found: Mapping[str, Any] | None) -> Section | None:
    """Members and weights, what each is worth, and how alike their errors are, as ``ensemble.json`` tells."""
    if not found:
        return None
    blend = found.get("figures", {}).get("blend") or {}
    split = blend.get("split", "blend")
    words = [f"The weights are {_METHODS.get(found['method'], found['method']).format(split=split)}."]
    if blend.get("rows"):
        words.append(f"On the {blend['rows']:,} rows of the {split} months {_both(blend)}.")
        words.append("These figures are of members before the physics, over the learned columns that vary; those of test months after it.")
    if blend.get("groups"):
        words.append(str(blend["groups"].get("why", "")))
    words += _tested(found.get("figures", {}).get("test") or {}, split)
    names = [member["name"] for member in found["members"]]
    weights = {group: [member["weights"][group] for member in found["members"]] for group in found["groups"]}
    picture = Picture(
        ensemble_overview(names, weights, _correlation(blend, names)), f"Weights of {', '.join(names)}, and correlation of their errors"
    )
    return Section("ensemble", "Ensemble", [sentence for sentence in words if sentence], [picture, _weight_table(found, blend)])


def provenance(material: Material, evaluations: Sequence[Evaluation]) -> Section | None:
    """Where all comes from, and what could not be computed."""
    lacking = list(dict.fromkeys(sentence for evaluation in evaluations for sentence in evaluation.lacking))
    rows = [[text(name), text(value)] for name, value in material.provenance.items()]
    if not rows and not lacking:
        return None
    content = [Table("Where this comes from", ("", ""), rows)] if rows else []
    words = ["What could not be computed, and why:"] if lacking else []
    return Section("provenance", "Provenance", words, content, lacking)


def _ranked(entry: Record) -> Ranked:
    ends, by = entry.get("interval"), entry.get("difference")
    return Ranked(
        entry["name"],
        entry["test_r2"],
        (ends["low"], ends["high"]) if ends else None,
        (by["value"], by["low"], by["high"]) if by else None,
        entry.get("validation_r2"),
        entry.get("state") == "base",
    )


def _variant_row(entry: Record) -> list[Cell]:
    by = entry.get("difference")
    return [
        text(entry["name"]),
        text(entry["state"]),
        figure(entry.get("validation_r2")),
        figure(entry.get("test_r2")),
        figure(by["value"] if by else None, "+"),
        span(by["low"], by["high"], "+") if by else Cell(""),
        count(entry["epochs"]) if entry.get("epochs") is not None else Cell(""),
        figure(entry.get("seconds")),
    ]


def _both(figures: Mapping[str, Any]) -> str:
    return f"the ensemble's R² is {written(figures['ensemble'])}, the plain mean's {written(figures['mean'])}"


def _tested(test: Mapping[str, Any], split: str) -> list[str]:
    if not test:
        return []
    words = [f"On the {test['rows']:,} rows of the test months, which chose nothing, {_both(test)}."]
    best = f"{test.get('best')}, the best single member on the {split} months"
    for key, other in (("from_mean", "the plain mean"), ("from_best", best)):
        if by := test.get(key):
            value, low, high = (written(by[key], "+") for key in ("value", "low", "high"))
            words.append(f"It differs from {other} by {value}, {by['level']:.0%} within {low} to {high}.")
    return words


def _correlation(blend: Mapping[str, Any], names: Sequence[str]) -> list[list[float]] | None:
    """Rows and columns in the order of ``names``; None where not all are told."""
    places = {name: place for place, name in enumerate(blend.get("members", {}))}
    if not blend.get("correlation") or not places.keys() >= set(names):
        return None
    return [[blend["correlation"][places[one]][places[other]] for other in names] for one in names]


def _weight_table(found: Mapping[str, Any], blend: Mapping[str, Any]) -> Table:
    groups = list(found["groups"])
    single, worth = blend.get("members", {}), blend.get("worth", {})
    header = [
        "",
        *(f"weight, {group}" if len(groups) > 1 else "weight" for group in groups),
        f"R² alone ({blend.get('split', 'blend')})",
        "R² without it, less R² of all",
    ]
    rows = [
        [
            text(member["name"]),
            *(figure(member["weights"][group]) for group in groups),
            figure(single.get(member["name"])),
            figure(worth.get(member["name"]), "+"),
        ]
        for member in found["members"]
    ]
    return Table("Members and their weights", header, rows)
