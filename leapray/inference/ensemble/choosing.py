"""The weights of an ensemble from its members' errors, and what is told of them: scores, worth, correlations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from leapray.climsim.schema import Targets
from leapray.errors import UserError
from leapray.evaluation.intervals import Difference, Interval, difference, interval
from leapray.inference.ensemble.members import Candidate
from leapray.inference.ensemble.passes import Scored
from leapray.inference.ensemble.products import ErrorProducts, names_of
from leapray.inference.ensemble.solving import HeldOut, all_as_one, by_column, held_out, weigh
from leapray.inference.weights import Member, Weights, mean_weights
from leapray.recipe import Ensemble

BLEND_FIGURES, TEST_FIGURES = "blend", "test"
Groups = Mapping[str, tuple[str, ...]]


def choose(
    settings: Ensemble, members: Sequence[Candidate], halves: tuple[ErrorProducts, ErrorProducts] | None, targets: Targets
) -> Weights:
    """The weights that a recipe asks for, of predictions of ``targets``, with figures of the months that choose, where there are any.

    Where weights are solved for, a learned column that no member predicts better than the training mean falls back to that mean. Raises
    UserError where weights are to be solved and no learned column of the truth varies.
    """
    groups, tried, why = _groups(settings, halves, targets)
    names = [member.name for member in members]
    products = None if halves is None else halves[0] + halves[1]
    if products is not None and not products.varies:
        raise UserError("ensemble: the targets of the blend months are constant, expected months in which they vary")
    solved = settings.weights.method == "solved"
    found = _weigh(settings, groups, products, names)
    if alone := _alone(found, names) if solved and len(names) > 1 else "":
        why = f"{alone} alone has the most skill on these months"
    lost = names_of(targets, products.falls_back) if solved and products is not None else []
    figures: dict[str, Any] = {}
    if products is not None:
        held = None if tried is None else {"one": tried.one, "by-variable": tried.by_variable}
        figures[BLEND_FIGURES] = _figures(settings, groups, products, names) | {"groups": {"held_out": held, "why": why}}
    listed = tuple(
        Member(
            name=member.name,
            model=member.model,
            weights_sha256=member.identity.weights_sha256,
            transform_digest=member.identity.transform_digest,
            weights={group: float(weights[index]) for group, weights in found.items()},
        )
        for index, member in enumerate(members)
    )
    fallback = {} if products is None else {name: float(products.statistics.mean[targets.columns.index(name)]) for name in lost}
    return Weights(
        method=settings.weights.method,
        targets=targets.names,
        groups=dict(groups),
        members=listed,
        fallback=fallback,
        figures=figures,
    )


def _groups(settings: Ensemble, halves: tuple[ErrorProducts, ErrorProducts] | None, targets: Targets) -> tuple[Groups, HeldOut | None, str]:
    """The groups of variables that are weighed apart, what they score on days held out, and why they are these, in a sentence."""
    if settings.weights.method != "solved" or halves is None:
        return all_as_one(targets), None, f"weights are {settings.weights.method}"
    tried = held_out(halves)
    if settings.groups != "auto":
        return (all_as_one(targets) if settings.groups == "one" else targets.groups), tried, "the recipe asks for them"
    if tried is None:
        return all_as_one(targets), None, "the months hold too few days, or rows that tell none, to hold some out"
    better = "a vector for each group of variables does better" if tried.by_variable > tried.one else "one vector does as well"
    return (targets.groups if tried.by_variable > tried.one else all_as_one(targets)), tried, f"{better} on days that were held out"


def _weigh(settings: Ensemble, groups: Groups, products: ErrorProducts | None, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Weights ``(M,)`` by group."""
    if settings.weights.method == "solved":
        assert products is not None
        return _at_least_the_best(weigh(products, groups), groups, products)
    fixed = settings.weights.fixed
    given = np.array([1.0 if fixed is None else fixed.get(name, 0.0) for name in names])
    # what is left without a member may be members that count nothing
    given = given if given.any() else np.ones(len(names))
    return dict.fromkeys(groups, given / given.sum())


def _alone(weights: Mapping[str, np.ndarray], names: Sequence[str]) -> str:
    """The member that has all the weight in every group; empty where there is none."""
    best = {int(np.argmax(vector)) for vector in weights.values()}
    return names[best.pop()] if len(best) == 1 and all(vector.max() == 1 for vector in weights.values()) else ""


def _at_least_the_best(weights: dict[str, np.ndarray], groups: Groups, products: ErrorProducts) -> dict[str, np.ndarray]:
    """The solved weights, or the best member alone where that has more skill.

    What is solved for has no bound at -1, so it may improve columns that are below it at the cost of others.
    """
    singles = np.eye(products.members)
    scores = [products.skill(by_column(products.targets, dict.fromkeys(groups, one), groups), products.falls_back) for one in singles]
    if products.skill(by_column(products.targets, weights, groups), products.falls_back) >= max(scores):
        return weights
    return dict.fromkeys(groups, singles[int(np.argmax(scores))])


def _figures(settings: Ensemble, groups: Groups, products: ErrorProducts, names: Sequence[str]) -> dict[str, Any]:
    """Skill before the physics: of members and plain mean as they are, and of the ensemble with what falls back to the training mean."""

    def skill(kept: list[int]) -> float:
        some = products.of_members(kept)
        fallback = some.falls_back if settings.weights.method == "solved" else None
        return some.skill(by_column(products.targets, _weigh(settings, groups, some, [names[index] for index in kept]), groups), fallback)

    everyone = list(range(len(names)))
    whole = skill(everyone)
    without = {name: skill([other for other in everyone if other != index]) - whole for index, name in enumerate(names) if len(names) > 1}
    return {
        "rows": products.truth.count,
        "attainable": products.attainable,
        "statistics": products.statistics.origin,
        "members": {name: products.of_members([index]).skill(np.ones((1, products.targets.width))) for index, name in enumerate(names)},
        "mean": products.skill(mean_weights(len(names), products.targets)),
        "ensemble": whole,
        "worth": {name: without.get(name) for name in names},
        "correlation": products.correlation().tolist(),
    }


def test_figures(scored: Scored, names: Sequence[str], blend: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the test months tell: skill and R2 of ensemble, plain mean and members, and how the first's skill differs, with intervals by
    days.

    The best single member is that of the months that choose, or else, where there are none, of the test months themselves.
    """
    moments = {
        "ensemble": scored.ensemble,
        "mean": scored.mean,
        **{f"member {name}": one for name, one in zip(names, scored.members, strict=True)},
    }
    scores = {key: one.score() for key, one in moments.items()}
    members = {name: scores[f"member {name}"] for name in names}
    skill = {name: score.skill for name, score in members.items()}
    ranking = blend["members"] if blend is not None else skill
    best = max(ranking, key=lambda name: ranking[name])
    return {
        "rows": scores["ensemble"].rows,
        "attainable": scores["ensemble"].attainable,
        "members": skill,
        "mean": scores["mean"].skill,
        "ensemble": scores["ensemble"].skill,
        "r2": {"members": {name: score.learned for name, score in members.items()}}
        | {key: scores[key].learned for key in ("mean", "ensemble")},
        "interval": _plain(interval(scored.ensemble)),
        "best": best,
        "from_mean": _plain(difference(scored.mean, scored.ensemble)),
        "from_best": _plain(difference(moments[f"member {best}"], scored.ensemble)),
    }


def _plain(found: Difference | Interval | None) -> dict[str, float] | None:
    return None if found is None else asdict(found)
