"""The ensemble of a recipe: its members, and how their weights are found."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, NonNegativeFloat, Tag, model_validator

from leapray.recipe.sections import FOLDER_NAME, Section

_SUM = 1e-6
"""How far fixed weights may be from a sum of 1."""


class Predictions(Section):
    """A member of which only predictions are known: files by ``row`` or ``sample_id``, physical, before the physics if they can be had."""

    name: str
    validation: str
    """Of the months that weights are solved on."""
    test: str | None = None


class Weighing(Section):
    """How the weights of members are found: solved, all the same, or given; the name alone of the first two will do."""

    method: Literal["solved", "mean", "fixed"]
    fixed: Annotated[dict[str, NonNegativeFloat], Field(min_length=1)] | None = None
    """By the names of members; others count nothing."""

    @model_validator(mode="before")
    @classmethod
    def _method_alone(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"method": value}
        return {"method": "fixed", **value} if isinstance(value, Mapping) and "fixed" in value else value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.method == "fixed") != (self.fixed is not None):
            raise ValueError(f"method {self.method} {'wants' if self.fixed is None else 'excludes'} the key fixed, weights by member")
        if self.fixed is not None and not math.isclose(total := sum(self.fixed.values()), 1, abs_tol=_SUM):
            raise ValueError(f"fixed weights sum to {total:g}, expected 1")
        return self


def _form(value: Any) -> str | None:
    """Of a member: which of its forms it is given in."""
    return "path" if isinstance(value, str) else "predictions" if isinstance(value, Mapping | Predictions) else None


Listed = Annotated[
    Annotated[str, Tag("path")] | Annotated[Predictions, Tag("predictions")],
    Discriminator(_form, custom_error_type="member", custom_error_message="expected a path, or a mapping of name, validation and test"),
]


class Ensemble(Section):
    """Models whose physical predictions are averaged, with weights that are solved for on the blend months."""

    directory: str
    """Where weights, figures and predictions lie."""
    members: Annotated[tuple[Listed, ...], Field(min_length=1)]
    """Model directories, lists of variants (``variants.json``: all that finished, and their base), and older runs' predictions."""
    weights: Weighing = Weighing(method="solved")
    groups: Literal["one", "by-variable", "auto"] = "auto"
    """One vector of weights, one for each group of variables, or whichever does better on held-out days of the blend months."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        names = [member.name for member in self.predictions]
        for name, count in Counter(names).items():
            if not FOLDER_NAME.fullmatch(name) or count > 1:
                raise ValueError(f"members: the name {name!r} becomes a folder, expected letters, digits, - and _, and each name once")
        return self

    @property
    def predictions(self) -> list[Predictions]:
        """The members of which only predictions are known."""
        return [member for member in self.members if isinstance(member, Predictions)]
