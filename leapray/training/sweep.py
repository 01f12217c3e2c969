"""A sweep: trials of one recipe with values drawn from a search space, in parallel, those that lag stopped early; the best one's recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import NonNegativeInt, model_validator

from leapray import storage
from leapray.cluster import nodes, session
from leapray.cluster.capacity import Plan
from leapray.console import TrainingsTable, digits, say, table
from leapray.data.shards import Prepared, open_prepared
from leapray.errors import PassingError, UserError
from leapray.evaluation.plots import Tried, best_so_far, parallel_coordinates
from leapray.evaluation.plots.searched import searched, short_names
from leapray.models.registry import users_modules
from leapray.recipe import Recipe, Resources, Section, Sweep, validate
from leapray.settings import claim
from leapray.training.loop import Record, ranked
from leapray.training.run import Run, decisive
from leapray.training.space import OptunaSampler, draw, grid_size
from leapray.training.start import check_trainable
from leapray.training.trainer import resolve
from leapray.training.tuning import Outcome, Stopping, work_off

TRIALS, BEST, _SETTINGS = "sweep.json", "best.yaml", "settings.json"
_PLOTS = {"sweep.png": parallel_coordinates, "best_so_far.png": best_so_far}
Notice = Callable[[str], None]


class Trial(Section):
    """One trial, as ``sweep.json`` has it."""

    number: NonNegativeInt
    values: dict[str, Any]
    """By dotted key of the recipe."""
    state: Literal["running", "finished", "stopped", "failed"] = "running"
    cause: str = ""
    """Why it failed."""
    score: float | None = None
    """The best skill, or R2 where the recipe selects by it, that a validation found."""
    skill: float | None = None
    r2: float | None = None
    """Of that validation."""
    epochs: NonNegativeInt = 0
    """The epoch that it came to."""
    again: bool = False
    """Whether it failed by an accident, and the next start goes on with it."""
    curve: tuple[float, ...] = ()
    """The score of each validation."""
    seconds: float = 0
    """Of training and validation."""

    @property
    def name(self) -> str:
        return _name(self.number)

    @property
    def tried(self) -> Tried:
        """The trial as plots take it; what failed has no score there, for it does not lead to a model."""
        return Tried(self.values, None if self.state == "failed" else self.score, self.state == "stopped")


class _Noted(Section):
    """The content of ``sweep.json``: the trials that ended, in that order, then those that run."""

    name: str
    trials: tuple[Trial, ...]

    @model_validator(mode="after")
    def _scored(self) -> Self:
        if any(trial.r2 is not None and trial.score is None for trial in self.trials):
            raise ValueError("written by an earlier leapray, before skill; choose another sweep.directory")
        return self


@dataclass(frozen=True)
class Swept:
    """All that came of a sweep."""

    recipe: Recipe
    trials: Sequence[Trial]
    """In the order in which they ended, one of them with a score."""

    @property
    def ranked(self) -> list[Trial]:
        """The best first, and those that failed last."""
        return sorted(self.trials, key=lambda trial: -trial.tried.score)

    @property
    def best(self) -> Trial:
        return self.ranked[0]

    @property
    def best_recipe(self) -> Recipe:
        """The best trial's recipe with a run of its own."""
        recipe = self.recipe.trial(self.best.number, self.best.values)
        run = storage.join(_settings(self.recipe).directory, "best")
        return recipe.model_copy(update={"training": recipe.training.model_copy(update={"run": run})})

    @property
    def url(self) -> str:
        """Where the best trial's recipe lies."""
        return storage.join(_settings(self.recipe).directory, BEST)

    def count(self, state: str) -> int:
        return sum(trial.state == state for trial in self.trials)


def sweep(recipe: Recipe, shown: TrainingsTable | None = None, notice: Notice = lambda _: None) -> Swept:
    """Train the trials of a recipe, or the rest of them, and write the best one's recipe, ``sweep.json`` and plots.

    A trial that fails is reported and stops no other. Raises UserError, before anything starts, for what cannot run: data missing, values
    that make no good recipe (of a search by Optuna these are trials that fail), too small a machine, a directory of another sweep, one in
    which another process works; and when all trials have failed.
    """
    recipe, settings = resolve(recipe), _settings(recipe)
    prepared = open_prepared(recipe.data)
    foreseen = _foreseen(recipe, prepared)
    with session.connected(users_modules(recipe.network.name)) if session.joins() else nullcontext():
        # refused before a cluster is started for it, or anything is written
        _plan(foreseen, settings, _count(settings))
    with storage.locked(settings.directory, notice):
        return _sweep(recipe, prepared, foreseen, shown, notice)


def _sweep(recipe: Recipe, prepared: Prepared, foreseen: Sequence[Recipe], shown: TrainingsTable | None, notice: Notice) -> Swept:
    """Sweep in a directory that this process holds."""
    settings = _settings(recipe)
    claim(settings.directory, _SETTINGS, _decisive(recipe), "a sweep", TRIALS)
    trials = Trials(recipe, prepared, shown)
    if trials.left:
        with session.connected(users_modules(recipe.network.name)):
            plan = _plan(foreseen, settings, trials.left)
            notice(plan.words)
            validations = recipe.training.epochs * recipe.training.validations
            earlier = [trial.curve for trial in trials.done if trial.state != "failed"]
            stopping = Stopping(settings.stopping, validations, settings.grace, settings.reduction, earlier)
            work_off(trials, trials.left, plan, stopping, shown.add if shown else None)
    if all(trial.state == "failed" for trial in trials.done):
        raise UserError(f"all {len(trials.done)} trials failed, {trials.done[0].name} because: {trials.done[0].cause}")
    done = Swept(recipe, trials.done)
    _write(done, settings)
    return done


def _settings(recipe: Recipe) -> Sweep:
    if recipe.sweep is None:
        raise UserError(f"recipe {recipe.name!r} has no section sweep; give it a directory and a space")
    return recipe.sweep


def _count(settings: Sweep) -> int:
    return settings.trials or grid_size(settings.space)


def _name(number: int) -> str:
    return f"trial {number}"


def _decisive(recipe: Recipe) -> dict[str, Any]:
    """What decides trials: what does in a run, and the section itself without its place, how many there are and how many at a time."""
    own = {key: value for key, value in recipe.to_dict()["sweep"].items() if key not in ("directory", "trials", "concurrent")}
    return decisive(recipe) | {"sweep": own}


def _foreseen(recipe: Recipe, prepared: Prepared) -> list[Recipe]:
    """The recipes of all trials, checked; where Optuna draws them, which nobody foresees, the recipe itself.

    Raises UserError that names the trial and its values.
    """
    settings, found = _settings(recipe), []
    if settings.search == "optuna":
        return [recipe]
    for number in range(_count(settings)):
        values = draw(settings.space, number, _count(settings), settings.seed)
        try:
            found.append(_checked(recipe, number, values, prepared))
        except UserError as error:
            raise UserError(f"{_name(number)}: {error}") from error
    return found


def _checked(recipe: Recipe, number: int, values: Mapping[str, Any], prepared: Prepared) -> Recipe:
    """The recipe of a trial. Raises UserError, naming its values, when it cannot run."""
    trial = recipe.trial(number, values)
    try:
        check_trainable(trial, prepared if trial.data == recipe.data else open_prepared(trial.data))
    except UserError as error:
        raise UserError(f"sweep.space with {_in_words(values)}: {error}") from error
    return trial


def _in_words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())


def _plan(trainings: Sequence[Recipe], settings: Sweep, count: int) -> Plan:
    """The plan of the most demanding of these. Raises UserError when one of them could never be held."""
    demands: list[tuple[Resources, bool]] = []
    for demand in ((one.resources, one.data.stream_from == "flat") for one in trainings):
        if demand not in demands:
            demands.append(demand)
    plans = [nodes.plan_trainings(resources, count, flat=flat, most=settings.concurrent) for resources, flat in demands]
    return min(plans, key=lambda plan: plan.at_once)


class Trials:
    """The queue of a sweep's trials: those that were interrupted, with the values that they have, then those that were never begun.

    What is known of them stands in ``sweep.json`` before anything follows from it, so that the sweep may be interrupted anywhere.
    """

    def __init__(self, recipe: Recipe, prepared: Prepared, shown: TrainingsTable | None = None) -> None:
        """Continue what the directory holds. Raises UserError for a search by Optuna without it."""
        self._recipe, self._settings, self._prepared, self._shown = recipe, _settings(recipe), prepared, shown
        self._url = storage.join(self._settings.directory, TRIALS)
        noted = validate(_Noted, storage.read_json(self._url), self._url).trials if storage.exists(self._url) else ()
        noted = tuple(
            trial.model_copy(update={"state": "running", "cause": "", "again": False}) if trial.again else trial for trial in noted
        )
        self.done = [trial for trial in noted if trial.state != "running"]
        """In the order in which they ended."""
        self._running = {trial.name: trial for trial in noted if trial.state == "running"}
        self._runs: dict[str, Run] = {}
        begun = {trial.number for trial in noted}
        fresh = (number for number in range(_count(self._settings)) if number not in begun)
        self._waiting = [*(trial.number for trial in self._running.values()), *fresh]
        self._sampler = OptunaSampler(self._settings.space, self._settings.seed) if self._settings.search == "optuna" else None
        if self._sampler:
            self._sampler.restore((trial.values, trial.tried.score) for trial in self.done if trial.state != "failed")
        for trial in self.done:
            self._show_kept(trial)

    @property
    def left(self) -> int:
        """How many trials are not begun, or go on."""
        return len(self._waiting)

    def next(self) -> tuple[str, Recipe] | None:
        """The next trial's name and recipe. One that cannot run has failed, and one that finished unnoticed has ended: others follow."""
        while self._waiting:
            trial = self._begin(self._waiting.pop(0))
            try:
                recipe = _checked(self._recipe, trial.number, trial.values, self._prepared)
                _plan([recipe], self._settings, 1)
            except UserError as error:
                self.ended(trial.name, Outcome("failed", str(error), again=isinstance(error, PassingError)))
                continue
            run = self._runs[trial.name] = Run(recipe.training.run)
            if not run.finished:
                return trial.name, recipe
            self.ended(trial.name, Outcome("finished"))
        return None

    def ended(self, name: str, outcome: Outcome) -> None:
        """Note how a trial ended, and what it reached."""
        trial, run = self._running.pop(name), self._runs.pop(name, None)
        history = [record for record in run.records() if record["event"] == "validation"] if run else []
        if outcome.state == "stopped" and (self._settings.stopping == "none" or not history):
            # it was not the scheduler that stopped it
            outcome = Outcome("failed", outcome.cause or "its process ended", again=True)
        trial = trial.model_copy(update={"state": outcome.state, "cause": outcome.cause, "again": outcome.again, **_figures(history)})
        self.done.append(trial)
        if self._sampler and trial.state == "failed":
            self._sampler.forget(trial.number)
        elif self._sampler:
            self._sampler.tell(trial.number, trial.tried.score)
        self._write()
        if self._shown is not None:
            self._shown.state(name, outcome.state, outcome.cause)

    def _begin(self, number: int) -> Trial:
        """The trial, noted with its values."""
        known = self._running.get(_name(number))
        values = known.values if known else None
        if self._sampler:
            values = self._sampler.suggest(number, values)
        elif values is None:
            values = draw(self._settings.space, number, _count(self._settings), self._settings.seed)
        trial = self._running[_name(number)] = Trial(number=number, values=values)
        self._write()
        if self._shown is not None:
            names = short_names(list(values))
            self._shown.state(trial.name, "training", _in_words({names[key].replace("\n", ""): value for key, value in values.items()}))
        return trial

    def _write(self) -> None:
        noted = _Noted(name=self._recipe.name, trials=(*self.done, *self._running.values()))
        storage.write_json(self._url, noted.model_dump(mode="json"))

    def _show_kept(self, trial: Trial) -> None:
        """A trial of an earlier start."""
        if self._shown is None:
            return
        self._shown.state(trial.name, "failed" if trial.state == "failed" else "kept", trial.cause)
        if trial.score is not None:
            kept = {"score": trial.score, "skill": trial.skill, "r2": trial.r2}
            self._shown.add(trial.name, {"event": "validation", "epoch": trial.epochs, **kept})


def _figures(history: Sequence[Record]) -> dict[str, Any]:
    """What a trial's validations tell."""
    if not history:
        return {}
    seconds = sum(record.get("seconds", 0.0) + record["val_seconds"] for record in history)
    best = ranked(history)[0]
    return {
        **{name: best[name] for name in ("score", "skill", "r2")},
        "epochs": history[-1]["epoch"],
        "curve": tuple(record["score"] for record in history),
        "seconds": seconds,
    }


def _write(done: Swept, settings: Sweep) -> None:
    """The best trial's recipe and the plots."""
    storage.write_bytes(done.url, done.best_recipe.to_yaml().encode())
    tried = [trial.tried for trial in done.trials]
    for name, plot in _PLOTS.items():
        storage.write_bytes(storage.join(settings.directory, name), plot(tried, done.recipe.name, done.recipe.training.select))


def show(done: Swept) -> None:
    """The table of a sweep in the terminal, and what failed and why."""
    trials = [trial for trial in done.ranked if trial.state != "failed"]
    axes = searched([trial.tried for trial in trials])
    rows = [
        (str(trial.number), *(axis.texts[row] for axis in axes), digits(trial.skill), digits(trial.r2), str(trial.epochs), trial.state)
        for row, trial in enumerate(trials)
    ]
    table("Best validations, before the physics", ("trial", *(axis.label for axis in axes), "skill", "R2", "epochs", ""), rows)
    for trial in done.trials:
        if trial.state == "failed":
            say(f"{trial.name} failed: {trial.cause}")
