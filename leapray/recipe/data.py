"""The data of a recipe: sources, their months, scaling, features, and where the prepared result lies."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from leapray.climsim.row_keys import KINDS
from leapray.climsim.schema import KAGGLE, VariableSet, variable_set
from leapray.errors import UserError
from leapray.recipe.sections import FOLDER_NAME, Choice, MonthField, Months, Section, Seed

SPLITS = ("train", "validation", "blend", "test")


def _share(value: Any) -> Any:
    """``1/15`` as the number that it stands for."""
    if not isinstance(value, str):
        return value
    try:
        # a number as float reads it: Fraction would write out all the zeros of 1e999999999
        numerator, slash, denominator = value.partition("/")
        return float(numerator) / float(denominator) if slash else float(value)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{value[:40]!r} is neither a number nor a fraction such as 1/15") from error


class Source(Section):
    """Flat parquet or csv of one kind, the months of it that each split takes, and which of their steps."""

    kind: str
    path: str
    train: Months | None = None
    validation: Months | None = None
    blend: Months | None = None
    """Months that choose what is averaged with what, where validation has chosen the members."""
    test: Months | None = None
    stride: PositiveInt = 1
    """Take the steps with ``step % stride == phase``, counted from the first published month."""
    phase: NonNegativeInt = 0
    fraction: Annotated[float, BeforeValidator(_share), Field(gt=0, le=1)] = 1.0
    """Share of these steps that is taken, whole snapshots drawn by ``data.seed``; of the rows, where steps are not known."""
    month: MonthField | None = None
    """The month of all its rows, for files that tell none."""
    weight: PositiveFloat | None = None
    """Share of this source in every training step, in proportion to those of the others; without any weights, to their rows."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} is not one of {', '.join(KINDS)}")
        if self.phase >= self.stride:
            raise ValueError(f"phase {self.phase} must be less than stride {self.stride}")
        if not any(self.months(split) for split in SPLITS):
            raise ValueError(f"no months; give at least one of {', '.join(SPLITS)}")
        return self

    def months(self, split: str) -> Months | None:
        months: Months | None = getattr(self, split)
        return months


class OwnVariables(Section):
    """A variable set of one's own: known variables by name, in the order in which a network gets and gives them."""

    name: str = "own"
    inputs: tuple[str, ...]
    targets: tuple[str, ...]


class Data(Section):
    """Where the data comes from, how it is scaled and shuffled, and where the result lies."""

    prepared: str
    sources: dict[str, Source] = Field(min_length=1)
    variables: str | OwnVariables = KAGGLE.name
    """ClimSim's name of the variables that a network is given and predicts, or a list of them."""
    fit_on: str | None = None
    """The source whose training months give the statistics; the first one by default. Excludes ``statistics``."""
    statistics: str | None = None
    """Statistics made elsewhere, taken instead: a transform.json, a model.json, or a csv of column, mean, std, min and max."""
    scaling: Choice = Choice(name="standard")
    features: tuple[str, ...] = ()
    """Engineered profiles that follow the inputs, in this order."""
    stream_from: Literal["shards", "flat"] = "shards"
    """What training reads: shuffled shards, which preparing writes, or the flat files themselves."""
    bad_rows: Literal["refuse", "drop"] = "refuse"
    rows_per_shard: PositiveInt = 8192
    shuffle_rows: PositiveInt = 65536
    """Rows that one task of the shuffle takes at a time, 3.7 kB each; it holds them up to three times over."""
    seed: Seed = 0

    @property
    def variable_set(self) -> VariableSet:
        if isinstance(self.variables, str):
            return variable_set(self.variables)
        return variable_set(self.variables.name, self.variables.inputs, self.variables.targets)

    @property
    def fit_source(self) -> str:
        return self.fit_on or next(iter(self.sources))

    @model_validator(mode="after")
    def _splits(self) -> Self:
        try:
            _ = self.variable_set
        except UserError as error:
            raise ValueError(str(error)) from error
        for name in self.sources:
            if not FOLDER_NAME.fullmatch(name):
                raise ValueError(f"sources: the name {name!r} becomes a folder, expected letters, digits, - and _")
        if self.statistics is not None and self.fit_on is not None:
            raise ValueError(f"fit_on {self.fit_on!r} and statistics exclude each other: one is fitted on, the other was fitted elsewhere")
        if self.fit_source not in self.sources:
            raise ValueError(f"fit_on names {self.fit_on!r}, which is not a source; sources are {', '.join(self.sources)}")
        if self.statistics is None and self.sources[self.fit_source].train is None:
            raise ValueError(f"source {self.fit_source!r} gives the statistics and needs training months")
        for same_kind, sentence in self._overlaps():
            if same_kind:
                raise ValueError(
                    f"months overlap: {sentence}; splits of one kind must share no month, since neighbouring steps are nearly equal"
                )
        return self

    def overlaps_across_kinds(self) -> list[str]:
        """Splits that share months in different kinds, which is allowed and worth a notice."""
        return [f"months overlap across kinds: {sentence}" for same_kind, sentence in self._overlaps() if not same_kind]

    def _overlaps(self) -> Iterator[tuple[bool, str]]:
        """Different splits that share months: whether they are of one kind, and their names."""
        for (name, split, months), (other_name, other_split, other) in combinations(self._months(), 2):
            if split != other_split and months.overlaps(other):
                same_kind = self.sources[name].kind == self.sources[other_name].kind
                yield same_kind, f"sources.{name}.{split} ({months}) and sources.{other_name}.{other_split} ({other})"

    def _months(self) -> Iterator[tuple[str, str, Months]]:
        for name, source in self.sources.items():
            for split in SPLITS:
                if (months := source.months(split)) is not None:
                    yield name, split, months
