"""An ensemble from its members to scored predictions: weights solved on the blend months, then applied to the test months.

What is finished is kept: predictions by part, weights and figures in ``ensemble.json``, so that the same command goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from leapray import storage
from leapray.cluster import session
from leapray.data.transform import Transform
from leapray.errors import UserError
from leapray.evaluation.metrics import TargetStatistics
from leapray.evaluation.plots import ensemble_overview
from leapray.evaluation.tables import files
from leapray.inference.ensemble.choosing import TEST_FIGURES, choose, test_figures
from leapray.inference.ensemble.files import lay_out
from leapray.inference.ensemble.members import Candidate, candidates
from leapray.inference.ensemble.months import CHOOSING, TEST, Portion, portions
from leapray.inference.ensemble.passes import accumulate, apply
from leapray.inference.parts import member_directory, read_statistics, write_statistics
from leapray.inference.predict import predict
from leapray.inference.weights import FILE, Weights, read_weights
from leapray.models.directory import load_info
from leapray.recipe import Ensemble, Recipe
from leapray.settings import claim

PLOT = "ensemble.png"
_SETTINGS = "_settings.json"
_BLEND, _TEST, _APART = "blend", "test", "members"
"""Folders: of members' predictions of the months that choose, of the ensemble's of the test months, and of members' beside the latter."""

Progress = Callable[[int, int, str], None]
Notice = Callable[[str], None]


@dataclass(frozen=True)
class Ensembled:
    """What an ensemble left in its directory."""

    directory: str
    weights: Weights

    @property
    def url(self) -> str:
        """The weights, for ``predict``."""
        return storage.join(self.directory, FILE)

    @property
    def predictions(self) -> str | None:
        """The predictions of the test months, a folder for each source; None where the recipe has none."""
        return storage.join(self.directory, _TEST) if TEST_FIGURES in self.weights.figures else None


def ensemble(recipe: Recipe, progress: Progress | None = None, notice: Notice | None = None) -> Ensembled:
    """Find the weights of a recipe's ensemble, predict its test months with them, and write ``ensemble.json`` and a plot.

    Weights are solved on the blend months of all sources, else on their validation months. Raises UserError for members that are none or
    lack predictions, fixed weights of unknown members, months that are missing, and a directory of other members, data or weights.
    """
    notice = notice or (lambda _: None)
    work = _Work(recipe, progress or (lambda *_: None), notice)
    work.claim()
    url = storage.join(work.directory, FILE)
    weights = read_weights(url) if storage.exists(url) else None
    if weights is None or (work.test and TEST_FIGURES not in weights.figures):
        with session.connected():
            if weights is None:
                weights = work.choose()
                work.write(weights)
            if work.test:
                weights = work.apply(weights)
                work.write(weights)
        storage.write_bytes(storage.join(work.directory, PLOT), _plot(recipe.name, weights))
    if not work.test:
        notice("there are no test months to apply the ensemble to; give a source test months")
    return Ensembled(work.directory, weights)


class _Work:
    """The members and months of one recipe's ensemble, and the stages over them."""

    def __init__(self, recipe: Recipe, progress: Progress, notice: Notice) -> None:
        self.settings, self.recipe = _settings(recipe), recipe
        self.directory = storage.absolute(self.settings.directory)
        self.progress, self.notice = progress, notice
        self.members = candidates(self.settings, notice)
        self.names = [member.name for member in self.members]
        self.choosing, self.test = portions(recipe.data, CHOOSING, notice), portions(recipe.data, TEST, notice)
        self._check()

    @cached_property
    def statistics(self) -> TargetStatistics:
        """What skill is measured against: the rows that the first model was trained on, or that of the first predictions, else the
        competition's."""
        for member in self.members:
            if member.model is not None:
                return Transform.from_dict(load_info(member.model).transform, f"{member.model}: transform").statistics
        beside = (read_statistics(member.validation) for member in self.members if member.validation is not None)
        return next((known for known in beside if known is not None), None) or TargetStatistics.of_competition()

    def _check(self) -> None:
        if not self.choosing and self.settings.weights.method == "solved":
            raise UserError("ensemble.weights: solved needs months, expected a source with blend or validation months")
        if unknown := [name for name in self.settings.weights.fixed or () if name not in self.names]:
            raise UserError(f"ensemble.weights.fixed: {unknown[0]!r} is not a member, expected {', '.join(self.names)}")
        if self.test and (lacking := [member.name for member in self.members if member.model is None and member.test is None]):
            raise UserError(f"ensemble.members: {lacking[0]} has no predictions of the test months, expected its key test")

    def claim(self) -> None:
        """Mark the directory as this ensemble's. Raises UserError when it holds another's weights."""
        older = [url for member in self.members if member.model is None for url in (member.validation, member.test) if url]
        for url in dict.fromkeys(older):
            files(url, self.notice)
        settings = {
            "weights": self.settings.model_dump(mode="json", include={"weights", "groups"}),
            "members": {member.name: _mark(member) for member in self.members},
            "months": {portion.key: portion.mark for portion in (*self.choosing, *self.test)},
        }
        claim(self.directory, _SETTINGS, settings, "an ensemble", FILE)

    def choose(self) -> Weights:
        """The weights, with what the months that choose tell of them."""
        halves = None
        if self.choosing:
            for portion in self.choosing:
                self._predict(portion, self._place(_BLEND, portion), lambda member: member.validation, None)
            places = [self._place(_BLEND, portion) for portion in self.choosing]
            halves = accumulate(
                self.choosing,
                places,
                self.names,
                self.statistics,
                self.recipe.data.variable_set,
                self.recipe.data.bad_rows,
                self._noted("solve"),
            )
        weights = choose(self.settings, self.members, halves, self.statistics.targets)
        if halves is not None:
            weights.figures["blend"]["months"] = {portion.source: portion.months for portion in self.choosing}
            # the first split's name alone, where all sources have it
            weights.figures["blend"]["split"] = " and ".join(sorted({portion.split for portion in self.choosing}))
        return weights

    def apply(self, weights: Weights) -> Weights:
        """Predictions of the test months by these weights, and what they score, as a further entry of the figures."""
        # where every member is a model, predicting gives the ensemble's own parts too
        apart = any(member.model is None for member in self.members)
        members_at, places = [], []
        for portion in self.test:
            places.append(self._place(_TEST, portion))
            members_at.append(storage.join(self.directory, _APART, portion.source) if apart else places[-1])
            if apart:
                made_of = {"weights": weights.model_dump(mode="json", include={"groups", "members", "fallback"}), "rows": portion.mark}
                claim(places[-1], _SETTINGS, made_of, "predictions of an ensemble", ".parquet")
                write_statistics(places[-1], self.statistics)
            self._predict(portion, members_at[-1], lambda member: member.test, None if apart else weights)
        scored = apply(
            self.test,
            members_at,
            places,
            self.names,
            weights.combination(),
            self.statistics,
            self.recipe.data.variable_set,
            self.recipe.data.bad_rows,
            self._noted("score"),
        )
        figures = test_figures(scored, self.names, weights.figures.get("blend"))
        figures["months"] = {portion.source: portion.months for portion in self.test}
        return weights.model_copy(update={"figures": weights.figures | {TEST_FIGURES: figures}})

    def write(self, weights: Weights) -> None:
        """Write ``ensemble.json``, with models that lie below its directory as they are below it."""
        below = f"{self.directory}/"
        members = tuple(
            member.model_copy(update={"model": member.model and member.model.removeprefix(below)}) for member in weights.members
        )
        storage.write_json(storage.join(self.directory, FILE), weights.model_copy(update={"members": members}).model_dump(mode="json"))

    def _predict(self, portion: Portion, place: str, of: Callable[[Candidate], str | None], weights: Weights | None) -> None:
        """Every member's predictions of a portion below ``place``, those of older runs from where ``of`` says that they lie."""
        models = [member for member in self.members if member.model is not None]
        if models:
            predict(
                [str(member.model) for member in models],
                portion.path,
                place,
                weights=None if weights is None else weights.combination(),
                members=True,
                names=[member.name for member in models],
                selection=portion.selection,
                kind=portion.kind,
                bad_rows=self.recipe.data.bad_rows,
                use_gpu=self.recipe.resources.use_gpu,
                gpu_share=self.recipe.resources.gpus_per_model,
                apart=self.recipe.resources.models_apart,
                progress=self._noted(f"predict {portion.key}"),
                notice=self.notice,
            )
        for member in self.members:
            if member.model is None:
                predictions, laid_out = str(of(member)), member_directory(place, member.name)
                claim(laid_out, _SETTINGS, {"predictions": _fingerprint(predictions), "rows": portion.mark}, "predictions", ".parquet")
                lay_out(predictions, member.name, portion, laid_out, self.recipe.data.bad_rows, self.recipe.data.variable_set)

    def _place(self, folder: str, portion: Portion) -> str:
        return storage.join(self.directory, folder, portion.source)

    def _noted(self, note: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(done, total, note)


def _settings(recipe: Recipe) -> Ensemble:
    if recipe.ensemble is None:
        raise UserError(f"recipe {recipe.name!r} has no section ensemble; give it a directory and members")
    return recipe.ensemble


def _mark(member: Candidate) -> Any:
    """What changes when a member does."""
    if member.model is not None:
        return list(member.identity)
    return {split: url and _fingerprint(url) for split, url in (("validation", member.validation), ("test", member.test))}


def _fingerprint(predictions: str) -> str:
    return storage.fingerprint(*files(predictions))


def _plot(title: str, weights: Weights) -> bytes:
    blend: Mapping[str, Any] = weights.figures.get("blend", {})
    shares = {group: [member.weights[group] for member in weights.members] for group in weights.groups}
    return ensemble_overview([member.name for member in weights.members], shares, blend.get("correlation"), title)
