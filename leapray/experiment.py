"""The whole road as one file: recipes trained and finetuned, their models averaged, the answer submitted, judged and exported.

Every stage is what its verb runs and leaves what its verb leaves. The folder ``stages`` remembers which are finished, and of what they were
made: the same command goes on with those that are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from leapray import storage
from leapray.console import bar, digits, training_bar, trainings_table
from leapray.data.prepare import prepare
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
from leapray.models.registry import SOLVED as BASELINES
from leapray.recipe import Choice, Ensemble, Recipe
from leapray.recipe.experiment import Experiment
from leapray.stages import Done, Stage, run_stages
from leapray.training.comparison import VARIANTS
from leapray.training.comparison import show as show_variants
from leapray.training.finetune import finetune
from leapray.training.trainer import train

NOTES = "stages"
"""The folder, in the experiment's, that remembers what is finished."""
Notice = Callable[[str], None]


def run_experiment(
    experiment: Experiment,
    recipes: Mapping[str, Recipe],
    only: str | None = None,
    notice: Notice = lambda _: None,
    elsewhere: Callable[[str], None] | None = None,
) -> Done:
    """Run the stages of an experiment that are not finished, or one of them alone by its name; ``elsewhere`` has each done by another
    process.

    Raises UserError for a stage that is none, and whatever a stage raises; what was finished before it stays.
    """
    return run_stages(list(_Road(experiment, recipes, notice).stages()), experiment.place(NOTES), only, elsewhere)


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

    def _preparing(self, recipe: Recipe) -> str:
        """The stage that prepares a recipe's data, called after the first recipe of this data."""
        return f"prepare {next(name for name, other in self.recipes.items() if other.data.prepared == recipe.data.prepared)}"

    def _prepare(self, recipe: Recipe) -> Stage:
        def run() -> str:
            with bar("prepare") as update:
                prepared = prepare(recipe, progress=lambda name, done, total: update(done, total, name), notice=self.notice)
            counted = {split: sum(manifest.rows for manifest in prepared.split(split)) for split in ("train", "validation", "test")}
            return ", ".join(f"{rows:,} {split}" for split, rows in counted.items()) + " rows, apart by month"

        return Stage(
            self._preparing(recipe),
            storage.join(recipe.data.prepared, "transform.json"),
            _plain(recipe, "data"),
            run,
            reads=_sources(recipe),
        )

    def _train(self, name: str, recipe: Recipe) -> Stage:
        def run() -> str:
            with training_bar(f"train {name}") as follow:
                trained = train(recipe, progress=follow, notice=self.notice)
            best = trained.best
            return f"validation skill {digits(best['skill'])} at epoch {best['epoch']} of {trained.history[-1]['epoch']}"

        return Stage(f"train {name}", self._model(name), _plain(recipe, "data", "network", "training"), run, [self._preparing(recipe)])

    def _model(self, name: str) -> str:
        return storage.join(self.recipes[name].training.run, "model", INFO_FILE)

    def _finetune(self, name: str, recipe: Recipe) -> Stage:
        settings = recipe.finetune
        assert settings is not None

        def run() -> str:
            with trainings_table(f"finetune {name}", list(settings.variants)) as shown:
                done = finetune(recipe, shown, notice=self.notice)
            show_variants(done.entries, recipe.training.select)
            return f"{len(done.entries) - 1 - len(done.failed)} variants, {len(done.failed)} failed"

        return Stage(
            f"finetune {name}",
            storage.join(settings.directory, VARIANTS),
            _plain(recipe, "data", "network", "training", "finetune"),
            run,
            [self._preparing(recipe), f"train {name}"],
        )

    def _baselines(self) -> Stage:
        recipes = {name: self._baseline(name) for name in BASELINES}

        def run() -> str:
            found = {name: train(recipe, notice=self.notice).best["skill"] for name, recipe in recipes.items()}
            return "validation skill " + ", ".join(f"{name} {digits(skill)}" for name, skill in found.items())

        *_, last = recipes.values()
        model = storage.join(last.training.run, "model", INFO_FILE)
        return Stage("baselines", model, _plain(self.months_of, "data"), run, [self._preparing(self.months_of)])

    def _baseline(self, name: str) -> Recipe:
        """The recipe of a baseline, on the data of the months that choose."""
        training = self.months_of.training.model_copy(update={"run": self.experiment.place("baselines", name), "start": None})
        return self.months_of.model_copy(update={"name": name, "network": Choice(name=name), "training": training, "finetune": None})

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
        return [*own, *(self._baselines_at.values() if self._solves else ()), *self.experiment.ensemble.members]

    @property
    def _baselines_at(self) -> dict[str, str]:
        """The model directories of the baselines by name."""
        return {name: self.experiment.place("baselines", name, "model") for name in BASELINES if self.experiment.baselines}

    @property
    def _solves(self) -> bool:
        """Whether members that are no good are told by their weights."""
        return self.experiment.ensemble.weights.method == "solved"

    def _ensemble(self) -> Stage:
        blend = self.experiment.ensemble
        section = Ensemble(directory=self.ensemble, members=tuple(self._members), weights=blend.weights, groups=blend.groups)
        recipe = self.months_of.model_copy(update={"ensemble": section, "name": self.experiment.name})

        def run() -> str:
            with bar("ensemble") as update:
                done = ensemble(recipe, progress=update, notice=self.notice)
            show_ensemble(done.weights)
            counting = [member for member in done.weights.members if max(member.weights.values()) > 0]
            return f"{len(counting)} of {len(done.weights.members)} members count"

        return Stage("ensemble", self.weights, _plain(recipe, "data", "ensemble"), run, self._trained(), _sources(recipe), [self.ensemble])

    def _trained(self) -> list[str]:
        """The stages that leave models."""
        tuned = {name for name, recipe in self.recipes.items() if recipe.finetune is not None}
        trained = [stage for name in self.recipes for stage in (f"train {name}", *([f"finetune {name}"] if name in tuned else ()))]
        return [*trained, *(["baselines"] if self.experiment.baselines else ())]

    def _submit(self) -> Stage:
        asked = self.experiment.submission
        assert asked is not None
        file, place = asked.file or self.experiment.place("submission.csv"), self.experiment.place("predictions")
        reads = [asked.input, asked.sample_submission, *([asked.truth] if asked.truth else ())]

        def run() -> str:
            models, weights, _ = weighted_models(self.weights)
            self._predict(models, asked.input, place, weights=weights)
            rows, score = submit(place, asked.sample_submission, file, asked.truth)
            return f"{rows:,} rows in {file}" + (f", skill {digits(score.skill)}, R2 {digits(score.all)} over all columns" if score else "")

        return Stage("submit", file, asked.model_dump(mode="json"), run, ["ensemble"], reads, [place])

    def _predict(self, models: Sequence[str], source: str, place: str, **settings: Any) -> None:
        """Predict with what the recipes' resources give."""
        resources = self.months_of.resources
        with bar("predict") as update:
            settings |= {
                "bad_rows": self.months_of.data.bad_rows,
                "use_gpu": resources.use_gpu,
                "gpu_share": resources.gpus_per_model,
                "apart": resources.models_apart,
            }
            predict(models, source, place, progress=update, notice=self.notice, **settings)

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
                kind=portion.kind,
                bad_rows=self.months_of.data.bad_rows,
                beside=self._beside(portion),
                runs=self._runs(),
                variants=[recipe.finetune.directory for recipe in self.recipes.values() if recipe.finetune is not None],
                ensemble=self.weights,
                notice=self.notice,
            )
            score = evaluated[0].moments.score()
            attained = f"{digits(score.skill)} of an attainable {digits(score.attainable)}"
            return f"test skill {attained} on {evaluated[0].rows:,} rows, report in {directory}"

        return Stage(
            f"evaluate {source}",
            storage.join(directory, "report.html"),
            _plain(self.months_of, "data"),
            run,
            [*self._trained(), "ensemble"],
            makes=[self.experiment.place("beside", source)],
        )

    def _beside(self, portion: Portion) -> dict[str, str]:
        """Predictions of the models that are no members."""
        models = {
            name: self._model(name).removesuffix(f"/{INFO_FILE}") for name, part in self.experiment.recipes.items() if not part.member
        }
        if not self._solves:
            models |= self._baselines_at
        places = {name: self.experiment.place("beside", portion.source, name) for name in models}
        for name, model in models.items():
            self._predict([model], portion.path, places[name], selection=portion.selection, kind=portion.kind)
        return places

    def _runs(self) -> dict[str, str]:
        return {name: recipe.training.run for name, recipe in self.recipes.items()}

    def _export(self, name: str) -> Stage:
        asked, directory = self.experiment.export[name], self.experiment.place("export", name)

        def run() -> str:
            models, _, _ = weighted_models(self.weights)
            done = export(models, directory, asked.format, layout=asked.layout, weights=self.weights, notice=self.notice)
            return f"{', '.join(done.files)} of {done.members} model{'s' * (done.members > 1)} in {directory}"

        return Stage(f"export {name}", storage.join(directory, "emulator.json"), asked.model_dump(mode="json"), run, ["ensemble"])


def _plain(recipe: Recipe, *sections: str) -> dict[str, Any]:
    values = recipe.to_dict()
    return {section: values.get(section) for section in sections}


def _sources(recipe: Recipe) -> list[str]:
    """Where a recipe's data comes from."""
    return sorted({source.path for source in recipe.data.sources.values()})
