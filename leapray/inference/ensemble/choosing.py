"""The weights of an ensemble from its members' errors, and what is told of them: scores, worth, correlations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from leapray.errors import UserError
from leapray.evaluation.groups import GROUPS
from leapray.evaluation.intervals import Difference, Interval, difference, interval
from leapray.inference.ensemble.members import Candidate
from leapray.inference.ensemble.passes import Scored
from leapray.inference.ensemble.products import ErrorProducts
from leapray.inference.ensemble.solving import ONE, HeldOut, by_column, held_out, weigh
from leapray.inference.weights import Member, Weights, mean_weights
from leapray.recipe import Ensemble

BLEND_FIGURES, TEST_FIGURES = "blend", "test"
Groups = Mapping[str, tuple[str, ...]]


def choose(settings: Ensemble, members: Sequence[Candidate], halves: tuple[ErrorProducts, ErrorProducts] | None) -> Weights:
    """The weights that a recipe asks for, with figures of the months that choose, where there are any.

    Raises UserError where weights are to be solved and no learned column of the truth varies.
    """
    groups, tried, why = _groups(settings, halves)
    names = [member.name for member in members]
    products = None if halves is None else halves[0] + halves[1]
    if products is not None and not products.varying.any():
        raise UserError("ensemble: the targets of the blend months are constant, expected months in which they vary")
    found = _weigh(settings, groups, products, names)
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
    return Weights(method=settings.weights.method, groups=dict(groups), members=listed, figures=figures)


def _groups(settings: Ensemble, halves: tuple[ErrorProducts, ErrorProducts] | None) -> tuple[Groups, HeldOut | None, str]:
    """The groups of variables that are weighed apart, what they score on days held out, and why they are these, in a sentence."""
    if settings.weights.method != "solved" or halves is None:
        return ONE, None, f"weights are {settings.weights.method}"
    tried = held_out(halves)
    if settings.groups != "auto":
        return (ONE if settings.groups == "one" else GROUPS), tried, "the recipe asks for them"
    if tried is None:
        return ONE, None, "the months hold too few days, or rows that tell none, to hold some out"
    better = "a vector for each group of variables does better" if tried.by_variable > tried.one else "one vector does as well"
    return tried.groups, tried, f"{better} on days that were held out"


def _weigh(settings: Ensemble, groups: Groups, products: ErrorProducts | None, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Weights ``(M,)`` by group."""
    if settings.weights.method == "solved":
        assert products is not None
        return weigh(products, groups)
    fixed = settings.weights.fixed
    given = np.array([1.0 if fixed is None else fixed.get(name, 0.0) for name in names])
    # what is left without a member may be members that count nothing
    given = given if given.any() else np.ones(len(names))
    return dict.fromkeys(groups, given / given.sum())


def _figures(settings: Ensemble, groups: Groups, products: ErrorProducts, names: Sequence[str]) -> dict[str, Any]:
    def r2(kept: list[int]) -> float:
        some = products.of_members(kept)
        return some.r2(by_column(_weigh(settings, groups, some, [names[index] for index in kept]), groups))

    everyone = list(range(len(names)))
    whole = r2(everyone)
    without = {name: r2([other for other in everyone if other != index]) - whole for index, name in enumerate(names) if len(names) > 1}
    return {
        "rows": products.truth.count,
        "columns": int(products.varying.sum()),
        "members": {name: r2([index]) for index, name in enumerate(names)},
        "mean": products.r2(mean_weights(len(names))),
        "ensemble": whole,
        "worth": {name: without.get(name) for name in names},
        "correlation": products.correlation().tolist(),
    }


def test_figures(scored: Scored, names: Sequence[str], blend: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the test months tell: R2 of ensemble, plain mean and members, and how the first differs, with intervals by days.

    The best single member is that of the months that choose, or else, where there are none, of the test months themselves.
    """
    members = dict(zip(names, scored.members, strict=True))
    r2 = {name: moments.score().learned for name, moments in members.items()}
    ranking = blend["members"] if blend is not None else r2
    best = max(ranking, key=lambda name: ranking[name])
    return {
        "rows": scored.ensemble.score().rows,
        "members": r2,
        "mean": scored.mean.score().learned,
        "ensemble": scored.ensemble.score().learned,
        "interval": _plain(interval(scored.ensemble)),
        "best": best,
        "from_mean": _plain(difference(scored.mean, scored.ensemble)),
        "from_best": _plain(difference(members[best], scored.ensemble)),
    }


def _plain(found: Difference | Interval | None) -> dict[str, float] | None:
    return None if found is None else asdict(found)
