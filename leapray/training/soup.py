"""Averages of weights that variants kept of their validations: uniform, or greedy as the model soups of Wortsman et al. (2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leapray import storage
from leapray.data.features import channels_of
from leapray.data.shards import Prepared
from leapray.data.stream import Stream
from leapray.data.transform import Transform
from leapray.errors import UserError
from leapray.evaluation.metrics import Score
from leapray.models.directory import INFO_FILE, load_info, load_model, save_model
from leapray.models.registry import build_network
from leapray.recipe import Average, Recipe, parse_recipe
from leapray.training.averaging import recompute_batch_norm
from leapray.training.loop import chosen
from leapray.training.run import Run
from leapray.training.scoring import mean_of, score_network

EVENT = "average"


@dataclass(frozen=True)
class Candidate:
    """Weights that may become part of an average: a model directory, and the validation score that it was kept for."""

    url: str
    score: float


def candidates(recipe: Recipe, name: str) -> list[Candidate]:
    """What the average ``name`` of a finetuning may be made of, from the best validation score on; of equal ones the first first.

    Variants that did not finish give none. Raises UserError when none finished, or one kept less than is asked for.
    """
    assert recipe.finetune is not None
    average = recipe.finetune.variants[name].average
    assert average is not None
    found = [candidate for variant in average.of for candidate in _kept(Run(recipe.variant(variant).training.run), average)]
    if not found:
        raise UserError(f"none of {', '.join(average.of)} finished, so there is nothing to average")
    return sorted(found, key=lambda candidate: -candidate.score)


def _kept(run: Run, average: Average) -> list[Candidate]:
    if not run.finished:
        return []
    best, last = (average.members, 0) if average.take == "best" else (0, average.members)
    found = [Candidate(run.validated_model(record), record["score"]) for record in chosen(load_info(run.model).history, best, last)]
    lost = [candidate.url for candidate in found if not storage.exists(storage.join(candidate.url, INFO_FILE))]
    if lost:
        raise UserError(f"{lost[0]} is not kept, which an average now asks for; remove {run.url} to train it anew")
    return found


def make_average(recipe: Recipe, name: str, prepared: Prepared, device: torch.device) -> None:
    """Write the model of an average, unless it is there, made of the same weights in the same way. Raises UserError as the parts do."""
    assert recipe.finetune is not None
    average = recipe.finetune.variants[name].average
    assert average is not None
    found = candidates(recipe, name)
    weights = {candidate.url: load_info(candidate.url).weights_sha256 for candidate in found}
    run, digest = Run(storage.join(recipe.finetune.directory, name)), prepared.transform.digest()
    if storage.exists(run.recipe):
        raise UserError(f"{run.url}: holds a run of a variant that was trained; choose another name for the average, or remove it")
    for candidate in found:
        if Transform.from_dict(load_info(candidate.url).transform, candidate.url).digest() != digest:
            raise UserError(f"{candidate.url}: its data was scaled otherwise than {prepared.url}, where averages are scored")
    asked = average.model_dump(mode="json") | {"candidates": weights}
    if run.finished and load_info(run.model).history[-1].get("asked") == asked:
        return
    states = [load_model(candidate.url).emulator.network.state_dict() for candidate in found]
    network = build_network(recipe.network.name, recipe.network.options, channels_of(recipe.data))
    split = "blend" if prepared.split("blend") else "validation"

    def scored(weights: Mapping[str, Tensor], on: str) -> Score:
        _load(network, weights, found[0], prepared, device)
        return score_network(network, prepared, on, device).score()

    select = recipe.training.select
    members = greedy(states, lambda weights: scored(weights, split).chosen(select)) if average.greedy else list(range(len(states)))
    final = mean_of([states[member] for member in members])
    validated = scored(final, "validation")
    record: dict[str, Any] = {
        "event": EVENT,
        "score": validated.chosen(select),
        "skill": validated.skill,
        "r2": validated.learned,
        "chosen_on": split if average.greedy else None,
        "members": [found[member].url for member in members],
        "asked": asked,
    }
    save_model(run.model, network.state_dict(), recipe.network, prepared.transform, recipe=recipe.to_dict(), history=[record])


def greedy(states: Sequence[Mapping[str, Tensor]], score: Callable[[Mapping[str, Tensor]], float]) -> list[int]:
    """The first, and each that follows if the mean with it has a higher score than without; their places."""
    members, best = [0], score(states[0])
    for place in range(1, len(states)):
        tried = score(mean_of([states[member] for member in (*members, place)]))
        if tried > best:
            members, best = [*members, place], tried
    return members


def _load(network: nn.Module, weights: Mapping[str, Tensor], member: Candidate, prepared: Prepared, device: torch.device) -> None:
    """Give the network these weights, and where it normalises batches, statistics of the rows that the member was trained on."""
    network.load_state_dict(dict(weights))
    network.to(device)

    def inputs() -> Any:
        recipe = parse_recipe(load_info(member.url).recipe)
        training = recipe.training
        batches = Stream(
            prepared, batch_size=training.batch_size, lanes=recipe.lanes, seed=training.seed, sources=recipe.trained, shares=recipe.shares
        )
        for batch in batches.train(0):
            yield torch.from_numpy(batch["inputs"]).to(device)

    recompute_batch_norm(network, inputs(), lambda array: [array])
