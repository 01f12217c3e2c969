"""How much each member of an ensemble counts: one weight per target column, kept in ``ensemble.json``."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from leapray import storage
from leapray.climsim.schema import KAGGLE, Targets
from leapray.data.transform import Transform
from leapray.errors import UserError
from leapray.faults import told
from leapray.models.directory import load_info
from leapray.recipe import validate
from leapray.recipe.sections import Section

FILE = "ensemble.json"
_FOLDER = re.compile(r"(?!\.\.?$)[^/]{1,255}")
_SUM = 1e-6
"""How far a group's weights may be from a sum of 1."""


@dataclass(frozen=True)
class Combination:
    """How members' physical predictions become one: ``sum w_m y_m + constant`` for ``weights (M, t)`` and ``constant (t,)``.

    In a column that falls back to the training mean the weights are 0 and the constant is that mean; elsewhere the constant is 0.
    """

    weights: np.ndarray
    constant: np.ndarray

    @classmethod
    def of(cls, weights: np.ndarray) -> Combination:
        """Weights ``(M, t)`` alone."""
        return cls(np.ascontiguousarray(weights, np.float64), np.zeros(weights.shape[1]))

    def of_members(self, places: Sequence[int]) -> Combination:
        """The same of some of the members, which are all that count."""
        return Combination(self.weights[list(places)], self.constant)

    def __call__(self, predictions: np.ndarray) -> np.ndarray:
        """Members' predictions ``(M, n, t)`` as one, ``(n, t)``."""
        return sum((values * weight for values, weight in zip(predictions, self.weights, strict=True)), self.constant)

    def digest(self) -> str:
        """Short hash of both."""
        return hashlib.sha256(self.weights.tobytes() + self.constant.tobytes()).hexdigest()[:16]


class Identity(NamedTuple):
    """By what a model is known, wherever it lies: digests of its weights and of its transform."""

    weights_sha256: str = ""
    transform_digest: str = ""


def identity(model: str) -> Identity:
    """Of a model's directory. Raises UserError for what is none."""
    info = load_info(model)
    return Identity(info.weights_sha256, Transform.from_dict(info.transform, f"{model}: transform").digest())


class Member(Section):
    """One member: its model's directory, relative to the list's own or a URL, or none for one of which only predictions are known."""

    name: str
    model: str | None = None
    weights_sha256: str = ""
    """Of the model's weights, by which it is known wherever it lies."""
    transform_digest: str = ""
    """Of how it scales, without which weights are another model; empty where that is not told."""
    weights: dict[str, float]
    """By group of variables."""

    def is_of(self, model: Identity) -> bool:
        """Whether a model is this member."""
        return self.weights_sha256 == model.weights_sha256 and self.transform_digest in ("", model.transform_digest)


class Weights(Section):
    """The members of an ensemble and their weights, which are not negative and sum to 1 in every group of variables."""

    method: Literal["solved", "mean", "fixed"]
    targets: tuple[str, ...] = KAGGLE.targets.names
    """Target variables, in the order of a prediction's columns."""
    groups: dict[str, tuple[str, ...]]
    """Target variables of each group; every variable is in one."""
    members: tuple[Member, ...] = Field(min_length=1)
    fallback: dict[str, float] = Field(default_factory=dict)
    """Training mean of the target columns that no member predicts better, which stands there instead of the members."""
    figures: dict[str, Any] = Field(default_factory=dict)
    """What was found on the way: scores, leave-one-out worth, error correlations, and on which months."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        try:
            _ = self.layout
        except UserError as error:
            raise ValueError(str(error)) from error
        grouped = sorted(name for names in self.groups.values() for name in names)
        if grouped != sorted(self.layout.names):
            raise ValueError("groups must hold each target variable once")
        for member in self.members:
            if not _FOLDER.fullmatch(member.name) or not member.name.isprintable():
                raise ValueError(f"the member name {told(member.name)!r} becomes a folder, expected one without slashes")
            if member.weights.keys() != self.groups.keys() or min(member.weights.values()) < 0:
                raise ValueError(f"member {member.name} must have a weight, not negative, for each of {', '.join(self.groups)}")
        for group in self.groups:
            if abs(total := sum(member.weights[group] for member in self.members) - 1) > _SUM:
                raise ValueError(f"weights of group {group} sum to {total + 1:g}, expected 1")
        if unknown := [column for column in self.fallback if column not in self.layout.columns]:
            raise ValueError(f"fallback: {told(unknown[0])!r} is not a target column")
        return self

    @property
    def layout(self) -> Targets:
        return Targets.of(self.targets)

    def combination(self, members: Sequence[int] | None = None) -> Combination:
        """How the members, or those of these places, are averaged, and where the training mean stands instead."""
        weights, targets = self.matrix(), self.layout
        constant = np.zeros(targets.width)
        for column, mean in self.fallback.items():
            place = targets.columns.index(column)
            weights[:, place], constant[place] = 0.0, mean
        return Combination(weights if members is None else weights[list(members)], constant)

    def matrix(self) -> np.ndarray:
        """Weight of each member in each target column, float64 ``(M, t)``, before any falls back to the training mean."""
        targets = self.layout
        matrix = np.empty((len(self.members), targets.width))
        for group, variables in self.groups.items():
            for variable in variables:
                matrix[:, targets[variable]] = np.array([member.weights[group] for member in self.members])[:, None]
        return matrix

    def of_models(self, models: Sequence[str]) -> Combination:
        """The :meth:`combination` of model directories, known by their weights and transforms, in their order.

        Raises UserError for a model that is no member, and for a member that counts and is not among the models.
        """
        places = []
        for model in models:
            known = identity(model)
            index = next((index for index, member in enumerate(self.members) if member.is_of(known)), None)
            if index is None:
                raise UserError(f"{model}: is no member of the ensemble, expected {', '.join(member.name for member in self.members)}")
            places.append(index)
        for index, member in enumerate(self.members):
            if max(member.weights.values()) > 0 and index not in places:
                raise UserError(f"member {member.name} of the ensemble is missing among the models, expected the model {member.model}")
        if len(set(places)) < len(places):
            raise UserError("a model stands twice among the models")
        return self.combination(places)


def mean_weights(count: int, targets: Targets) -> np.ndarray:
    """The plain mean of ``count`` members, float64 ``(count, t)``."""
    return np.full((count, targets.width), 1 / count)


def read_weights(url: str) -> Weights:
    """Read ``ensemble.json``, with the places of models made absolute. Raises UserError for what is none."""
    values = storage.read_json(url)
    if not isinstance(values, dict) or "members" not in values:
        raise UserError(f"{url}: not the weights of an ensemble, expected the {FILE} that `leapray ensemble` writes")
    weights = validate(Weights, values, url)
    if any("attainable" not in figures for figures in weights.figures.values()):
        raise UserError(f"{url}: written by an earlier leapray, before skill; solve for the weights again in another place")
    home = storage.absolute(url).rpartition("/")[0]
    placed = [
        member if member.model is None else member.model_copy(update={"model": place(home, member.model)}) for member in weights.members
    ]
    return weights.model_copy(update={"members": tuple(placed)})


def weighted_models(url: str, models: Sequence[str] = ()) -> tuple[list[str], Combination, list[str]]:
    """Model directories to predict with, how they are averaged, and their names: ``models``, or else those of the list that count.

    Raises UserError for what is no list, and for models that are not the list's, cannot be found, or have changed since.
    """
    weights = read_weights(url)
    if models:
        return list(models), weights.of_models(models), storage.short_names(models)
    counting = [index for index, member in enumerate(weights.members) if max(member.weights.values()) > 0]
    found = []
    for member in (weights.members[index] for index in counting):
        if member.model is None:
            raise UserError(f"{url}: member {member.name} has no model to predict with, only predictions; weigh the others without it")
        if member.weights_sha256 and not member.is_of(identity(member.model)):
            raise UserError(
                f"{member.model}: its weights or transform are not those of member {member.name} of {url}; solve for the weights again"
            )
        found.append(member.model)
    return found, weights.combination(counting), [weights.members[index].name for index in counting]


def place(home: str, model: str) -> str:
    """A model of a list that lies in ``home``: a URL or an absolute path as it is, any other below that."""
    return model if "://" in model or model.startswith("/") else storage.absolute(storage.join(home, model))
