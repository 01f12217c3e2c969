"""Weights of an ensemble: those of the highest skill, not negative, with sum 1, as a quadratic programme that leaves out the bound at -1.

Shapes: M members.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from leapray.climsim.schema import Targets
from leapray.inference.ensemble.products import ErrorProducts

_RIDGE = 1e-10
"""Share of each member's own error that is added to it: of equal members each then counts alike, and the optimum is one."""


def all_as_one(targets: Targets) -> dict[str, tuple[str, ...]]:
    """All variables as one group."""
    return {"all": targets.names}


def solve(unexplained: np.ndarray) -> np.ndarray:
    """``argmin w' A w`` with ``w >= 0`` and ``sum w = 1`` for positive semidefinite ``A (M, M)``; the plain mean where A is 0.

    With ``A = R' R`` it is the non-negative least squares problem ``|R u|^2 + (sum u - 1)^2``, scaled to sum 1: along a ray ``u = t w``
    that is least at ``q / (1 + q)`` with ``q = w' A w``, which grows with q (Lawson & Hanson 1974, Solving least squares problems, ch. 23).
    Each member is solved for in units of its own error ``d``, ``v = d u``, so that one with a huge error does not drown the others.
    """
    members = len(unexplained)
    error = np.diagonal(unexplained)
    if not (error > 0).any():
        return np.full(members, 1 / members)
    # a member without error is as small as the best of the others
    d = np.sqrt(np.where(error > 0, error, error[error > 0].min()))
    values, vectors = np.linalg.eigh(unexplained / d / d[:, None] + _RIDGE * np.eye(members))
    root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    found, _ = nnls(np.vstack([root, d.min() / d]), np.append(np.zeros(members), 1.0))
    weights = found * (d.min() / d)
    return weights / weights.sum()


def weigh(products: ErrorProducts, groups: Mapping[str, tuple[str, ...]]) -> dict[str, np.ndarray]:
    """Weights ``(M,)`` solved for in each group: one of :func:`all_as_one`, or those of the targets.

    A group of which no column counts takes the weights of all.
    """
    whole = solve(products.unexplained())
    if len(groups) == 1:
        return dict.fromkeys(groups, whole)
    return {group: solve(found) if (found := products.unexplained(group)).any() else whole for group in groups}


def by_column(targets: Targets, weights: Mapping[str, np.ndarray], groups: Mapping[str, tuple[str, ...]]) -> np.ndarray:
    """Weights of groups as those of target columns ``(M, t)``."""
    matrix = np.empty((len(next(iter(weights.values()))), targets.width))
    for group, variables in groups.items():
        for variable in variables:
            matrix[:, targets[variable]] = weights[group][:, None]
    return matrix


@dataclass(frozen=True)
class HeldOut:
    """Skill of one vector of weights and of one for each group, solved on half of the days and scored on the other, and the reverse."""

    one: float
    by_variable: float


def held_out(halves: tuple[ErrorProducts, ErrorProducts]) -> HeldOut | None:
    """Whether groups help on days that they were not solved on; None where one of the halves has no rows or nothing that varies."""
    if any(not half.varies for half in halves):
        return None

    targets = halves[0].targets

    def mean_skill(groups: Mapping[str, tuple[str, ...]]) -> float:
        pairs = (halves, halves[::-1])
        return float(
            np.mean([score.skill(by_column(targets, weigh(solved, groups), groups), solved.falls_back) for solved, score in pairs])
        )

    return HeldOut(mean_skill(all_as_one(targets)), mean_skill(targets.groups))
