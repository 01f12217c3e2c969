"""Variants of a base model: trained in parallel, averaged, and all measured against the base on months that chose nothing."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from leapray import cluster, storage
from leapray.console import TrainingsTable, say, table
from leapray.data.shards import Prepared, open_prepared
from leapray.data.tasks import run_tasks
from leapray.errors import UserError
from leapray.evaluation.intervals import Difference, Interval, TimedMoments, difference, interval
from leapray.evaluation.plots import Ranked, ranking
from leapray.models.directory import load_info, load_model
from leapray.recipe import BASE, Finetune, Recipe
from leapray.settings import claim
from leapray.training.choices import check_choices
from leapray.training.loop import ranked
from leapray.training.run import Run
from leapray.training.scoring import score_network
from leapray.training.soup import EVENT, make_average
from leapray.training.start import check_start
from leapray.training.trainer import resolve
from leapray.training.tuning import Outcome, work_off

VARIANTS, PLOT = "variants.json", "variants.png"
Notice = Callable[[str], None]


@dataclass(frozen=True)
class Entry:
    """The base or a variant, as the table has it."""

    name: str
    state: str
    model: str
    """Its directory; of a variant that failed, where it would be."""
    cause: str = ""
    validation_r2: float | None = None
    test_r2: float | None = None
    interval: Interval | None = None
    difference: Difference | None = None
    """From the base, on the same months."""
    epochs: int | None = None
    seconds: float | None = None
    """Of training."""
    members: Sequence[str] = ()
    """Of an average, the models that it is made of."""


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
    waiting: list[str]
    shown: TrainingsTable | None
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def sort(self, name: str) -> None:
        """Put a variant that is trained where it belongs: among those that wait, or those that an earlier start finished."""
        run = Run(self.recipe.variant(name).training.run)
        if not run.finished:
            self.waiting.append(name)
            return
        self.outcomes[name] = Outcome("finished")
        if self.shown is not None:
            self.shown.state(name, "kept")
            self.shown.add(name, ranked(load_info(run.model).history)[0])

    def next(self) -> tuple[str, Recipe] | None:
        if not self.waiting:
            return None
        name = self.waiting.pop(0)
        return name, self.recipe.variant(name)

    def ended(self, name: str, outcome: Outcome) -> None:
        # nothing stops a variant but a failure
        outcome = Outcome("failed", outcome.cause or "its process ended") if outcome.state == "stopped" else outcome
        self.outcomes[name] = outcome
        if self.shown is not None:
            self.shown.state(name, outcome.state, outcome.cause)


def finetune(recipe: Recipe, shown: TrainingsTable | None = None, notice: Notice = lambda _: None) -> Finetuned:
    """Train the variants of a recipe, or the rest of them, make its averages, score all, and write ``variants.json`` and a plot.

    A variant that fails is reported and stops no other. Raises UserError, before anything starts, for what cannot run: no base, a base of
    another network or scaling, data missing, a wrong option of any variant, too small a machine; and at the end when all have failed.
    """
    recipe = resolve(recipe)
    settings = _settings(recipe)
    prepared = open_prepared(recipe.data)
    for name in settings.trained:
        _check(recipe.variant(name), name, prepared)
    if not cluster.joins():
        # refused before a cluster is started for it
        _plan(recipe)
    base = {"base": load_info(settings.base).weights_sha256, "transform": prepared.transform.digest()}
    with cluster.connected():
        plan, variants = _plan(recipe), _Variants(recipe, [], shown)
        claim(settings.directory, "finetune.json", base, "variants", "model.json")
        notice(plan.words)
        for name in settings.trained:
            variants.sort(name)
        work_off(variants, len(variants.waiting), plan, follow=shown.add if shown else None)
        _make_averages(variants, prepared)
        done = Finetuned(recipe, _measured(variants, prepared))
    _write(done, settings)
    if len(done.failed) == len(settings.variants):
        raise UserError(f"no variant finished; {done.failed[0].name}: {done.failed[0].cause}")
    return done


def _settings(recipe: Recipe) -> Finetune:
    if recipe.finetune is None:
        raise UserError(f"recipe {recipe.name!r} has no section finetune; give it a base, a directory and variants")
    return recipe.finetune


def _check(variant: Recipe, name: str, prepared: Prepared) -> None:
    """Raise UserError, naming the variant, for what cannot run."""
    try:
        check_choices(variant)
        check_start(variant, prepared.transform)
        Run(variant.training.run).check(variant)
    except UserError as error:
        raise UserError(f"variant {name}: {error}") from error


def _plan(recipe: Recipe) -> cluster.Plan:
    settings, flat = _settings(recipe), recipe.data.stream_from == "flat"
    return cluster.plan_trainings(recipe.resources, len(settings.trained), flat=flat, most=settings.concurrent)


def _device(use_gpu: bool) -> torch.device:
    return torch.device("cuda" if use_gpu and torch.cuda.is_available() else "cpu")


def _make_averages(variants: _Variants, prepared: Prepared) -> None:
    """All averages, each by a task; one that fails stops no other."""
    recipe = variants.recipe
    names = [name for name, variant in _settings(recipe).variants.items() if variant.average is not None]
    gpu = recipe.resources.use_gpu

    def make(number: int) -> str:
        try:
            make_average(recipe, names[number], prepared, _device(gpu))
        except UserError as error:
            return str(error)
        return ""

    for name, cause in zip(names, run_tasks(make, len(names), gpus=recipe.resources.gpus_per_worker if gpu else 0), strict=True):
        variants.ended(name, Outcome("failed" if cause else "finished", cause))


def _measured(variants: _Variants, prepared: Prepared) -> list[Entry]:
    """The base and every variant with its scores on the test months, the best first; without test months, by validation R2."""
    recipe, settings = variants.recipe, _settings(variants.recipe)
    runs = {name: Run(storage.join(settings.directory, name)) for name in settings.variants}
    models = {BASE: settings.base} | {name: run.model for name, run in runs.items() if variants.outcomes[name].state == "finished"}
    scores = _scores(recipe, models, prepared) if prepared.split("test") else {}
    entries = [Entry(BASE, BASE, settings.base, **_figures(settings.base), **_tested(scores, BASE))]
    for name, run in runs.items():
        outcome = variants.outcomes[name]
        figures = _figures(run.model) | _tested(scores, name) if name in models else {}
        entries.append(Entry(name, outcome.state, run.model, outcome.cause, **figures))
    return sorted(entries, key=_rank)


def _rank(entry: Entry) -> float:
    known = entry.validation_r2 if entry.test_r2 is None else entry.test_r2
    return np.inf if known is None else -known


def _figures(model: str) -> dict[str, Any]:
    """What a model's own history tells."""
    history = load_info(model).history
    if not history:
        return {}
    best = ranked(history)[0]
    if best.get("event") == EVENT:
        return {"validation_r2": best["r2"], "members": tuple(best["members"])}
    seconds = sum(record.get("seconds", 0.0) + record.get("val_seconds", 0.0) for record in history)
    return {"validation_r2": best["r2"], "epochs": history[-1]["epoch"], "seconds": seconds}


def _tested(scores: Mapping[str, TimedMoments], name: str) -> dict[str, Any]:
    if not scores:
        return {}
    ours = scores[name]
    compared = {} if name == BASE else {"difference": difference(scores[BASE], ours)}
    return {"test_r2": ours.score().learned, "interval": interval(ours)} | compared


def _scores(recipe: Recipe, models: Mapping[str, str], prepared: Prepared) -> dict[str, TimedMoments]:
    """Every model's moments on the test months, by tasks; what an earlier start left is taken."""
    directory, names, gpu = _settings(recipe).directory, list(models), recipe.resources.use_gpu
    test = [(manifest.source, manifest.checksum or manifest.input, manifest.rows) for manifest in prepared.split("test")]

    def score(number: int) -> dict[str, np.ndarray]:
        name = names[number]
        weights = load_info(models[name]).weights_sha256
        key = hashlib.sha256(json.dumps([weights, prepared.transform.digest(), test]).encode()).hexdigest()[:16]
        url = storage.join(directory, "_scores", f"{name}-{key}.npz")
        if storage.exists(url):
            return dict(np.load(io.BytesIO(storage.read_bytes(url))))
        arrays = score_network(load_model(models[name]).emulator.network, prepared, "test", _device(gpu)).to_arrays()
        content = io.BytesIO()
        np.savez(content, **arrays)  # type: ignore[arg-type]
        storage.write_bytes(url, content.getvalue())
        return arrays

    found = run_tasks(score, len(names), gpus=recipe.resources.gpus_per_worker if gpu else 0)
    return {name: TimedMoments.from_arrays(arrays) for name, arrays in zip(names, found, strict=True)}


def _write(done: Finetuned, settings: Finetune) -> None:
    """``variants.json``, with places below the directory as they are below it, and the plot."""

    def place(url: str) -> str:
        return url.removeprefix(f"{settings.directory}/")

    variants = [asdict(entry) | {"model": place(entry.model), "members": [place(url) for url in entry.members]} for entry in done.entries]
    storage.write_json(storage.join(settings.directory, VARIANTS), {"name": done.recipe.name, "variants": variants})
    if shown := [entry for entry in map(_ranked, done.entries) if entry is not None]:
        storage.write_bytes(storage.join(settings.directory, PLOT), ranking(shown, done.recipe.name))


def _ranked(entry: Entry) -> Ranked | None:
    """A model as the plot takes it, if it was tested."""
    if entry.test_r2 is None:
        return None
    ends = (entry.interval.low, entry.interval.high) if entry.interval else None
    by = (entry.difference.value, entry.difference.low, entry.difference.high) if entry.difference else None
    return Ranked(entry.name, entry.test_r2, ends, by, entry.validation_r2, entry.name == BASE)


def show(done: Finetuned) -> None:
    """The table of a finetuning in the terminal, and what failed and why."""
    tested = any(entry.test_r2 is not None for entry in done.entries)
    header = ("", "validation", *(("test", "from base", "95 % within") if tested else ()), "epochs", "s")
    rows = [_row(entry, tested) for entry in done.entries if entry.state != "failed"]
    title = "R2 over the learned columns" + (
        ", by that on the test months, which chose nothing" if tested else "; no test months to compare on"
    )
    table(title, header, rows)
    for entry in done.failed:
        say(f"{entry.name} failed: {entry.cause}")


def _row(entry: Entry, tested: bool) -> tuple[str, ...]:
    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    ends = entry.difference
    compared = (f"{ends.value:+.4f}", f"{ends.low:+.4f}, {ends.high:+.4f}") if ends else ("", "")
    measured = (number(entry.test_r2, ".4f"), *compared)
    made_of = f" (of {len(entry.members)})" if entry.members else ""
    return (
        entry.name + made_of,
        number(entry.validation_r2, ".4f"),
        *(measured if tested else ()),
        number(entry.epochs, "d"),
        number(entry.seconds, ".0f"),
    )
