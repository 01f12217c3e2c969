"""The report of an evaluation: one HTML file."""

from __future__ import annotations

from collections.abc import Sequence

from leapray import storage
from leapray.evaluation.report.making import Material, ensemble, provenance, training, variants
from leapray.evaluation.report.page import Section, counted, render, written
from leapray.evaluation.report.physics import biases, maps, own_metrics, rain, scalars
from leapray.evaluation.report.skill import levels, ordered, pictured, summary, worst
from leapray.evaluation.results import Evaluation

FILE = "report.html"


def write_report(directory: str, evaluations: Sequence[Evaluation], material: Material, draw: Sequence[str] | None = None) -> str:
    """Write ``report.html`` into ``directory`` and return its URL.

    The first evaluation is the subject, the others stand beside it; tables list all of them, and plots show the subject and those that
    ``draw`` names, by default the best other model and the baselines (ridge, climatology, linear). What is not known is left out. Raises
    UserError for a name that is none of theirs or too many of them, ValueError without evaluations.
    """
    if not evaluations:
        raise ValueError("a report needs at least one evaluation")
    url = storage.join(directory, FILE)
    storage.write_bytes(url, _page(ordered(evaluations), material, draw).encode())
    return url


def _page(evaluations: Sequence[Evaluation], material: Material, draw: Sequence[str] | None) -> str:
    subject, shown = evaluations[0], pictured(evaluations, draw)
    found: list[Section | None] = [
        summary(evaluations),
        levels(evaluations, draw),
        maps(subject),
        biases(evaluations, shown),
        scalars(subject),
        worst(subject),
        rain(shown),
        own_metrics(evaluations),
        training(material.runs),
        variants(material.variants),
        ensemble(material.ensemble),
        provenance(material, evaluations),
    ]
    others = f", beside {counted(len(evaluations) - 1, 'other')}" if len(evaluations) > 1 else ""
    days = f" of {counted(len(subject.moments.blocks), 'day')}" if subject.timed else ""
    scores = subject.moments.score()
    score = f"skill {written(scores.skill)} of an attainable {written(scores.attainable)}, R² {written(scores.learned)}"
    lead = f"{subject.name}{others}: {score} on {counted(subject.rows, 'row')}{days}."
    return render(material.title, lead, [section for section in found if section is not None])
