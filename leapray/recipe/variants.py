"""Many trainings of one recipe: variants of a base model, and a sweep over a search space."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from leapray.recipe.sections import FOLDER_NAME, Section, Seed

BASE = "base"
"""What the base model is called among its variants."""
_GIVEN, _GIVEN_TRIALS = {"run", "start"}, {"name", "training.run"}
"""Keys of a variant's training, and keys of a trial, that are not its own to give."""


def _names(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Average(Section):
    """The mean of weights that other variants kept of their validations: it costs evaluations only."""

    of: Annotated[tuple[str, ...], BeforeValidator(_names), Field(min_length=1)]
    """The variants whose weights are taken; a bare string is one."""
    take: Literal["best", "last"] = "best"
    """Which of each variant's validations."""
    members: PositiveInt = 5
    """How many of each."""
    greedy: bool = False
    """Take a member in, from the best on, only if R2 on the blend months rises by it (Wortsman et al. 2022)."""


class Variant(Section):
    """One variant: what it changes in the recipe, section by section, or an average of others."""

    average: Average | None = None
    data: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _either(self) -> Self:
        if self.average is not None and (self.data or self.training):
            raise ValueError("an average is not trained; it changes neither data nor training")
        if own := self.training.keys() & _GIVEN:
            raise ValueError(f"training.{min(own)} is not a variant's to give; it follows from the finetuning's base and directory")
        return self


class Finetune(Section):
    """Variants of a base model, trained in parallel."""

    base: str
    """Its directory."""
    directory: str
    """Where the variants lie, each a run, beside their table."""
    transform: Literal["same", "any"] = "same"
    """Whether the data must be scaled as the base's was."""
    variants: dict[str, Variant] = Field(min_length=1)
    concurrent: PositiveInt | None = None
    """Most that are trained at a time; by default as many as the machine or the cluster holds."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        for name, variant in self.variants.items():
            if not FOLDER_NAME.fullmatch(name) or name == BASE:
                raise ValueError(f"variants: the name {name!r} becomes a folder, expected letters, digits, - and _, and not {BASE!r}")
            for member in variant.average.of if variant.average else ():
                if member not in self.variants or self.variants[member].average:
                    trained = ", ".join(self.trained) or "none is"
                    raise ValueError(f"variants.{name}.average.of names {member!r}, expected variants that are trained: {trained}")
        return self

    @property
    def trained(self) -> list[str]:
        """Names of the variants that are trained; the others are averages of them."""
        return [name for name, variant in self.variants.items() if variant.average is None]

    def averages_of(self, name: str) -> Iterator[Average]:
        """The averages that take weights of a variant."""
        for variant in self.variants.values():
            if variant.average is not None and name in variant.average.of:
                yield variant.average


_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def _numbers(value: Any) -> Any:
    """A list in which ``1e-4``, which YAML takes for text, is a number."""
    if not isinstance(value, list | tuple):
        return value
    return [float(item) if isinstance(item, str) and _NUMBER.fullmatch(item) else item for item in value]


class Dimension(Section):
    """The values that one key of the recipe may take: one of five ways to say it."""

    choice: Annotated[tuple[Any, ...], BeforeValidator(_numbers), Field(min_length=1)] | None = None
    """One of these, drawn."""
    grid: Annotated[tuple[Any, ...], BeforeValidator(_numbers), Field(min_length=1)] | None = None
    """Each of these, with every combination of the other grids."""
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    integer: tuple[int, int] | None = None
    """Both ends included."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected one of {', '.join(type(self).model_fields)}, got {' and '.join(given) or 'none'}")
        if given[0] in ("uniform", "loguniform", "integer"):
            low, high = getattr(self, given[0])
            if not low < high or (given[0] == "loguniform" and low <= 0):
                positive = ", both positive" if given[0] == "loguniform" else ""
                raise ValueError(f"{given[0]} [{low:g}, {high:g}] is not a range, expected the lower end first{positive}")
        return self

    @property
    def probes(self) -> tuple[Any, ...]:
        """Values that show whether the recipe takes what may be drawn: all of a list, the ends of a range."""
        return self.choice or self.grid or self.uniform or self.loguniform or self.integer or ()


class Sweep(Section):
    """Trials of a recipe with values drawn from a search space, the bad ones stopped early."""

    directory: str
    """Where the trials lie, each a run, beside their table and the best one's recipe."""
    space: dict[str, Dimension] = Field(min_length=1)
    """By dotted key of the recipe."""
    search: Literal["grid", "random", "optuna"] = "random"
    """How values are drawn: all combinations of grids, at random, or by Optuna's TPE sampler (extra ``optuna``)."""
    trials: PositiveInt | None = None
    """By default one for each combination of the grids."""
    stopping: Literal["asha", "median", "none"] = "asha"
    """Who stops a trial whose validation R2 lags: successive halving (Li et al. 2020), or the median of the others so far."""
    grace: PositiveInt = 1
    """Validations that every trial is given."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """ASHA lets one of so many go on at each rung."""
    concurrent: PositiveInt | None = None
    """Most that are trained at a time; by default as many as the machine or the cluster holds."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _countable(self) -> Self:
        if own := self.space.keys() & _GIVEN_TRIALS:
            raise ValueError(f"space.{min(own)} cannot be searched; every trial gets one of its own")
        drawn = [key for key, dimension in self.space.items() if dimension.grid is None]
        if self.search == "grid" and drawn:
            raise ValueError(f"search grid wants every key as a grid, but {', '.join(drawn)} is drawn")
        if self.trials is None and drawn:
            raise ValueError(f"trials is missing, and {', '.join(drawn)} can be drawn for ever")
        return self
