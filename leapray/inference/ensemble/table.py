"""An ensemble in the terminal: members, weights and worth, and how it did beside its plain mean and its best member."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leapray.console import digits, say, table
from leapray.inference.weights import Weights


def show(weights: Weights) -> None:
    """The members' weights and scores, two tables where groups of variables are weighed apart, and what the test months say."""
    blend, test = weights.figures.get("blend"), weights.figures.get("test")
    split = (blend or {}).get("split", "blend")
    shares = [(member.name, *(f"{member.weights[group]:.3f}" for group in weights.groups)) for member in weights.members]
    apart = len(weights.groups) > 1
    if apart:
        table("Weights of the members by group of variables", ("", *weights.groups), shares)
    header = ["", *([] if apart else ["weight"])]
    rows = [list(share[: len(header)]) for share in shares]
    summary = [[name, *[""] * (len(header) - 1)] for name in ("plain mean", "ensemble")]
    if blend is not None:
        header += [f"{split} skill", "worth", "least like"]
        for index, row in enumerate(rows):
            row += [digits(blend["members"][row[0]]), digits(blend["worth"][row[0]], "+"), _least_like(blend, index)]
        for row, key in zip(summary, ("mean", "ensemble"), strict=True):
            row += [digits(blend[key]), "", ""]
    if test is not None:
        header += ["test skill", "test R2"]
        for row in rows:
            row += [digits(test["members"][row[0]]), digits(test["r2"]["members"][row[0]])]
        for row, key in zip(summary, ("mean", "ensemble"), strict=True):
            row += [digits(test[key]), digits(test["r2"][key])]
    told = [] if blend is None and test is None else summary
    attainable = next((figures["attainable"] for figures in (test, blend) if figures is not None), None)
    of = "" if attainable is None else f", of an attainable {digits(attainable)}"
    table(f"Skill of the members over the learned columns{of}", tuple(header), [tuple(row) for row in rows + told])
    if blend is not None:
        say(f"weights: {blend['groups']['why']}")
        say(f"{split} figures are before the physics, test figures after it; worth is the skill without the member less that with it")
        if weights.fallback:
            say(
                f"{len(weights.fallback)} columns fall back to the training mean, which no member beats on the {split} months: "
                + ", ".join(weights.fallback)
            )
    for line in _test_lines(test) if test is not None else ():
        say(line)


def _test_lines(test: Mapping[str, Any]) -> list[str]:
    beside = {"the plain mean": test["from_mean"], f"{test['best']}, the best member": test["from_best"]}
    return [
        f"test months: skill of the ensemble less {name} {digits(found['value'], '+')}, "
        f"{found['level']:.0%} interval {digits(found['low'], '+')} to {digits(found['high'], '+')}"
        if found is not None
        else f"test months: no interval of the ensemble less {name} can be told from so few days"
        for name, found in beside.items()
    ]


def _least_like(blend: Mapping[str, Any], index: int) -> str:
    """The member whose errors go least together with one's own, and the correlation."""
    names = list(blend["members"])
    others = [(value, other) for other, value in enumerate(blend["correlation"][index]) if other != index]
    if not others:
        return ""
    value, other = min(others)
    return f"{names[other]} {value:.2f}"
