"""What a report shows beside evaluations, and sections on how predictions were made: learning curves, variants, ensemble, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from leapray.evaluation.intervals import LEVEL
from leapray.evaluation.plots import Ranked, ensemble_overview, learning_curve, ranking
from leapray.evaluation.report.page import Cell, Picture, Section, Table, count, figure, score, span, text, written
from leapray.evaluation.results import Evaluation

_MOST_RUNS = 12
"""Runs whose curves are drawn, so that the page stays small."""
_METHODS = {"solved": "solved for on the {split} months", "mean": "equal", "fixed": "given by the recipe"}


def training(runs: Mapping[str, Sequence[Record]]) -> Section | None:
    """Learning curves of runs that have been validated."""
    validated = {name: found for name, records in runs.items() if (found := [record for record in records if "val_loss" in record])}
    if not validated:
        return None
    rows = []
    for name, records in validated.items():
        best = max(records, key=lambda record: float(record["score"]))
        seconds = sum(record.get("seconds", 0.0) + record.get("val_seconds", 0.0) for record in records)
        scores = (score(best[key]) for key in ("skill", "attainable", "r2"))
        rows.append([text(name), *scores, count(records[-1]["epoch"]), count(records[-1]["step"]), figure(seconds)])
    table = Table("Runs, at their best validation", ("", "skill", "attainable", "R²", "epochs", "steps", "seconds"), rows)
    drawn = list(validated.items())[:_MOST_RUNS]
    pictures = [
        Picture(learning_curve(records, name), f"Learning curve of {name}: losses and validation skill by step") for name, records in drawn
    ]
    words = ["Validations are before the physics."]
    words += [f"The curves of the first {_MOST_RUNS} runs are drawn."] if len(validated) > _MOST_RUNS else []
    return Section("training", "Learning curves", words, [table, *pictures])


def variants(found: Mapping[str, Any] | None) -> Section | None:
    """Variants beside their base, as ``variants.json`` tells."""
    if not found or not found.get("variants"):
        return None
    entries, select = found["variants"], found.get("select", "skill")
    score = "R²" if select == "r2" else "skill"
    tested = [_ranked(entry, select) for entry in entries if entry.get(f"test_{select}") is not None]
    words = f"Variants and their base ranked by test {score}, with differences from the base"
    pictures = [Picture(ranking(tested, select=select), words)] if tested else []
    compared = (f"{score} less the base", f"{LEVEL:.0%} interval")
    header = ("", "state", "validation skill", "test skill", "validation R²", "test R²", *compared, "epochs", "seconds")
    table = Table(f"Variants of {found.get('name', 'the base')}", header, [_variant_row(entry) for entry in entries])
    causes = [f"{entry['name']}: {entry['cause']}" for entry in entries if entry.get("cause")]
    attainable = next((entry["attainable"] for entry in entries if entry.get("attainable") is not None), None)
    told = ["Scores are before the physics."]
    told += [f"A perfect emulator has a skill of {written(attainable)} on the test months."] if attainable is not None else []
    return Section("variants", "Variants", told, [*pictures, table], causes)


def ensemble(found: Mapping[str, Any] | None) -> Section | None:
    """Members and weights, what each is worth, and how alike their errors are, as ``ensemble.json`` tells."""
    if not found:
        return None
    blend = found.get("figures", {}).get("blend") or {}
    split = blend.get("split", "blend")
    words = [f"The weights are {_METHODS.get(found['method'], found['method']).format(split=split)}."]
    if blend.get("rows"):
        words.append(f"On the {blend['rows']:,} rows of the {split} months {_both(blend)}.")
        words.append("These figures are of members before the physics; those of test months are after it.")
    if blend.get("groups"):
        words.append(str(blend["groups"].get("why", "")))
    if fallback := found.get("fallback"):
        listed = ", ".join(fallback)
        words.append(f"{len(fallback)} columns fall back to the training mean, which no member beats on the {split} months: {listed}.")
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


def _ranked(entry: Record, select: str) -> Ranked:
    ends, by = entry.get("interval"), entry.get("difference")
    return Ranked(
        entry["name"],
        entry[f"test_{select}"],
        (ends["low"], ends["high"]) if ends else None,
        (by["value"], by["low"], by["high"]) if by else None,
        entry.get(f"validation_{select}"),
        entry.get("state") == "base",
    )


def _variant_row(entry: Record) -> list[Cell]:
    by = entry.get("difference")
    scores = (score(entry.get(f"{split}_{kind}")) for kind in ("skill", "r2") for split in ("validation", "test"))
    return [
        text(entry["name"]),
        text(entry["state"]),
        *scores,
        figure(by["value"] if by else None, "+"),
        span(by["low"], by["high"], "+") if by else Cell(""),
        count(entry["epochs"]) if entry.get("epochs") is not None else Cell(""),
        figure(entry.get("seconds")),
    ]


def _both(figures: Mapping[str, Any]) -> str:
    of = f" of an attainable {written(figures['attainable'])}" if "attainable" in figures else ""
    return f"the ensemble's skill is {written(figures['ensemble'])}{of}, the plain mean's {written(figures['mean'])}"


def _tested(test: Mapping[str, Any], split: str) -> list[str]:
    if not test:
        return []
    words = [f"On the {test['rows']:,} rows of the test months, which were not used for model selection, {_both(test)}."]
    best = f"{test.get('best')}, the best single member on the {split} months"
    for key, other in (("from_mean", "the plain mean"), ("from_best", best)):
        if by := test.get(key):
            value, low, high = (written(by[end], "+") for end in ("value", "low", "high"))
            words.append(f"Its skill less that of {other} is {value}, {by['level']:.0%} interval {low} to {high}.")
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
        f"skill alone ({blend.get('split', 'blend')})",
        "skill without it, less that of all",
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


Record = Mapping[str, Any]


@dataclass(frozen=True)
class Material:
    """All that is not known leaves its section out."""

    title: str = "Evaluation"
    runs: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    """Records of ``metrics.jsonl`` by the run's name."""
    variants: Mapping[str, Any] | None = None
    """What ``variants.json`` holds."""
    ensemble: Mapping[str, Any] | None = None
    """What ``ensemble.json`` holds."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """What was predicted and from what: truth, months, versions, revision, command, by their names."""
