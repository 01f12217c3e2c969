"""The recipe of an experiment: frozen models of one YAML file, loaded strictly, with ``section.key=value`` overrides.

A recipe describes; the rooms build. A choice among implementations is ``{name, options}``: the registry of its room knows the
names and checks the options.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import combinations
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PlainSerializer,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from leapray import storage
from leapray.climsim.calendar import Month
from leapray.climsim.schema import KINDS
from leapray.errors import UserError

SPLITS = ("train", "validation", "test")
_LANES = 8
_SOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
ModelT = TypeVar("ModelT", bound=BaseModel)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)


def _month(value: Any) -> Month:
    if isinstance(value, Month):
        return value
    try:
        return Month.parse(value)
    except UserError as error:
        raise ValueError(str(error)) from error


Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
MonthField = Annotated[Month, BeforeValidator(_month), PlainSerializer(str)]


class Months(_Section):
    """Months from ``start`` up to, not including, ``stop``."""

    start: MonthField
    stop: MonthField

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.stop <= self.start:
            raise ValueError(f"stop {self.stop} must come after start {self.start} (stop is exclusive)")
        return self

    def overlaps(self, other: Months) -> bool:
        return self.start < other.stop and other.start < self.stop

    def __str__(self) -> str:
        return f"{self.start} up to {self.stop}"


class Choice(_Section):
    """One implementation by name, with its options; the registry of its room checks both."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


def _share(value: Any) -> Any:
    """``1/15`` as the number that it stands for."""
    if not isinstance(value, str):
        return value
    try:
        return float(Fraction(value.replace(" ", "")))
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{value!r} is neither a number nor a fraction such as 1/15") from error


class Source(_Section):
    """Flat parquet or csv of one kind, the months of it that each split takes, and which of their steps."""

    kind: str
    path: str
    train: Months | None = None
    validation: Months | None = None
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


class Data(_Section):
    """Where the data comes from, how it is scaled and shuffled, and where the result lies."""

    prepared: str
    sources: dict[str, Source] = Field(min_length=1)
    fit_on: str | None = None
    """The source whose training months give the statistics; the first one by default. Excludes ``statistics``."""
    statistics: str | None = None
    """Statistics made elsewhere, taken instead: a transform.json, or a csv of column, mean, std, min and max."""
    scaling: Choice = Choice(name="standard")
    features: tuple[str, ...] = ()
    """Engineered profiles that follow the 556 inputs, in this order."""
    stream_from: Literal["shards", "flat"] = "shards"
    """What training reads: shuffled shards, which preparing writes, or the flat files themselves."""
    bad_rows: Literal["refuse", "drop"] = "refuse"
    rows_per_shard: PositiveInt = 8192
    shuffle_rows: PositiveInt = 65536
    """Rows that one task of the shuffle takes at a time, 3.7 kB each; it holds them up to three times over."""
    seed: Seed = 0

    @property
    def fit_source(self) -> str:
        return self.fit_on or next(iter(self.sources))

    @model_validator(mode="after")
    def _splits(self) -> Self:
        for name in self.sources:
            if not _SOURCE_NAME.fullmatch(name):
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
                    f"months overlap: {sentence}; splits of one kind must not touch, since neighbouring steps are nearly equal"
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


class MovingAverage(_Section):
    """An exponential moving average of the weights, which is then what is validated and saved; defaults as in FACTS section 4d."""

    decay: float = Field(0.99, gt=0, lt=1)
    every: PositiveInt = 8
    """Steps between updates."""
    after: NonNegativeInt = 50
    """Up to this step updates copy the weights."""
    ramp: bool = False
    """Let the decay rise as ``min(decay, 1 - (1 + s)^(-2/3))``, s steps after ``after``."""


class Training(_Section):
    """How a network is trained. Batch size is global: the rows of one step over all workers."""

    run: str
    epochs: PositiveInt
    batch_size: PositiveInt
    loss: Choice = Choice(name="huber")
    optimizer: Choice = Choice(name="adamw")
    schedule: Choice = Choice(name="constant")
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    accumulate: PositiveInt = 1
    """Parts in which a step's rows pass through the network; the gradient is that of all of them."""
    clip_norm: PositiveFloat | None = None
    """Largest norm of a step's gradient."""
    ema: MovingAverage | None = None
    validations: PositiveInt = 1
    """Validations of an epoch, evenly spread; the last is at its end."""
    patience: PositiveInt | None = None
    """Stop after this many validations without a better headline R2."""
    keep_best: NonNegativeInt = 1
    """Models of the best validations that the run keeps; the best of all is its model."""
    checkpoint_seconds: PositiveFloat = 60
    """Least time between checkpoints inside an epoch; each validation makes one too."""
    trackers: tuple[Literal["tensorboard", "mlflow"], ...] = ("tensorboard",)
    """What the records of the run are also written for."""
    seed: Seed = 0
    pairs: bool = False
    """Every step takes equally many rows of each source."""
    lanes: PositiveInt | None = None
    """Streams of shards that share every step: a multiple of the workers. The default, 8 or the next multiple, makes an epoch the
    same for 1, 2, 4 and 8 workers."""


class Resources(_Section):
    """What the training takes. ``workers: 0`` trains in the calling process, by the same code (Ray Train's local mode)."""

    workers: int = Field(default=0, ge=0)
    use_gpu: bool = False
    cpus_per_worker: PositiveInt = 1


class Recipe(_Section):
    """One experiment: data, network, training and resources."""

    name: str
    data: Data
    network: Choice
    training: Training
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _divides(self) -> Self:
        workers = max(self.resources.workers, 1)
        lanes = self.lanes
        if lanes % workers or self.training.batch_size % lanes:
            raise ValueError(
                f"training.batch_size {self.training.batch_size} must be a multiple of training.lanes {lanes}, "
                f"by default {_LANES} or the next multiple of the workers, and lanes a multiple of resources.workers {workers}"
            )
        rows = self.training.batch_size // workers
        if self.training.accumulate > rows:
            raise ValueError(f"training.accumulate {self.training.accumulate} is more than the {rows} rows of a worker's step")
        return self

    @model_validator(mode="after")
    def _mixes(self) -> Self:
        weighted = [name for name, source in self.data.sources.items() if source.weight is not None]
        for name in weighted:
            if self.training.pairs:
                raise ValueError(
                    f"data.sources.{name}.weight and training.pairs exclude each other: pairs take equally many rows of each source"
                )
            if self.data.sources[name].train is None:
                raise ValueError(f"data.sources.{name}.weight is the weight of training rows, but the source has no training months")
        if self.training.pairs:
            trained = [name for name, source in self.data.sources.items() if source.train is not None]
            if len(trained) < 2:
                raise ValueError(f"training.pairs needs two sources with training months, found {', '.join(trained) or 'none'}")
            if self.training.batch_size // self.lanes % len(trained):
                raise ValueError(
                    f"training.pairs takes equally many rows of {len(trained)} sources: training.batch_size {self.training.batch_size} "
                    f"must be a multiple of {self.lanes} lanes x {len(trained)} sources"
                )
        return self

    @property
    def shares(self) -> dict[str, float] | None:
        """What each training source gives to every step, in proportion; None mixes them by their rows."""
        weights = {name: source.weight for name, source in self.data.sources.items() if source.train is not None}
        if self.training.pairs:
            return dict.fromkeys(weights, 1.0)
        return {name: weight or 1.0 for name, weight in weights.items()} if any(weights.values()) else None

    @property
    def lanes(self) -> int:
        workers = max(self.resources.workers, 1)
        return self.training.lanes or -(-_LANES // workers) * workers

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as YAML and json hold them."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep=deep)


def load_recipe(url: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply ``section.key=value`` overrides, and check it. Raises UserError with one sentence per mistake."""
    try:
        content = yaml.load(storage.read_bytes(url), Loader=_StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{url}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{url}: a recipe is a mapping of sections, found {type(content).__name__}")
    for override in overrides:
        _apply(content, override)
    return parse_recipe(content, url)


def parse_recipe(content: Mapping[str, Any], name: str = "recipe") -> Recipe:
    """Check plain values as a recipe. Raises UserError that begins with ``name``."""
    return validate(Recipe, content, name)


def validate(model: type[ModelT], content: Mapping[str, Any], name: str) -> ModelT:
    """Build a pydantic model; its errors become one UserError that names each key and what was expected."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{name}: {'; '.join(_sentence(model, item) for item in error.errors())}") from error


def _apply(content: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {override!r} is not of the form section.key=value")
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override!r}: the value is not valid YAML") from error
    for key in keys[:-1]:
        content = content.setdefault(key, {})
        if not isinstance(content, dict):
            raise UserError(f"--set {override!r}: {key!r} is not a section")
    content[keys[-1]] = value


_EXPECTED = {
    "tuple_type": "expected a list",
    "model_type": "expected a mapping of keys",
    "model_attributes_type": "expected a mapping of keys",
    "dict_type": "expected a mapping of keys",
}


def _sentence(model: type[BaseModel], error: Any) -> str:
    location = [str(part) for part in error["loc"]]
    where = ".".join(location)
    if error["type"] == "extra_forbidden":
        known = _keys_at(model, location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys are {', '.join(known)}"
        return f"unknown key {where!r}; {hint}"
    if error["type"] == "missing":
        return f"key {where!r} is missing"
    message = _EXPECTED.get(error["type"], error["msg"].removeprefix("Value error, "))
    if error["type"] == "value_error" or not where:
        return f"{where}: {message}" if where else message
    return f"{where} is {error['input']!r}: {message[0].lower()}{message[1:]}"


def _keys_at(model: type[BaseModel], location: Iterable[str]) -> list[str]:
    """Known keys of the section at a location, found by walking the models' annotations."""
    current: type[BaseModel] | None = model
    for part in location:
        if current is None or part not in current.model_fields:
            continue
        current = _section_of(current.model_fields[part].annotation)
    return sorted(current.model_fields) if current else []


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in getattr(annotation, "__args__", ()) if (found := _section_of(arg))), None)
