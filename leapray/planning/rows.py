"""How many rows a recipe trains on: from the manifests of its prepared data, or counted from months, steps and columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from leapray import storage
from leapray.climsim.schema import INPUTS, KINDS, LEVELS, MLI_VARIABLES, MLO_VARIABLES, TARGETS
from leapray.data.epoch import EpochPlan
from leapray.data.flat import Selection
from leapray.data.shards import TRANSFORM, Prepared, ShardFile, open_prepared
from leapray.errors import UserError
from leapray.recipe import SPLITS, Data, Recipe, Source

RAW_BYTES = 8 * sum(variable.levels for variable in (*MLI_VARIABLES, *MLO_VARIABLES))
"""Of a column of one step in a netCDF pair: float64, not compressed (FACTS section 1)."""
FLAT_BYTES = 8 * (INPUTS.width + TARGETS.width)
"""Of a row of flat parquet at the most; what lz4 takes off depends on the values."""
_KEY_BYTES = 8


def shard_bytes(features: int) -> int:
    """Bytes of a row of a shard: scaled inputs, features and targets in float32, and its key."""
    return 4 * (INPUTS.width + LEVELS * features + TARGETS.width) + _KEY_BYTES


@dataclass(frozen=True)
class Held:
    """What a source holds: rows by split, and the bytes of its shards where they are there."""

    kind: str
    rows: Mapping[str, int]
    shards: int | None = None

    @property
    def total(self) -> int:
        return sum(self.rows.values())


@dataclass(frozen=True)
class Rows:
    """The rows of a recipe by source, how they were found, and the prepared data if it is there."""

    sources: Mapping[str, Held]
    found: str
    prepared: Prepared | None = None

    @property
    def validation(self) -> int:
        return sum(held.rows.get("validation", 0) for held in self.sources.values())


def count(source: Source, split: str, seed: int) -> int:
    """Rows of a split's months: the steps that stride, phase and fraction leave of them, times the columns of the kind's grid."""
    months = source.months(split)
    if months is None:
        return 0
    selection = Selection(months.start, months.stop, source.stride, source.phase, source.fraction, seed)
    taken = selection.takes_steps(np.arange(selection.steps.start, selection.steps.stop))
    return int(taken.sum()) * KINDS[source.kind].columns


def find_rows(data: Data) -> Rows:
    """True counts where the recipe's prepared data can be opened, else those of a complete archive."""
    try:
        if storage.exists(storage.join(data.prepared, TRANSFORM)):
            return _of_manifests(data, open_prepared(data))
        why = "nothing is prepared yet"
    except UserError as error:
        why = str(error).rstrip(".")
    held = {
        name: Held(source.kind, {split: count(source, split, data.seed) for split in SPLITS if source.months(split)})
        for name, source in data.sources.items()
    }
    return Rows(held, f"counted from months, steps and columns of a complete archive, since {why}")


def _of_manifests(data: Data, prepared: Prepared) -> Rows:
    held = {}
    for name, source in data.sources.items():
        mine = [manifest for manifest in prepared.manifests if manifest.source == name]
        sizes = [file.bytes for manifest in mine for file in manifest.files if isinstance(file, ShardFile)]
        held[name] = Held(source.kind, {manifest.split: manifest.rows for manifest in mine}, sum(sizes) or None)
    return Rows(held, f"counted by the manifests in {prepared.url}", prepared)


@dataclass(frozen=True)
class Epoch:
    """Steps of an epoch, and the rows that it takes of each source."""

    steps: int
    rows: Mapping[str, float]


def epoch_of(recipe: Recipe, held: Mapping[str, Held]) -> Epoch:
    """What the plan of an epoch would take. Raises UserError for a recipe that trains on nothing, or on less than a step."""
    names: Sequence[str] = recipe.trained if recipe.shares is None else list(recipe.shares)
    if not names:
        raise UserError(
            f"recipe {recipe.name}: no source has training months, and a plan is of a training; give one train: {{start, stop}}"
        )
    rows, batch = [held[name].rows["train"] for name in names], recipe.training.batch_size
    shares = None if recipe.shares is None else list(recipe.shares.values())
    try:
        plan = EpochPlan(rows, range(len(names)), batch_size=batch, lanes=recipe.lanes, seed=0, epoch=0, shares=shares)
    except ValueError as error:
        raise UserError(f"training.batch_size {batch} is too small for these weights: {error}") from error
    if plan.steps == 0:
        raise UserError(f"recipe {recipe.name}: {sum(rows)} training rows do not fill one batch of {batch}")
    if shares is None:
        # one track: what is left over at its end is of any source
        taken = [plan.steps * batch * own / sum(rows) for own in rows]
    else:
        taken = [float(recipe.lanes * track) for track in plan.taken[-1]]
    return Epoch(plan.steps, dict(zip(names, taken, strict=True)))
