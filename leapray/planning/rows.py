"""How many rows a recipe trains on: from the manifests of its prepared data, from its flat files, or assumed from months and columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from leapray import storage
from leapray.climsim.schema import INPUTS, KINDS, LEVELS, MLI_VARIABLES, MLO_VARIABLES, TARGETS
from leapray.data import flat
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
_READ, _CSV_READ, _AT_ONCE = 64, 4, 16
"""The most pieces, of parquet and of csv, whose rows are looked at to count them, and how many at a time."""


def shard_bytes(features: int) -> int:
    """Bytes of a row of a shard: scaled inputs, features and targets in float32, and its key."""
    return 4 * (INPUTS.width + LEVELS * features + TARGETS.width) + _KEY_BYTES


@dataclass(frozen=True)
class Held:
    """What a source holds: rows by split, and the bytes of its shards where they are there."""

    kind: str
    rows: Mapping[str, int]
    shards: int | None = None
    assumed: bool = False
    """Rows are those of a complete archive, because the data is not there."""

    @property
    def total(self) -> int:
        return sum(self.rows.values())


@dataclass(frozen=True)
class Rows:
    """The rows of a recipe by source, how they were found in sentences, and the prepared data if it is there."""

    sources: Mapping[str, Held]
    found: Sequence[str]
    prepared: Prepared | None = None

    @property
    def validation(self) -> int:
        return sum(held.rows.get("validation", 0) for held in self.sources.values())


def _selections(source: Source, seed: int) -> dict[str, Selection]:
    """What each split takes of a source."""
    return {
        split: Selection(months.start, months.stop, source.stride, source.phase, source.fraction, seed, source.month)
        for split in SPLITS
        if (months := source.months(split)) is not None
    }


def count(source: Source, split: str, seed: int) -> int:
    """Rows of a split in a complete archive: the steps that months, stride, phase and fraction take, times the columns of the grid."""
    selection = _selections(source, seed).get(split)
    if selection is None:
        return 0
    taken = selection.takes_steps(np.arange(selection.steps.start, selection.steps.stop))
    return int(taken.sum()) * KINDS[source.kind].columns


def find_rows(data: Data) -> Rows:
    """True counts where the recipe's prepared data can be opened, else those of its flat files, else those of a complete archive."""
    try:
        if storage.exists(storage.join(data.prepared, TRANSFORM)):
            return _of_manifests(data, open_prepared(data))
        why = "nothing is prepared yet"
    except UserError as error:
        why = str(error).rstrip(".")
    held: dict[str, Held] = {}
    found: list[str] = []
    for name, source in data.sources.items():
        try:
            rows, how = _of_files(source, data.seed, found.append)
            held[name] = Held(source.kind, rows)
            found.append(f"rows of {name} are {how}, since {why}")
        except UserError as error:
            held[name] = Held(
                source.kind, {split: count(source, split, data.seed) for split in _selections(source, data.seed)}, assumed=True
            )
            found.append(f"rows of {name} are assumed, those of a complete archive: {why}, and {str(error).rstrip('.')}")
    return Rows(held, found)


def _of_manifests(data: Data, prepared: Prepared) -> Rows:
    held = {}
    for name, source in data.sources.items():
        mine = [manifest for manifest in prepared.manifests if manifest.source == name]
        sizes = [file.bytes for manifest in mine for file in manifest.files if isinstance(file, ShardFile)]
        held[name] = Held(source.kind, {manifest.split: manifest.rows for manifest in mine}, sum(sizes) or None)
    return Rows(held, [f"rows are counted by the manifests in {prepared.url}"], prepared)


def _of_files(source: Source, seed: int, notice: Callable[[str], None]) -> tuple[dict[str, int], str]:
    """Rows of a source's flat files by split, and how they were counted; ``notice`` as for :func:`flat.survey`.

    Raises UserError where the files are not there or hold no rows of a month, and for a csv of many parts that must be read to count.
    """
    survey = flat.survey(source.path, notice=notice)
    counts = {split: _count(survey.pieces(selection), source.kind) for split, selection in _selections(source, seed).items()}
    how = "counted in" if all(exact for _, exact in counts.values()) else "estimated from a part of"
    return {split: rows for split, (rows, _) in counts.items()}, f"{how} the {len(survey.paths)} files of {source.path}"


def _count(pieces: Sequence[flat.Piece], kind: str) -> tuple[int, bool]:
    """Rows of pieces, and whether they are exact: footers tell those of whole row groups, of others the ids and places are read.

    Of many such pieces some are read, and the others are taken to hold as large a share.
    """
    whole = [piece for piece in pieces if piece.selection is None]
    parts = [piece for piece in pieces if piece.selection is not None]
    csv = next((piece.path for piece in parts if piece.row_group is None), None)
    most = _CSV_READ if csv else _READ
    if csv and len(parts) > most:
        raise UserError(f"{csv}: which of its rows belong is only known when all are read")
    read = [parts[index] for index in np.unique(np.linspace(0, len(parts) - 1, min(most, len(parts))).astype(int))] if parts else []
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        taken = sum(pool.map(lambda piece: sum(len(chosen.row) for chosen in flat.read_chosen(piece, (), kind=kind)), read))
    looked_at, in_all = (sum(piece.rows_about for piece in group) for group in (read, parts))
    scaled = taken if len(read) == len(parts) else round(taken * in_all / looked_at)
    exact = len(read) == len(parts) and all(piece.exact for piece in whole)
    return sum(piece.rows_about for piece in whole) + scaled, exact


@dataclass(frozen=True)
class Epoch:
    """Steps of an epoch, the rows that it takes of each source, and a sentence on those that fill no batch."""

    steps: int
    rows: Mapping[str, float]
    remainder: str | None = None


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
    return Epoch(plan.steps, dict(zip(names, taken, strict=True)), plan.remainder)
