"""The members of an ensemble as a recipe lists them: models, variants of a finetuning, and older runs' predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from leapray import storage
from leapray.errors import UserError
from leapray.inference.weights import Identity, identity, place
from leapray.models.directory import INFO_FILE
from leapray.recipe import Ensemble
from leapray.training.comparison import read_variants

_VARIANTS_SUFFIX = ".json"


@dataclass(frozen=True)
class Candidate:
    """A member whose weight is not known yet: a model, or predictions of the months that choose and of the test months."""

    name: str
    model: str | None = None
    identity: Identity = field(default_factory=Identity)
    validation: str | None = None
    test: str | None = None


def candidates(ensemble: Ensemble, notice: Callable[[str], None] = lambda _: None) -> list[Candidate]:
    """The members of a recipe's ensemble, models first, each once.

    Variants that failed are left out, and so are models that equal one before them, such as an average that equals a variant.
    Raises UserError for what is neither a model nor a list of variants, for names that stand twice, and where no member is left.
    """
    found: dict[Identity, str] = {}
    for model in _models(ensemble, notice):
        known = identity(model)
        if known in found:
            notice(f"{model} has the same weights as {found[known]} and is taken once")
        found.setdefault(known, model)
    names = storage.short_names(list(found.values()))
    models = [Candidate(name, model, known) for name, (known, model) in zip(names, found.items(), strict=True)]
    older = [
        Candidate(member.name, validation=storage.absolute(member.validation), test=member.test and storage.absolute(member.test))
        for member in ensemble.predictions
    ]
    if twice := next((member.name for member in older if member.name in names), None):
        raise UserError(f"ensemble.members: {twice!r} names predictions and a model, expected another name for the predictions")
    if not models and not older:
        raise UserError(f"ensemble.members: none of {', '.join(map(str, ensemble.members))} holds a model that finished")
    return models + older


def _models(ensemble: Ensemble, notice: Callable[[str], None]) -> Iterator[str]:
    for member in ensemble.members:
        if not isinstance(member, str):
            continue
        if member.endswith(_VARIANTS_SUFFIX):
            yield from _variants(storage.absolute(member), notice)
        else:
            yield _model(storage.absolute(member))


def _variants(url: str, notice: Callable[[str], None]) -> Iterator[str]:
    """The models of ``variants.json``, whose places are below it, unless they are whole URLs."""
    entries = [(entry["name"], entry["state"], entry["model"]) for entry in read_variants(url)["variants"]]
    failed = [name for name, state, _ in entries if state == "failed"]
    if failed:
        notice(f"{url}: left out {', '.join(failed)}, which failed")
    for name, _, model in entries:
        if name not in failed:
            yield place(url.rpartition("/")[0], model)


def _model(url: str) -> str:
    if not storage.exists(storage.join(url, INFO_FILE)) and storage.exists(storage.join(inside := storage.join(url, "model"), INFO_FILE)):
        raise UserError(f"ensemble.members: {url} is not a model directory; did you mean {inside}?")
    return url
