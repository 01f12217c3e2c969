"""The report of an evaluation: one HTML file."""

from __future__ import annotations

from collections.abc import Sequence

from leapray import storage
from leapray.evaluation.report.making import ensemble, provenance, training, variants
from leapray.evaluation.report.material import Material
from leapray.evaluation.report.page import Section, counted, render, written
from leapray.evaluation.report.physics import biases, maps, own_metrics, rain, scalars
from leapray.evaluation.report.skill import levels, ordered, summary, worst
from leapray.evaluation.results import Evaluation

FILE = "report.html"


def write_report(directory: str, evaluations: Sequence[Evaluation], material: Material) -> str:
    """Write ``report.html`` into ``directory`` and return its URL.

    The first evaluation is the subject, the others stand beside it. What is not known is left out. Raises ValueError without evaluations.
    """
    if not evaluations:
        raise ValueError("a report needs at least one evaluation")
    url = storage.join(directory, FILE)
    storage.write_bytes(url, _page(ordered(evaluations), material).encode())
    return url


def _page(evaluations: Sequence[Evaluation], material: Material) -> str:
    subject = evaluations[0]
    found: list[Section | None] = [
        summary(evaluations),
        levels(evaluations),
        maps(subject),
        biases(evaluations),
        scalars(subject),
        worst(subject),
        rain(evaluations),
        own_metrics(evaluations),
        training(material.runs),
        variants(material.variants),
        ensemble(material.ensemble),
        provenance(material, evaluations),
    ]
    others = f", beside {counted(len(evaluations) - 1, 'other')}" if len(evaluations) > 1 else ""
    days = f" of {counted(len(subject.moments.blocks), 'day')}" if subject.timed else ""
    lead = f"{subject.name}{others}: R² {written(subject.moments.score().learned)} on {counted(subject.rows, 'row')}{days}."
    return render(material.title, lead, [section for section in found if section is not None])
