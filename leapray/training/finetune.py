"""Variants of a base model: trained in parallel, averaged, and all measured against the base on months that chose nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from leapray import storage
from leapray.cluster import nodes, session
from leapray.cluster.capacity import Plan
from leapray.console import TrainingsTable
from leapray.data.shards import Prepared, open_prepared
from leapray.data.tasks import run_tasks
from leapray.errors import UserError
from leapray.models.directory import INFO_FILE, load_info
from leapray.models.registry import users_modules
from leapray.recipe import BASE, Finetune, Recipe
from leapray.settings import claim
from leapray.training.comparison import VARIANTS, Entry, device_of, measured, write
from leapray.training.loop import ranked
from leapray.training.run import Run
from leapray.training.soup import make_average
from leapray.training.start import check_trainable
from leapray.training.trainer import resolve
from leapray.training.tuning import Outcome, work_off

Notice = Callable[[str], None]


@dataclass(frozen=True)
class Finetuned:
    """All that came of a finetuning, the best first."""

    recipe: Recipe
    entries: list[Entry]

    @property
    def url(self) -> str:
        """The list that an ensemble is made from."""
        return storage.join(_settings(self.recipe).directory, VARIANTS)

    @property
    def base(self) -> str:
        return _settings(self.recipe).base

    @property
    def failed(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.state == "failed"]


@dataclass
class _Variants:
    """The variants that are still to be trained, and how the others ended."""

    recipe: Recipe
    shown: TrainingsTable | None
    waiting: list[str] = field(init=False)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.waiting = [name for name in _settings(self.recipe).trained if not self._run(name).finished]

    def variant(self, name: str) -> Recipe:
        """The recipe of a variant that is trained."""
        return resolve(self.recipe.variant(name))

    def _run(self, name: str) -> Run:
        return Run(storage.join(_settings(self.recipe).directory, name))

    def check(self, name: str, prepared: Prepared) -> None:
        """Raise UserError, naming the variant, for what cannot run."""
        variant = self.variant(name)
        try:
            check_trainable(variant, prepared if variant.data == self.recipe.data else open_prepared(variant.data))
            self._run(name).check(variant, remedy="give the variant another name or remove its run")
        except UserError as error:
            raise UserError(f"variant {name}: {error}") from error

    def plan(self) -> Plan:
        """How many of those that wait are trained at a time."""
        resources, flat = self.recipe.resources, self.recipe.data.stream_from == "flat"
        return nodes.plan_trainings(resources, max(len(self.waiting), 1), flat=flat, most=_settings(self.recipe).concurrent)

    def take_finished(self) -> None:
        """Count in what an earlier start finished."""
        for name in _settings(self.recipe).trained:
            if name not in self.waiting:
                self.outcomes[name] = Outcome("finished")
                if self.shown is not None:
                    self.shown.state(name, "kept")
                    self.shown.add(name, ranked(load_info(self._run(name).model).history)[0])

    def next(self) -> tuple[str, Recipe] | None:
        if not self.waiting:
            return None
        name = self.waiting.pop(0)
        return name, self.variant(name)

    def ended(self, name: str, outcome: Outcome) -> None:
        # nothing stops a variant but a failure
        outcome = Outcome("failed", outcome.cause or "its process ended") if outcome.state == "stopped" else outcome
        self.outcomes[name] = outcome
        if self.shown is not None:
            self.shown.state(name, outcome.state, outcome.cause)

    @property
    def entries(self) -> list[Entry]:
        """The base and all variants, not measured yet."""
        settings = _settings(self.recipe)
        ended = [Entry(name, self.outcomes[name].state, self._run(name).model, self.outcomes[name].cause) for name in settings.variants]
        return [Entry(BASE, BASE, settings.base), *ended]


def finetune(recipe: Recipe, shown: TrainingsTable | None = None, notice: Notice = lambda _: None) -> Finetuned:
    """Train the variants of a recipe, or the rest of them, make its averages, score all, and write ``variants.json`` and a plot.

    A variant that fails is reported and stops no other. Raises UserError, before anything starts, for what cannot run: no base, a base of
    another network or scaling, data missing, a wrong option of any variant, too small a machine, another process that trains them; and at
    the end when all have failed.
    """
    recipe = resolve(recipe)
    settings = _settings(recipe)
    variants = _Variants(recipe, shown)
    if not session.joins():
        # refused before a cluster is started for it
        variants.plan()
    prepared = open_prepared(recipe.data)
    base = {"base": _digest_of_base(settings.base), "transform": prepared.transform.digest()}
    for name in settings.trained:
        variants.check(name, prepared)
    with storage.locked(settings.directory, notice), session.connected(users_modules(recipe.network.name)):
        plan = variants.plan()
        claim(settings.directory, "finetune.json", base, "variants", "model.json")
        variants.take_finished()
        if variants.waiting:
            notice(plan.words)
            work_off(variants, len(variants.waiting), plan, follow=shown.add if shown else None)
        _make_averages(variants, prepared)
        entries = measured(variants.entries, settings.directory, prepared, recipe.resources, recipe.training.select)
    write(recipe.name, entries, settings.directory, recipe.training.select)
    done = Finetuned(recipe, entries)
    if len(done.failed) == len(settings.variants):
        raise UserError(f"no variant finished; {done.failed[0].name}: {done.failed[0].cause}")
    return done


def _settings(recipe: Recipe) -> Finetune:
    if recipe.finetune is None:
        raise UserError(f"recipe {recipe.name!r} has no section finetune; give it a base, a directory and variants")
    return recipe.finetune


def _digest_of_base(url: str) -> str:
    try:
        return load_info(url).weights_sha256
    except UserError as error:
        inside = storage.join(url, "model")
        hint = f"; did you mean {inside}?" if storage.exists(storage.join(inside, INFO_FILE)) else ""
        raise UserError(f"finetune.base: {error}{hint}") from error


def _make_averages(variants: _Variants, prepared: Prepared) -> None:
    """All averages, each by a task; one that fails stops no other."""
    recipe, resources = variants.recipe, variants.recipe.resources
    names = [name for name, variant in _settings(recipe).variants.items() if variant.average is not None]

    def make(number: int) -> str:
        try:
            make_average(recipe, names[number], prepared, device_of(resources))
        except Exception as error:
            return str(error) or type(error).__name__
        return ""

    for name, cause in zip(names, run_tasks(make, len(names), gpus=resources.gpus_per_worker if resources.use_gpu else 0), strict=True):
        average = _settings(recipe).variants[name].average
        lost = [member for member in (average.of if average else ()) if variants.outcomes[member].state == "failed"]
        without = f"without {', '.join(lost)}, which failed" if lost else ""
        variants.ended(name, Outcome("failed", cause) if cause else Outcome("finished", without))
