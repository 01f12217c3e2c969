"""The whole road as one file: recipes trained and finetuned, their models averaged, the answer submitted, judged and exported.

Every stage is what its verb runs and leaves what its verb leaves. ``experiment.json`` remembers which are finished, and of what they were
made: the same command goes on with those that are not.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from leapray import cluster, storage
from leapray.console import bar, say, training_bar, trainings_table
from leapray.data.prepare import prepare
from leapray.data.shards import open_prepared
from leapray.errors import UserError
from leapray.inference.ensemble import ensemble
from leapray.inference.ensemble import show as show_ensemble
from leapray.inference.ensemble.months import TEST, Portion, portions
from leapray.inference.evaluate import evaluate
from leapray.inference.export import export
from leapray.inference.predict import predict
from leapray.inference.submission import submit
from leapray.inference.weights import FILE as WEIGHTS
from leapray.inference.weights import weighted_models
from leapray.models.directory import INFO_FILE
from leapray.recipe import Ensemble, Recipe
from leapray.recipe.experiment import Experiment
from leapray.training.baselines import fit_baselines
from leapray.training.comparison import VARIANTS
from leapray.training.comparison import show as show_variants
from leapray.training.finetune import finetune
from leapray.training.trainer import train

RECORD = "experiment.json"
Notice = Callable[[str], None]


@dataclass(frozen=True)
class Stage:
    """One step of the road."""

    name: str
    output: str
    """What it writes last."""
    made_of: dict[str, Any]
    """What decides its output, as plain values: with the same, and the output there, it is finished."""
    run: Callable[[], str]
    """Does it, and says in a few words what came of it."""

    @property
    def key(self) -> str:
        """Digest of what decides its output."""
        return hashlib.sha256(json.dumps(self.made_of, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass
class Done:
    """What a run of an experiment did."""

    directory: str
    ran: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


def run_experiment(experiment: Experiment, recipes: Mapping[str, Recipe], only: str | None = None, notice: Notice = lambda _: None) -> Done:
    """Run the stages of an experiment that are not finished, or one of them alone by its name.

    Raises UserError for a stage that is none, and whatever a stage raises; what was finished before it stays.
    """
    stages = list(_Road(experiment, recipes, notice).stages())
    if only is not None and only not in [stage.name for stage in stages]:
        raise UserError(f"--stage {only!r} is not of this experiment, expected one of {', '.join(stage.name for stage in stages)}")
    record = experiment.place(RECORD)
    finished: dict[str, Any] = storage.read_json(record) if storage.exists(record) else {}
    done = Done(storage.absolute(experiment.directory))
    wanted = [stage for stage in stages if only in (None, stage.name)]
    waiting = [stage for stage in wanted if not _is_finished(stage, finished.get(stage.name))]
    for stage in wanted:
        if stage not in waiting:
            done.kept.append(stage.name)
            say(f"{stage.name}: {finished[stage.name]['result']} (kept)")
    if not waiting:
        return done
    with cluster.connected():
        for stage in waiting:
            started = time.monotonic()
            result = stage.run()
            seconds = round(time.monotonic() - started, 1)
            finished[stage.name] = {"key": stage.key, "result": result, "seconds": seconds}
            storage.write_json(record, finished)
            done.ran.append(stage.name)
            say(f"{stage.name}: {result}, {seconds:.0f} s")
    return done


def _is_finished(stage: Stage, noted: Mapping[str, Any] | None) -> bool:
    return noted is not None and noted["key"] == stage.key and storage.exists(stage.output)


class _Road:
    """The stages of an experiment, in order."""

    def __init__(self, experiment: Experiment, recipes: Mapping[str, Recipe], notice: Notice) -> None:
        self.experiment, self.recipes, self.notice = experiment, recipes, notice
        self.months_of = recipes[experiment.ensemble.months_of or next(iter(recipes))]
        self.ensemble = storage.absolute(experiment.place("ensemble"))
        self.weights = storage.join(self.ensemble, WEIGHTS)

    def stages(self) -> Iterator[Stage]:
        for recipe in {recipe.data.prepared: recipe for recipe in self.recipes.values()}.values():
            yield self._prepare(recipe)
        for name, recipe in self.recipes.items():
            yield self._train(name, recipe)
            if recipe.finetune is not None:
                yield self._finetune(name, recipe)
        if self.experiment.baselines:
            yield self._baselines()
        yield self._ensemble()
        if self.experiment.submission is not None:
            yield self._submit()
        for portion in self._tested():
            yield self._evaluate(portion)
        for name in self.experiment.export:
            yield self._export(name)

    def _prepare(self, recipe: Recipe) -> Stage:
        def run() -> str:
            with bar("prepare") as update:
                prepared = prepare(recipe, progress=lambda name, done, total: update(done, total, name), notice=self.notice)
            counted = {split: sum(manifest.rows for manifest in prepared.split(split)) for split in ("train", "validation", "test")}
            return ", ".join(f"{rows:,} {split}" for split, rows in counted.items()) + " rows, apart by month"

        name = recipe.data.prepared.rstrip("/").rpartition("/")[2]
        return Stage(f"prepare {name}", storage.join(recipe.data.prepared, "transform.json"), _plain(recipe, "data"), run)

    def _train(self, name: str, recipe: Recipe) -> Stage:
        def run() -> str:
            with training_bar(f"train {name}") as follow:
                trained = train(recipe, progress=follow)
            best = trained.best
            return f"validation R2 {best['r2']:.4f} at epoch {best['epoch']} of {trained.history[-1]['epoch']}"

        return Stage(f"train {name}", self._model(name), _plain(recipe, "data", "network", "training"), run)

    def _model(self, name: str) -> str:
        return storage.join(self.recipes[name].training.run, "model", INFO_FILE)

    def _finetune(self, name: str, recipe: Recipe) -> Stage:
        settings = recipe.finetune
        assert settings is not None

        def run() -> str:
            with trainings_table(f"finetune {name}", list(settings.variants)) as shown:
                done = finetune(recipe, shown, notice=self.notice)
            show_variants(done.entries)
            return f"{len(done.entries) - 1 - len(done.failed)} variants, {len(done.failed)} failed"

        return Stage(
            f"finetune {name}", storage.join(settings.directory, VARIANTS), _plain(recipe, "data", "network", "training", "finetune"), run
        )

    def _baselines(self) -> Stage:
        directory = self.experiment.place("baselines")

        def run() -> str:
            return " and ".join(fit_baselines(open_prepared(self.months_of.data), directory))

        return Stage("baselines", storage.join(directory, "ridge", INFO_FILE), _plain(self.months_of, "data"), run)

    @property
    def _members(self) -> list[Any]:
        """What the ensemble is made of, as its section lists it."""
        own = []
        for name, part in self.experiment.recipes.items():
            variants, recipe = None, self.recipes[name]
            if recipe.finetune is not None:
                variants = storage.join(recipe.finetune.directory, VARIANTS)
            if part.member:
                own.append(variants or storage.join(recipe.training.run, "model"))
        return [*own, *self.experiment.ensemble.members]

    def _ensemble(self) -> Stage:
        blend = self.experiment.ensemble
        section = Ensemble(directory=self.ensemble, members=tuple(self._members), weights=blend.weights, groups=blend.groups)
        recipe = self.months_of.model_copy(update={"ensemble": section})

        def run() -> str:
            with bar("ensemble") as update:
                done = ensemble(recipe, progress=update, notice=self.notice)
            show_ensemble(done.weights)
            counting = [member for member in done.weights.members if max(member.weights.values()) > 0]
            return f"{len(counting)} of {len(done.weights.members)} members count"

        return Stage("ensemble", self.weights, self._all_trained() | _plain(recipe, "data", "ensemble"), run)

    def _all_trained(self) -> dict[str, Any]:
        return {name: _plain(recipe, "data", "network", "training", "finetune") for name, recipe in self.recipes.items()}

    def _submit(self) -> Stage:
        asked = self.experiment.submission
        assert asked is not None
        file = asked.file or self.experiment.place("submission.csv")

        def run() -> str:
            models, weights, _ = weighted_models(self.weights)
            place = self.experiment.place("predictions")
            with bar("predict") as update:
                use_gpu = self.months_of.resources.use_gpu
                done = predict(models, asked.input, place, weights=weights, use_gpu=use_gpu, progress=update, notice=self.notice)
            rows, score = submit(done.url, asked.sample_submission, file, asked.truth)
            return f"{rows:,} rows in {file}" + (f", R2 {score.learned:.4f}" if score else "")

        return Stage("submit", file, self._ensemble().made_of | {"submission": asked.model_dump(mode="json")}, run)

    def _tested(self) -> list[str]:
        return [name for name, source in self.months_of.data.sources.items() if source.test is not None]

    def _evaluate(self, source: str) -> Stage:
        directory = self.experiment.place("report", *([source] if len(self._tested()) > 1 else []))

        def run() -> str:
            portion = next(portion for portion in portions(self.months_of.data, TEST) if portion.source == source)
            evaluated = evaluate(
                storage.join(self.ensemble, "test", source),
                portion.path,
                directory,
                selection=portion.selection,
                beside=self._beside(portion),
                runs=self._runs(),
                variants=[recipe.finetune.directory for recipe in self.recipes.values() if recipe.finetune is not None],
                ensemble=self.weights,
                notice=self.notice,
            )
            return f"test R2 {evaluated[0].moments.score().learned:.4f} of {evaluated[0].rows:,} rows, report in {directory}"

        return Stage(f"evaluate {source}", storage.join(directory, "report.html"), self._ensemble().made_of, run)

    def _beside(self, portion: Portion) -> dict[str, str]:
        """Predictions of the models that are no members."""
        models = {
            name: self._model(name).removesuffix(f"/{INFO_FILE}") for name, part in self.experiment.recipes.items() if not part.member
        }
        if self.experiment.baselines:
            models |= fit_baselines(open_prepared(self.months_of.data), self.experiment.place("baselines"))
        places = {name: self.experiment.place("beside", portion.source, name) for name in models}
        for name, model in models.items():
            with bar(f"predict {name}") as update:
                predict([model], portion.path, places[name], selection=portion.selection, progress=update)
        return places

    def _runs(self) -> dict[str, str]:
        return {name: recipe.training.run for name, recipe in self.recipes.items()}

    def _export(self, name: str) -> Stage:
        asked, directory = self.experiment.export[name], self.experiment.place("export", name)

        def run() -> str:
            models, _, _ = weighted_models(self.weights)
            done = export(models, directory, asked.format, layout=asked.layout, weights=self.weights)
            return f"{', '.join(done.files)} of {done.members} models in {directory}"

        made_of = self._ensemble().made_of | {"export": asked.model_dump(mode="json")}
        return Stage(f"export {name}", storage.join(directory, "emulator.json"), made_of, run)


def _plain(recipe: Recipe, *sections: str) -> dict[str, Any]:
    values = recipe.to_dict()
    return {section: values.get(section) for section in sections}
